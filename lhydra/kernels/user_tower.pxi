# The user tower over the histories of some users; see lhydra/bundle/folded_head.py.

from libc.math cimport erff, sqrtf

cdef extern from *:
    """
    /* y (outputs,) += x (inputs,) @ weights (inputs, outputs). */
    LHYDRA_FAST static void lhydra_add(const float *x, ptrdiff_t inputs, const float *weights, ptrdiff_t outputs,
                                       float *restrict y) {
        for (ptrdiff_t i = 0; i < inputs; i++)
            for (ptrdiff_t o = 0; o < outputs; o++) y[o] += x[i] * weights[i * outputs + o];
    }
    """
    void lhydra_add(const float *, Py_ssize_t, const float *, Py_ssize_t, float *) noexcept nogil

cdef enum:
    LONGEST_STEP = 4  # the logarithm of what a play may weigh, either way


cdef class CompiledTower:
    """Embeds users from the int8 history vectors of a catalog."""

    cdef const float[:, ::1] of_dense, of_ids, second
    cdef const float[::1] weigh, bias, scale, shift, second_bias
    cdef const int64_t[::1] starts
    cdef const int8_t[:, ::1] table

    def __init__(self, dict arrays, const int8_t[:, ::1] table):
        self.weigh, self.of_dense, self.of_ids = arrays["tower_weigh"], arrays["tower_dense"], arrays["tower_ids"]
        self.bias, self.scale, self.shift = arrays["tower_bias"], arrays["tower_scale"], arrays["tower_shift"]
        self.second, self.second_bias = arrays["tower_second"], arrays["tower_second_bias"]
        self.starts, self.table = arrays["user_id_starts"], table
        if not (
            self.weigh.shape[0] == 3 and table.shape[1] == self.second.shape[1] + 1
            and self.second_bias.shape[0] == self.second.shape[1] and self.second.shape[0] > 0
            and self.bias.shape[0] == self.scale.shape[0] == self.shift.shape[0] == self.second.shape[0]
            and self.of_dense.shape[1] == self.of_ids.shape[1] == self.second.shape[0]
            and _is_partition(self.starts, self.of_ids.shape[0])
        ):
            raise ValueError("weights of a user tower that do not fit each other or the history vectors")

    def embed(
        self, const float[:, ::1] dense, const int64_t[:, ::1] ids, const int64_t[::1] offsets, const int64_t[::1] rows,
        const float[:, ::1] entry,
    ):
        """(n, dim) vectors of unit norm of n users, whose histories lie back to back."""
        cdef Py_ssize_t n = dense.shape[0], hidden = self.second.shape[0], dim = self.second.shape[1], i, j
        cdef bint fine = True
        cdef float *work
        if not (
            ids.shape[0] == n and offsets.shape[0] == n + 1 and _is_partition(offsets, rows.shape[0])
            and entry.shape[0] == rows.shape[0] and entry.shape[1] == self.weigh.shape[0]
            and dense.shape[1] == self.of_dense.shape[0] and ids.shape[1] == self.starts.shape[0] - 1
        ):
            raise ValueError("users of other columns than the tower's")
        for i in range(n):
            for j in range(ids.shape[1]):
                if not 0 <= ids[i, j] < self.starts[j + 1] - self.starts[j]:
                    raise IndexError(f"id {ids[i, j]} of column {j} of a user")
        for i in range(rows.shape[0]):
            if not 0 <= rows[i] < self.table.shape[0]:
                raise IndexError(f"row {rows[i]} of {self.table.shape[0]}")
        vectors = np.empty((n, dim), np.float32)
        cdef float[:, ::1] found = vectors
        work = <float *>malloc((hidden + dim) * sizeof(float))
        if work == NULL:
            raise MemoryError
        with nogil:
            for i in range(n):
                self._pool(rows[offsets[i] : offsets[i + 1]], entry[offsets[i] : offsets[i + 1]], &found[i, 0])
                fine = self._add(dense[i], ids[i], work, &found[i, 0]) and fine
        free(work)
        if not fine:
            raise FloatingPointError("a user vector that is not finite")
        return vectors

    cdef void _pool(self, const int64_t[::1] rows, const float[:, ::1] entry, float *to) noexcept nogil:
        """The mean of the history vectors, each by its weight, over the norm of the weights."""
        cdef Py_ssize_t h = rows.shape[0], dim = self.second.shape[1], i, j
        cdef const int8_t *row
        cdef uint32_t bits
        cdef float weight, size = 0, of_row
        memset(to, 0, dim * sizeof(float))
        for i in range(min(h, AHEAD)):
            ask_for(&self.table[rows[i], 0], dim + 1)
        for i in range(h):
            if i + AHEAD < h:
                ask_for(&self.table[rows[i + AHEAD], 0], dim + 1)
            row, weight = &self.table[rows[i], 0], 0
            for j in range(3):
                weight += entry[i, j] * self.weigh[j]
            weight = <float>exp(fmin(fmax(weight, -LONGEST_STEP), LONGEST_STEP)) if weight == weight else weight
            size += weight * weight
            bits = <uint32_t><uint8_t>row[dim] << 20  # of 2^-112 times the scale, as in `widen`
            memcpy(&of_row, &bits, 4)
            of_row *= 5.192296858534828e33
            weight *= of_row
            for j in range(dim):
                to[j] += weight * row[j]
        size = sqrtf(size)
        for j in range(dim):
            to[j] /= size if not size < 1e-3 else <float>1e-3

    cdef bint _add(self, const float[::1] dense, const int64_t[::1] ids, float *work, float *to) noexcept nogil:
        """Adds what the profile says, and brings the sum to unit norm; False where it is not finite."""
        cdef Py_ssize_t hidden = self.second.shape[0], dim = self.second.shape[1], i, j, at
        cdef float one, mean = 0, variance = 0, norm = 0
        cdef float *added = work + hidden
        memcpy(work, &self.bias[0], hidden * sizeof(float))
        lhydra_add(&dense[0], dense.shape[0], &self.of_dense[0, 0], hidden, work)
        for i in range(ids.shape[0]):
            at = self.starts[i] + ids[i]
            for j in range(hidden):
                work[j] += self.of_ids[at, j]
        for j in range(hidden):
            mean += work[j]
        mean /= hidden
        for j in range(hidden):
            work[j] -= mean
            variance += work[j] * work[j]
        variance = 1 / sqrtf(variance / hidden + <float>1e-5)
        for j in range(hidden):
            one = work[j] * variance * self.scale[j] + self.shift[j]
            work[j] = one * <float>0.5 * (1 + erff(one * <float>0.7071067811865476))  # GELU
        memcpy(added, &self.second_bias[0], dim * sizeof(float))
        lhydra_add(work, hidden, &self.second[0, 0], dim, added)
        for j in range(dim):
            to[j] += added[j]
            norm += to[j] * to[j]
        if not norm - norm == 0:
            return False
        norm = sqrtf(norm)
        for j in range(dim):
            to[j] /= norm if norm > <float>1e-12 else <float>1e-12
        return True
