# The prediction head over the candidates of one user; see lhydra/bundle/folded_head.py.
# Eight candidates at a time, so that all that lies between the layers stays in the first cache. No answer depends on
# what else is asked for: each is summed up by itself, in one order.

cdef extern from *:
    """
    #include <stddef.h>
    #if defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
    /* Two versions, with and without fused sums of eight products; the one for the processor is chosen at loading. */
    #define LHYDRA_FAST __attribute__((target_clones("fma", "default"), optimize("fp-contract=fast")))
    #elif defined(__GNUC__) && !defined(__clang__)
    #define LHYDRA_FAST __attribute__((optimize("fp-contract=fast")))
    #else
    #define LHYDRA_FAST
    #endif
    typedef float lhydra_lane __attribute__((vector_size(32), aligned(4)));
    #define LHYDRA_SUM(r) s##r += x[r * stride + i] * w
    #define LHYDRA_PUT(r) *(lhydra_lane *)(y + r * outputs + o) = s##r

    /* y (8, outputs) = start + x (8, inputs) @ weights (inputs, outputs); outputs is a multiple of 8. */
    LHYDRA_FAST static void lhydra_layer(const float *x, ptrdiff_t stride, ptrdiff_t inputs, const float *weights,
                                         ptrdiff_t outputs, const float *start, float *y) {
        for (ptrdiff_t o = 0; o < outputs; o += 8) {
            lhydra_lane s0 = *(const lhydra_lane *)(start + o), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0;
            lhydra_lane s7 = s0;
            for (ptrdiff_t i = 0; i < inputs; i++) {
                lhydra_lane w = *(const lhydra_lane *)(weights + i * outputs + o);
                LHYDRA_SUM(0); LHYDRA_SUM(1); LHYDRA_SUM(2); LHYDRA_SUM(3);
                LHYDRA_SUM(4); LHYDRA_SUM(5); LHYDRA_SUM(6); LHYDRA_SUM(7);
            }
            LHYDRA_PUT(0); LHYDRA_PUT(1); LHYDRA_PUT(2); LHYDRA_PUT(3);
            LHYDRA_PUT(4); LHYDRA_PUT(5); LHYDRA_PUT(6); LHYDRA_PUT(7);
        }
    }
    """
    void lhydra_layer(
        const float *, Py_ssize_t, Py_ssize_t, const float *, Py_ssize_t, const float *, float *
    ) noexcept nogil

cdef enum:
    BLOCK = 8  # candidates at once
    LANE = 8  # outputs of a layer are filled up to a multiple of it
    CROSS = 8  # numbers of a cross
    PAIR = 4  # inputs of the part for moments before the strengths: logit, cosine, popularity, rarity


cdef bint _is_partition(const int64_t[::1] starts, Py_ssize_t n) except -1:
    """Whether lists that start there, back to back, are n entries."""
    cdef Py_ssize_t i
    for i in range(1, starts.shape[0]):
        if starts[i] < starts[i - 1]:
            return False
    return starts.shape[0] > 0 and starts[0] == 0 and starts[starts.shape[0] - 1] == n


cdef struct HeadWork:
    # What one request works in, back to back.
    float *layer  # (inputs, outputs) of this user
    float *first  # (outputs,) what it starts with
    float *x  # (BLOCK, inputs)
    float *y  # (BLOCK, outputs)
    float *z  # (BLOCK, outputs of the second layer)
    float *about  # of moments: (outputs,) what their layer starts with
    float *pairs  # (BLOCK, inputs)
    float *u  # (BLOCK, outputs)
    float *v  # (BLOCK, outputs of the second layer)


cdef class CompiledHead:
    """The weights of a head and the tables of a catalog; `score` answers for one user."""

    cdef const float[:, ::1] of_user, of_user_ids, of_track, of_product, of_crosses, cross_user, second, gate, layer
    cdef const float[:, ::1] moment, moment_own, moment_context, moment_second
    cdef const float[::1] bias, of_cosine, gate_bias, cross_track, second_bias, out, popular, calibration
    cdef const float[::1] moment_bias, moment_offsets, moment_second_bias, moment_out, moment_calibration
    cdef const int64_t[::1] id_starts, user_columns, user_starts, track_columns, track_pairs, track_starts
    cdef const uint16_t[:, ::1] vectors, dense
    cdef const int32_t[:, ::1] ids
    cdef const float[::1] popularity
    cdef Py_ssize_t preference, hidden, width, known_at, strengths
    cdef float moment_out_bias
    cdef bint of_moments

    def __init__(
        self, dict arrays, Py_ssize_t known_at, const uint16_t[:, ::1] vectors, const uint16_t[:, ::1] dense,
        const int32_t[:, ::1] ids, const float[::1] popularity,
    ):
        cdef Py_ssize_t dim = vectors.shape[1], h
        self.vectors, self.dense, self.ids, self.popularity = vectors, dense, ids, popularity
        self.of_track, self.of_product = arrays["of_track"], arrays["of_product"]
        self.width, self.hidden, self.known_at = dense.shape[1], self.of_track.shape[1], known_at
        h = self.hidden
        self.of_user, self.bias, self.of_cosine = arrays["of_user"], arrays["bias"], arrays["of_cosine"]
        self.of_user_ids, self.id_starts = arrays["of_user_ids"], arrays["user_id_starts"]
        self.of_crosses, self.cross_user = arrays["of_crosses"], arrays["cross_user"]
        self.user_columns, self.user_starts = arrays["cross_user_columns"], arrays["cross_user_starts"]
        self.cross_track, self.track_starts = arrays["cross_track"], arrays["cross_track_starts"]
        self.track_columns, self.track_pairs = arrays["cross_track_columns"], arrays["cross_track_pairs"]
        self.layer, self.second, self.second_bias = arrays["layer"], arrays["second"], arrays["second_bias"]
        self.gate, self.gate_bias, self.preference = arrays["gate"], arrays["gate_bias"], arrays["preference"][0]
        self.out, self.popular, self.calibration = arrays["out"], arrays["popularity"], arrays["calibration"]
        if not (
            self.of_track.shape[0] == self.of_product.shape[0] == dim
            and self.of_product.shape[1] == self.bias.shape[0] == self.of_user.shape[1] == self.of_cosine.shape[0] == h
            and self.of_user_ids.shape[1] == self.of_crosses.shape[1] == self.second.shape[0] == h
            and self.of_user.shape[0] == dim + self.gate.shape[0]
            and self.gate.shape[1] == self.gate_bias.shape[0] == 4
            and self.popular.shape[0] == self.calibration.shape[0] == 2
            and self.layer.shape[0] == dim + self.of_crosses.shape[0] + 2 * self.width + 4 and self.layer.shape[1] >= h + 2
            and self.layer.shape[1] % LANE == self.second.shape[1] % LANE == 0
            and self.out.shape[0] == self.second.shape[1] == self.second_bias.shape[0]
            and 0 <= self.preference <= self.gate.shape[0] - self.width
            and vectors.shape[0] == dense.shape[0] == ids.shape[0] == popularity.shape[0]
            and _is_partition(self.id_starts, self.of_user_ids.shape[0])
            and _is_partition(self.user_starts, self.cross_user.shape[0]) and self.cross_user.shape[1] == CROSS
            and _is_partition(self.track_starts, self.cross_track.shape[0])
            and self.user_columns.shape[0] == self.user_starts.shape[0] - 1
            and self.of_crosses.shape[0] == CROSS * self.user_columns.shape[0]
            and self.track_columns.shape[0] == self.track_pairs.shape[0] == self.track_starts.shape[0] - 1
            and sum(self.track_pairs) == self.user_columns.shape[0]
            and all([0 <= column < self.id_starts.shape[0] - 1 for column in self.user_columns])
            and all([0 <= column < ids.shape[1] for column in self.track_columns])
            and all([pairs > 0 for pairs in self.track_pairs])
        ):
            raise ValueError("weights that do not fit each other or the catalog")
        self.of_moments = "moment" in arrays
        if self.of_moments:
            self._take_moments(arrays)

    def _take_moments(self, dict arrays):
        self.moment, self.moment_own = arrays["moment"], arrays["moment_own"]
        self.moment_bias, self.moment_context = arrays["moment_bias"], arrays["moment_context"]
        self.moment_second = arrays["moment_second"]
        self.moment_second_bias, self.moment_out = arrays["moment_second_bias"], arrays["moment_out"]
        self.moment_offsets, self.moment_calibration = arrays["moment_offsets"], arrays["moment_calibration"]
        self.moment_out_bias = arrays["moment_out_bias"][0]
        self.strengths = (self.moment.shape[0] - PAIR) // 2
        if not (
            self.moment.shape[0] == PAIR + 2 * self.strengths and self.strengths >= 0
            and self.moment_own.shape[0] + self.strengths == self.moment_offsets.shape[0] + 1
            and self.moment_own.shape[0] > 0
            and self.moment_own.shape[1] == self.moment_bias.shape[0] == self.moment.shape[1]
            and self.moment_context.shape[1] == self.moment.shape[1]
            and 0 <= self.known_at < self.moment_context.shape[0]
            and self.moment.shape[1] % LANE == self.moment_second.shape[1] % LANE == 0
            and self.moment_second.shape[0] < self.moment.shape[1]
            and self.moment_second.shape[1] == self.moment_second_bias.shape[0] == self.moment_out.shape[0]
            and self.moment_calibration.shape[0] == 2
        ):
            raise ValueError("weights for moments that do not fit each other")

    def score(
        self, const float[::1] user, const float[::1] user_dense, const int64_t[::1] user_ids,
        const int64_t[:] rows, const float[:, ::1] together, const float[:, ::1] signals, const float[::1] context,
    ):
        """(n,) logits and (n,) probabilities of some tracks."""
        cdef Py_ssize_t n = rows.shape[0], i
        cdef HeadWork work
        if not (
            user.shape[0] == self.vectors.shape[1] and user_dense.shape[0] == self.gate.shape[0]
            and user_ids.shape[0] == self.id_starts.shape[0] - 1
            and together.shape[0] == n and together.shape[1] == 2
        ):
            raise ValueError("a user of other columns than the head's")
        if self.of_moments and not (
            signals is not None and signals.shape[0] == n and signals.shape[1] == self.moment_offsets.shape[0] + 1
            and context is not None and context.shape[0] == self.moment_context.shape[0]
        ):
            raise ValueError("a moment of other columns than the head's")
        for i in range(user_ids.shape[0]):
            if not 0 <= user_ids[i] < self.id_starts[i + 1] - self.id_starts[i]:
                raise IndexError(f"id {user_ids[i]} of column {i} of a user")
        for i in range(self.user_columns.shape[0]):
            if user_ids[self.user_columns[i]] >= self.user_starts[i + 1] - self.user_starts[i]:
                raise IndexError(f"id {user_ids[self.user_columns[i]]} of a crossed column of a user")
        for i in range(n):
            if not 0 <= rows[i] < self.vectors.shape[0]:
                raise IndexError(f"row {rows[i]} of {self.vectors.shape[0]}")
        logits, probabilities = np.empty(n, np.float32), np.empty(n, np.float32)
        cdef float[::1] to_logits = logits, to_probabilities = probabilities
        cdef bint known
        self._make_room(&work)
        try:
            with nogil:
                self._of_user(&work, user, user_dense, user_ids)
                known = self._of_tracks(
                    &work, user_dense, rows, together, signals, context, to_logits, to_probabilities
                )
            if not known:
                raise IndexError("an id of a track beyond its column")
        finally:
            free(work.layer)
        return logits, probabilities

    cdef Py_ssize_t _size(self, Py_ssize_t column) noexcept nogil:
        """Values of a crossed column of tracks."""
        return (self.track_starts[column + 1] - self.track_starts[column]) // (CROSS * self.track_pairs[column])

    cdef int _make_room(self, HeadWork *work) except -1:
        cdef Py_ssize_t inputs = self.layer.shape[0], outputs = self.layer.shape[1]
        cdef Py_ssize_t pairs = self.moment.shape[0] if self.of_moments else 0
        cdef Py_ssize_t wide = self.moment.shape[1] if self.of_moments else 0
        cdef Py_ssize_t narrow = self.moment_second.shape[1] if self.of_moments else 0
        work.layer = <float *>malloc(
            sizeof(float) * (
                (inputs + 1) * outputs + BLOCK * (inputs + outputs + self.second.shape[1]) + wide + BLOCK * (pairs + wide + narrow)
            )
        )
        if work.layer == NULL:
            raise MemoryError
        work.first = work.layer + inputs * outputs
        work.x = work.first + outputs
        work.y = work.x + BLOCK * inputs
        work.z = work.y + BLOCK * outputs
        work.about = work.z + BLOCK * self.second.shape[1]
        work.pairs = work.about + wide
        work.u = work.pairs + BLOCK * pairs
        work.v = work.u + BLOCK * wide
        memset(work.x, 0, BLOCK * inputs * sizeof(float))  # rows beyond the last track are computed too
        memset(work.pairs, 0, BLOCK * pairs * sizeof(float))
        return 0

    cdef void _of_user(
        self, HeadWork *work, const float[::1] user, const float[::1] dense, const int64_t[::1] ids
    ) noexcept nogil:
        """Makes the first layer of this user, what it starts with, and what crosses count."""
        cdef Py_ssize_t dim = user.shape[0], h = self.hidden, outputs = self.layer.shape[1], i, j, k, at
        cdef float gates[4]
        cdef float one
        cdef float *row
        cdef const float *own
        memcpy(work.layer, &self.layer[0, 0], self.layer.shape[0] * outputs * sizeof(float))
        memset(work.first, 0, outputs * sizeof(float))
        memcpy(work.first, &self.bias[0], h * sizeof(float))
        memcpy(gates, &self.gate_bias[0], sizeof(gates))
        for i in range(dim + dense.shape[0]):
            one = user[i] if i < dim else dense[i - dim]
            for j in range(h):
                work.first[j] += one * self.of_user[i, j]
        for i in range(ids.shape[0]):
            at = self.id_starts[i] + ids[i]
            for j in range(h):
                work.first[j] += self.of_user_ids[at, j]
        for i in range(dense.shape[0]):
            for j in range(4):
                gates[j] += dense[i] * self.gate[i, j]
        for i in range(dim):
            one, row = user[i], work.layer + i * outputs
            for j in range(h):
                row[j] = self.of_track[i, j] + one * (self.of_product[i, j] + self.of_cosine[j])
            row[h], row[h + 1] = one, gates[0] * one
        for i in range(self.user_columns.shape[0]):
            own = &self.cross_user[self.user_starts[i] + ids[self.user_columns[i]], 0]
            for k in range(CROSS):
                row = work.layer + (dim + CROSS * i + k) * outputs
                for j in range(h):
                    row[j] = own[k] * self.of_crosses[CROSS * i + k, j]
        row = work.layer + (self.layer.shape[0] - 4) * outputs + h + 1
        for i in range(3):
            row[i * outputs] = gates[i + 1]

    cdef bint _of_tracks(
        self, HeadWork *work, const float[::1] user_dense, const int64_t[:] rows, const float[:, ::1] together,
        const float[:, ::1] signals, const float[::1] context, float[::1] logits, float[::1] probabilities,
    ) noexcept nogil:
        """Scores all tracks; False where an id of one is not in its column."""
        cdef Py_ssize_t n = rows.shape[0], h = self.hidden, inputs = self.layer.shape[0], outputs = self.layer.shape[1]
        cdef Py_ssize_t seconds = self.second.shape[1], dim = self.vectors.shape[1], b = 0, m, r, i
        cdef bint ranked = self.of_moments and context[self.known_at] > 0
        cdef float slope, shift
        slope, shift = self.calibration[0], self.calibration[1]
        if ranked:
            slope, shift = self.moment_calibration[0], self.moment_calibration[1]
            memcpy(work.about, &self.moment_bias[0], self.moment_bias.shape[0] * sizeof(float))
            for i in range(context.shape[0]):
                for r in range(self.moment_context.shape[1]):
                    work.about[r] += context[i] * self.moment_context[i, r]
        for i in range(n):  # all at once: a row lies in four tables, and finding the page takes longest
            ask_for(&self.vectors[rows[i], 0], dim * sizeof(uint16_t))
            ask_for(&self.dense[rows[i], 0], self.width * sizeof(uint16_t))
            ask_for(&self.ids[rows[i], 0], self.ids.shape[1] * sizeof(int32_t))
            ask_for(&self.popularity[rows[i]], sizeof(float))
        while b < n:
            m = min(BLOCK, n - b)
            for r in range(m):
                if not self._take(work.x + r * inputs, rows[b + r], user_dense, &together[b + r, 0]):
                    return False
            lhydra_layer(work.x, inputs, inputs, work.layer, outputs, work.first, work.y)
            for r in range(m):
                _rectify(work.y + r * outputs, h)
            lhydra_layer(work.y, outputs, h, &self.second[0, 0], seconds, &self.second_bias[0], work.z)
            for r in range(m):
                _rectify(work.z + r * seconds, seconds)
                logits[b + r] = work.y[r * outputs + h + 1] + _product(work.z + r * seconds, self.out)
            if ranked:
                self._rank(work, m, signals[b : b + m], logits[b : b + m])
            for r in range(b, b + m):
                probabilities[r] = <float>(1 / (1 + exp(-(slope * logits[r] + shift))))
            b += BLOCK
        return True

    cdef inline bint _take(self, float *x, int64_t row, const float[::1] user_dense, const float *together) noexcept nogil:
        """Fills the inputs of the first layer for one track; False where an id is not in its column."""
        cdef Py_ssize_t dim = self.vectors.shape[1], width = self.width, i, j, numbers
        cdef const uint16_t *halves = &self.vectors[row, 0]
        cdef float popularity = self.popularity[row], rarity = 1 - popularity / self.popular[0]
        for j in range(dim):
            x[j] = widened(halves[j])
        x, halves = x + dim, &self.dense[row, 0]
        for i in range(self.track_columns.shape[0]):
            numbers, j = CROSS * self.track_pairs[i], self.ids[row, self.track_columns[i]]
            if not 0 <= j < self._size(i):
                return False
            memcpy(x, &self.cross_track[self.track_starts[i] + j * numbers], numbers * sizeof(float))
            x += numbers
        for j in range(width):
            x[j] = widened(halves[j])
            x[width + j] = fabsf(user_dense[self.preference + j] - x[j])
        x += 2 * width
        x[0], x[1], x[2], x[3] = popularity, together[0], together[1], rarity if rarity > 0 else 0
        return True

    cdef void _rank(self, HeadWork *work, Py_ssize_t m, const float[:, ::1] signals, float[::1] logits) noexcept nogil:
        """Puts in place of the logits of a block those that the moment gives."""
        cdef Py_ssize_t inputs = self.moment.shape[0], outputs = self.moment.shape[1], h = self.moment_second.shape[0]
        cdef Py_ssize_t seconds = self.moment_second.shape[1], n = self.strengths, own = self.moment_own.shape[0], r, i, j
        cdef float *one
        cdef const float *x
        cdef float falls
        for r in range(m):
            one, x = work.pairs + r * inputs, work.x + (r + 1) * self.layer.shape[0] - 4
            one[0], one[1], one[2], one[3] = logits[r], work.y[r * self.layer.shape[1] + self.hidden], x[0], x[3]
            for j in range(n):
                one[PAIR + j] = signals[r, own + j]
                one[PAIR + n + j] = logf(signals[r, own + j] + self.moment_offsets[own - 1 + j])
        lhydra_layer(work.pairs, inputs, inputs, &self.moment[0, 0], outputs, work.about, work.u)
        for r in range(m):
            one = work.u + r * outputs
            if signals[r, 0] != 0:  # heard: else nothing is known of how it was played
                for i in range(own):
                    falls = signals[r, 0] if i == 0 else signals[r, 0] * logf(signals[r, i] + self.moment_offsets[i - 1])
                    for j in range(h + 1):
                        one[j] += falls * self.moment_own[i, j]
            _rectify(one, h)
        lhydra_layer(
            work.u, outputs, h, &self.moment_second[0, 0], seconds, &self.moment_second_bias[0], work.v
        )
        for r in range(m):
            _rectify(work.v + r * seconds, seconds)
            logits[r] = (
                work.u[r * outputs + h] + self.moment_out_bias + _product(work.v + r * seconds, self.moment_out)
            )


cdef inline void _rectify(float *values, Py_ssize_t n) noexcept nogil:
    """ReLU; a NaN stays one."""
    cdef Py_ssize_t j
    for j in range(n):
        values[j] = 0 if values[j] < 0 else values[j]


cdef inline float _product(const float *values, const float[::1] weights) noexcept nogil:
    cdef Py_ssize_t j
    cdef float sum_ = 0
    for j in range(weights.shape[0]):
        sum_ += values[j] * weights[j]
    return sum_
