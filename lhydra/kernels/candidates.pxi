# Candidates of a request: which of them may be returned, all sources together, their order, and what is stored of them.
# See lhydra/bundle/candidates.py, exact.py and bundle.py.

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer

cdef enum:
    MOST_TABLES = 8
    WIDE = 64  # numbers of a vector that are widened at once


cdef int order_of(const float *scores, const int64_t *rows, Py_ssize_t n, int32_t *order) except -1:
    """The positions best first, ties by row, which 32 bits hold: a radix sort of the bits of the scores."""
    cdef Py_ssize_t i, j, k, shift, sums
    cdef uint32_t bits
    cdef float score
    cdef uint32_t counts[4][256]
    cdef uint64_t *keys = <uint64_t *>malloc(2 * (n + 1) * sizeof(uint64_t))
    cdef uint64_t *other = keys + n + 1
    cdef uint64_t key
    cdef int32_t at
    if keys == NULL:
        raise MemoryError
    memset(counts, 0, sizeof(counts))
    for i in range(n):
        score = scores[i] + <float>0  # -0 is 0
        memcpy(&bits, &score, 4)
        bits = bits if bits >> 31 else ~bits & 0x7FFFFFFF  # ascending where scores descend
        keys[i] = <uint64_t>bits << 32 | <uint64_t>i
        for j in range(4):
            counts[j][bits >> 8 * j & 255] += 1
    for j in range(4):
        sums = 0
        for i in range(256):
            shift = counts[j][i]
            counts[j][i] = <uint32_t>sums
            sums += shift
        for i in range(n):
            key = keys[i]
            other[counts[j][key >> 32 + 8 * j & 255]] = key
            counts[j][key >> 32 + 8 * j & 255] += 1
        keys, other = other, keys
    i = 0
    while i < n:
        j = i + 1
        while j < n and keys[j] >> 32 == keys[i] >> 32:
            j += 1
        if j - i > 1:  # by row: tracks of which nothing is known have one vector, and may be many
            for k in range(i, j):
                at = <int32_t>keys[k]
                keys[k] = <uint64_t>rows[at] << 32 | <uint64_t>at
            qsort(keys + i, j - i, sizeof(uint64_t), _ascending)
        for k in range(i, j):
            order[k] = <int32_t>keys[k]
        i = j
    free(keys)  # four times changed over
    return 0


def best_first(const int64_t[::1] rows, const float[::1] scores, Py_ssize_t k):
    cdef Py_ssize_t n = scores.shape[0], i
    cdef int32_t *order
    if rows.shape[0] != n or n > 0x7FFFFFFF:
        raise ValueError(f"{n} scores of {rows.shape[0]} rows")
    found = np.empty(max(min(k, n), 0), np.int64)
    cdef int64_t[::1] out = found
    order = <int32_t *>malloc((n + 1) * sizeof(int32_t))
    if order == NULL:
        raise MemoryError
    if n:
        order_of(&scores[0], &rows[0], n, order)
    for i in range(out.shape[0]):
        out[i] = order[i]
    free(order)
    return found


def selected(
    const int64_t[::1] rows, const float[::1] logits, const float[::1] scores, const float[::1] keys,
    const float[::1] cosines, Py_ssize_t k,
):
    """The k best rows with their scores, none of which is above the one before it, logits and cosines."""
    cdef Py_ssize_t n = rows.shape[0], m = max(min(k, n), 0), i, at
    cdef float least
    cdef int32_t *order
    if not n == logits.shape[0] == scores.shape[0] == keys.shape[0] == cosines.shape[0] or n > 0x7FFFFFFF:
        raise ValueError(f"{n} rows, and numbers of others")
    numbers, floats = np.empty(m, np.int64), np.empty((3, m), np.float32)
    cdef int64_t[::1] to = numbers
    cdef float[:, ::1] out = floats
    order = <int32_t *>malloc((n + 1) * sizeof(int32_t))
    if order == NULL:
        raise MemoryError
    try:
        if n:
            order_of(&keys[0], &rows[0], n, order)
        for i in range(m):
            at = order[i]
            least = scores[at] if i == 0 or scores[at] < least else least
            to[i], out[0, i], out[1, i], out[2, i] = rows[at], least, logits[at], cosines[at]
    finally:
        free(order)
    return numbers, floats[0], floats[1], floats[2]


def falls(const float[:] scores):
    """Whether each is below the one before."""
    cdef Py_ssize_t i
    for i in range(1, scores.shape[0]):
        if not scores[i] < scores[i - 1]:
            return False
    return True


def without(const int64_t[:] rows, const float[:] scores, const int64_t[:] excluded, Py_ssize_t most):
    """The first rows and scores that are not excluded, `most` at most."""
    cdef Py_ssize_t i, n = 0
    cdef Places places
    if scores.shape[0] != rows.shape[0]:
        raise ValueError(f"{scores.shape[0]} scores of {rows.shape[0]} rows")
    kept, of_kept = np.empty(min(most, rows.shape[0]), np.int64), np.empty(min(most, rows.shape[0]), np.float32)
    cdef int64_t[::1] out = kept
    cdef float[::1] out_scores = of_kept
    make_places(&places, excluded.shape[0])
    for i in range(excluded.shape[0]):
        put(&places, <int32_t>excluded[i], 0)
    for i in range(rows.shape[0]):
        if n == out.shape[0]:
            break
        if place_of(&places, <int32_t>rows[i]) < 0:
            out[n], out_scores[n] = rows[i], scores[i]
            n += 1
    free_places(&places)
    return kept[:n], of_kept[:n]


cdef list allowed(tuple parts, const int64_t[:] excluded, const int64_t[:] removed, const uint8_t[:] mask):
    """Those of several lists of rows that are neither excluded nor removed and that the mask, if any, has."""
    cdef Py_ssize_t i, n, total = sum([len(part) for part in parts])
    cdef const int64_t[:] rows
    cdef int64_t[::1] out
    cdef Places places
    cdef int32_t at
    found = []
    make_places(&places, total)
    try:
        for part in parts:
            rows = part
            for i in range(rows.shape[0]):
                if not 0 <= rows[i] <= 0x7FFFFFFF:
                    raise IndexError(f"row {rows[i]}")
                put(&places, <int32_t>rows[i], 0)
        for rows in (excluded, removed):
            for i in range(rows.shape[0]):
                if place_of(&places, <int32_t>rows[i]) == 0:
                    put(&places, <int32_t>rows[i], 1)
        for part in parts:
            if not len(part):  # a source that this catalogue has no use for
                found.append(part)
                continue
            rows, n = part, 0
            kept = np.empty(rows.shape[0], np.int64)
            out = kept
            for i in range(rows.shape[0]):
                if place_of(&places, <int32_t>rows[i]) != 0:
                    continue
                if mask is not None:
                    if rows[i] >= mask.shape[0]:
                        raise IndexError(f"row {rows[i]} of {mask.shape[0]}")
                    if not mask[rows[i]]:
                        continue
                out[n] = rows[i]
                n += 1
            found.append(kept[:n])
    finally:
        free_places(&places)
    return found


cdef void products_of_four(
    const uint16_t *vectors, Py_ssize_t dim, const int64_t *rows, const float *vector, float *out
) noexcept nogil:
    """The inner products of four rows with a vector: widened block by block, so that the compiler does it in fours."""
    cdef float[4][WIDE] of
    cdef float a = 0, b = 0, c = 0, d = 0
    cdef Py_ssize_t start, j, k, m
    cdef const uint16_t *row
    for start from 0 <= start < dim by WIDE:
        m = min(dim - start, WIDE)
        for k in range(4):
            row = vectors + rows[k] * dim + start
            for j in range(m):
                of[k][j] = widened(row[j])
        for j in range(m):
            a += of[0][j] * vector[start + j]
            b += of[1][j] * vector[start + j]
            c += of[2][j] * vector[start + j]
            d += of[3][j] * vector[start + j]
    out[0], out[1], out[2], out[3] = a, b, c, d


cpdef united(
    const uint16_t[:, ::1] vectors,
    const float[::1] vector,
    tuple parts,
    const int64_t[:] nearest,
    const float[:] cosines,
    Py_ssize_t depth,
):
    """All rows of all parts and as many of the nearest as the depth holds, with their cosines, best first."""
    cdef Py_ssize_t i, j, n = 0, special, dim = vectors.shape[1], room = sum([len(part) for part in parts])
    cdef const int64_t[:] rows
    cdef const uint16_t *ahead
    cdef float sum_
    cdef Places places
    cdef int64_t *all_
    cdef float *scores
    cdef int32_t *order
    cdef int64_t[::1] out
    cdef float[::1] out_scores
    if vector.shape[0] != dim or cosines.shape[0] != nearest.shape[0] or vectors.shape[0] > 0x7FFFFFFF:
        raise ValueError("arrays that do not fit each other")
    make_places(&places, room)
    all_ = <int64_t *>malloc((room + nearest.shape[0] + 1) * (sizeof(int64_t) + sizeof(float) + sizeof(int32_t)))
    try:
        if all_ == NULL:
            raise MemoryError
        scores = <float *>(all_ + room + nearest.shape[0] + 1)
        order = <int32_t *>(scores + room + nearest.shape[0] + 1)
        for part in parts:
            rows = part
            for i in range(rows.shape[0]):
                if not 0 <= rows[i] < vectors.shape[0]:
                    raise IndexError(f"row {rows[i]} of {vectors.shape[0]}")
                if place_of(&places, <int32_t>rows[i]) < 0:
                    put(&places, <int32_t>rows[i], 0)
                    all_[n] = rows[i]
                    n += 1
                    ask_for(&vectors[rows[i], 0], dim * sizeof(uint16_t))
        special = n
        for i in range(nearest.shape[0]):
            if n >= depth:
                break
            if place_of(&places, <int32_t>nearest[i]) < 0:
                all_[n], scores[n] = nearest[i], cosines[i]
                n += 1
        i = 0
        while i + 4 <= special:  # four sums at a time, each in its order: one alone waits for every addition
            products_of_four(&vectors[0, 0], dim, &all_[i], &vector[0], &scores[i])
            i += 4
        while i < special:
            ahead, sum_ = &vectors[all_[i], 0], 0
            for j in range(dim):
                sum_ += widened(ahead[j]) * vector[j]
            scores[i] = sum_
            i += 1
        order_of(scores, all_, n, order)
        rows_out, scores_out = np.empty(n, np.int64), np.empty(n, np.float32)
        out, out_scores = rows_out, scores_out
        for i in range(n):
            out[i], out_scores[i] = all_[order[i]], scores[order[i]]
    finally:
        free_places(&places)
        free(all_)
    return rows_out, scores_out


def brought(
    CompiledMoment moment not None, tuple room, bint repeats, const int64_t[:] excluded, const int64_t[:] removed,
    const uint8_t[:] mask, const uint16_t[:, ::1] vectors, const float[::1] vector, const int64_t[:] nearest,
    const float[:] cosines, Py_ssize_t depth,
):
    """What the sources of a moment bring and may be returned, and with the nearest all together."""
    n_own, n_few, n_many, n_together = room
    kept = allowed(moment.candidates(n_own, n_few, n_many, n_together, repeats), excluded, removed, mask)
    return kept, united(vectors, vector, tuple(kept), nearest, cosines, depth)


cdef void copy_rows(const char *table, char *to, Py_ssize_t width, const int64_t[:] rows) noexcept nogil:
    """Copies rows of so many bytes each."""
    cdef Py_ssize_t m = rows.shape[0], i
    if width == 4:
        for i in range(m):
            (<uint32_t *>to)[i] = (<const uint32_t *>table)[rows[i]]
        return
    for i in range(m):
        if i + AHEAD < m:
            ask_for(table + rows[i + AHEAD] * width, width)
        memcpy(to + i * width, table + rows[i] * width, width)


def gathered(const int64_t[:] rows, tuple tables):
    """Of each table the rows, as `take` copies them, asked of the memory before they are copied."""
    cdef Py_buffer of[MOST_TABLES]
    cdef Py_buffer to[MOST_TABLES]
    cdef Py_ssize_t m = rows.shape[0], n = len(tables), i, k, opened = 0, least = 0x7FFFFFFF
    found = [np.empty((m, *table.shape[1:]), table.dtype) for table in tables]
    if n > MOST_TABLES:
        raise ValueError(f"{n} tables")
    try:
        for k in range(n):
            PyObject_GetBuffer(tables[k], &of[k], PyBUF_C_CONTIGUOUS)
            opened += 1
            PyObject_GetBuffer(found[k], &to[k], PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
            opened += 1
        for k in range(n):
            if of[k].ndim < 1:
                raise ValueError("a table without rows")
            least = min(least, of[k].shape[0])
        for i in range(m):
            if not 0 <= rows[i] < least:
                raise IndexError(f"row {rows[i]} of a table of {least}")
        for k in range(n):
            copy_rows(<const char *>of[k].buf, <char *>to[k].buf, of[k].strides[0], rows)
    finally:
        for k in range(opened):
            PyBuffer_Release(&to[k >> 1] if k & 1 else &of[k >> 1])
    return found
