# Co-listening scores; see lhydra/features/item_item.py.


def co_listening_scores(
    const int32_t[:, ::1] neighbours,
    const uint16_t[:, ::1] weights,
    const int64_t[::1] played,
    const float[:, ::1] counts,
    const int64_t[::1] candidates,
):
    cdef Py_ssize_t n = neighbours.shape[0], width = neighbours.shape[1], m = candidates.shape[0], i, j
    cdef int64_t row
    cdef int32_t at
    cdef const int32_t *ahead
    cdef double every, recent
    cdef float weight
    found = np.empty((m, 2), np.float32)
    cdef float[:, ::1] out = found
    cdef Places places
    make_places(&places, played.shape[0])
    try:
        for i in range(played.shape[0]):
            put(&places, <int32_t>played[i], <int32_t>i)
        for i in range(m):
            if i + AHEAD < m:
                ahead = &neighbours[0, 0] + candidates[i + AHEAD] * width
                for j in range(0, width, 16):  # a line of the cache
                    __builtin_prefetch(ahead + j)
            row = candidates[i]
            if not 0 <= row < n:
                raise IndexError(f"row {row} of a table of {n}")
            every = recent = 0
            for j in range(width):
                at = place_of(&places, neighbours[row, j])
                if at >= 0:
                    weight = widened(weights[row, j])
                    every += weight * counts[at, 0]
                    recent += weight * counts[at, 1]
            out[i, 0], out[i, 1] = every, recent
    finally:
        free_places(&places)
    return found
