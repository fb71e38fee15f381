# Co-listening scores; see lhydra/features/item_item.py.

cdef struct Listened:
    # What one user has played, by rows of the table: two counts of each, one for each channel.
    Places places
    float *counts


cdef int make_listened(
    Listened *listened, const int32_t *items, Py_ssize_t h, const float[:, :] entry, double scale, double fall
) except -1:
    """Of h entries of a history. `listened` holds zeros; `free_listened` gives back what is there, also after an error."""
    cdef Py_ssize_t i
    cdef float ago
    if entry.shape[0] < h or entry.shape[1] != 3:
        raise ValueError("arrays that do not fit each other")
    make_places(&listened.places, h)
    listened.counts = <float *>malloc((2 * h + 1) * sizeof(float))
    if listened.counts == NULL:
        raise MemoryError
    for i in range(h):
        listened.counts[2 * i] = <float>exp(entry[i, 0])
        ago = <float>expm1(scale * entry[i, 2])
        listened.counts[2 * i + 1] = <float>(listened.counts[2 * i] * exp(ago / -fall))
        put(&listened.places, items[i], <int32_t>i)
    return 0


cdef inline void free_listened(Listened *listened) noexcept nogil:
    free_places(&listened.places)
    free(listened.counts)


cdef class CoListeningTable:
    """The table of a catalog, looked at once. items: (n,) where each of n tracks stands in it."""

    cdef const int32_t[:, ::1] neighbours
    cdef const uint16_t[:, ::1] weights
    cdef const int32_t[::1] items
    cdef double scale, fall

    def __init__(
        self, const int32_t[:, ::1] neighbours, const uint16_t[:, ::1] weights, const int32_t[::1] items, double scale,
        double fall,
    ):
        if weights.shape[0] != neighbours.shape[0] or weights.shape[1] != neighbours.shape[1]:
            raise ValueError("arrays that do not fit each other")
        self.neighbours, self.weights, self.items, self.scale, self.fall = neighbours, weights, items, scale, fall

    cdef int items_of(self, const int64_t[:] rows, int32_t *found) except -1:
        """Where tracks stand."""
        cdef Py_ssize_t m = rows.shape[0], i
        for i in range(m):
            if not 0 <= rows[i] < self.items.shape[0]:
                raise IndexError(f"row {rows[i]} of {self.items.shape[0]}")
            __builtin_prefetch(&self.items[rows[i]])
        for i in range(m):
            found[i] = self.items[rows[i]]
            if not 0 <= found[i] < self.neighbours.shape[0]:
                raise IndexError(f"row {found[i]} of a table of {self.neighbours.shape[0]}")
        return 0

    cdef inline void score(self, const Listened *listened, int32_t item, float *out) noexcept nogil:
        """What those of a track's neighbours that were played count, in both channels."""
        cdef const int32_t *near = &self.neighbours[item, 0]
        cdef const uint16_t *weights = &self.weights[item, 0]
        cdef double every = 0, recent = 0
        cdef float weight
        cdef Py_ssize_t j
        cdef int32_t at
        for j in range(self.neighbours.shape[1]):
            at = place_of(&listened.places, near[j])
            if at >= 0:
                weight = widened(weights[j])
                every += weight * listened.counts[2 * at]
                recent += weight * listened.counts[2 * at + 1]
        out[0], out[1] = <float>every, <float>recent

    def scores(self, const int64_t[:] played, const float[:, :] entry, const int64_t[:] candidates):
        """(m, 2) scores of rows of the table."""
        cdef Py_ssize_t h = played.shape[0], m = candidates.shape[0], i
        cdef Listened listened
        cdef int32_t *items = <int32_t *>malloc((h + m + 1) * sizeof(int32_t))
        found = np.empty((m, 2), np.float32)
        cdef float[:, ::1] out = found
        listened.places.keys, listened.counts = NULL, NULL
        try:
            if items == NULL:
                raise MemoryError
            for i in range(h):
                items[i] = <int32_t>played[i]
            for i in range(m):
                if not 0 <= candidates[i] < self.neighbours.shape[0]:
                    raise IndexError(f"row {candidates[i]} of a table of {self.neighbours.shape[0]}")
                items[h + i] = <int32_t>candidates[i]
            make_listened(&listened, items, h, entry, self.scale, self.fall)
            for i in range(m):
                if i + AHEAD < m:
                    ask_for(&self.neighbours[items[h + i + AHEAD], 0], self.neighbours.shape[1] * sizeof(int32_t))
                    ask_for(&self.weights[items[h + i + AHEAD], 0], self.neighbours.shape[1] * sizeof(uint16_t))
                self.score(&listened, items[h + i], &out[i, 0])
        finally:
            free_listened(&listened)
            free(items)
        return found
