# Co-listening scores; see lhydra/features/item_item.py.


def co_listening_scores(
    const int32_t[:, ::1] neighbours,
    const uint16_t[:, ::1] weights,
    const int64_t[::1] played,
    const float[:, :] entry,
    double scale,
    double fall,
    const int64_t[::1] candidates,
):
    cdef Py_ssize_t n = neighbours.shape[0], width = neighbours.shape[1], m = candidates.shape[0], i, j
    cdef int64_t row
    cdef int32_t at
    cdef const int32_t *ahead
    cdef const uint16_t *ahead_weights
    cdef float *counts = NULL
    cdef double every, recent
    cdef float weight, ago
    found = np.empty((m, 2), np.float32)
    cdef float[:, ::1] out = found
    cdef Places places
    if entry.shape[0] < played.shape[0] or entry.shape[1] != 3 or weights.shape[0] != n or weights.shape[1] != width:
        raise ValueError("arrays that do not fit each other")
    make_places(&places, played.shape[0])
    try:
        counts = <float *>malloc((2 * played.shape[0] + 1) * sizeof(float))
        if counts == NULL:
            raise MemoryError
        for i in range(played.shape[0]):
            counts[2 * i] = <float>exp(entry[i, 0])
            ago = <float>expm1(scale * entry[i, 2])
            counts[2 * i + 1] = <float>(counts[2 * i] * exp(ago / -fall))
            put(&places, <int32_t>played[i], <int32_t>i)
        for i in range(m):
            if i + AHEAD < m:
                ahead = &neighbours[0, 0] + candidates[i + AHEAD] * width
                for j in range(0, width, 16):  # a line of the cache
                    __builtin_prefetch(ahead + j)
                ahead_weights = &weights[0, 0] + candidates[i + AHEAD] * width
                for j in range(0, width, 32):
                    __builtin_prefetch(ahead_weights + j)
            row = candidates[i]
            if not 0 <= row < n:
                raise IndexError(f"row {row} of a table of {n}")
            every = recent = 0
            for j in range(width):
                at = place_of(&places, neighbours[row, j])
                if at >= 0:
                    weight = widened(weights[row, j])
                    every += weight * counts[2 * at]
                    recent += weight * counts[2 * at + 1]
            out[i, 0], out[i, 1] = every, recent
    finally:
        free_places(&places)
        free(counts)
    return found
