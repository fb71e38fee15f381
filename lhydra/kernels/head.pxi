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
    AHEAD_OF_HEAD = 16  # candidates, from the block in hand on, whose rows the memory is told for


cdef enum Scored:
    ALL_SCORED
    UNKNOWN_ID
    NOT_FINITE


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
    float *signals  # (BLOCK, signals)
    float[2 * BLOCK] together


cdef struct Told:
    # What is told of the candidates of a request: in arrays, or as what it is looked up in, block by block.
    const float *together  # (n, 2)
    const float *signals  # (n, signals)
    const float *context
    Listened listened
    int32_t *items  # (n,) rows of the co-listening table
    int32_t *numbers  # (n,) of the moment


cdef class CompiledHead(HeadWeights):
    """`score` takes co-listening, signals and context as arrays, as training compares them; `score_for` looks them up."""

    def score(
        self, const float[::1] user, const float[::1] user_dense, const int64_t[::1] user_ids,
        const int64_t[:] rows, const float[:, ::1] together, const float[:, ::1] signals, const float[::1] context,
    ):
        """(n,) logits and (n,) probabilities of some tracks."""
        cdef Py_ssize_t n = rows.shape[0]
        cdef Told told
        if together.shape[0] != n or together.shape[1] != 2:
            raise ValueError("co-listening scores of other tracks")
        if self.of_moments and not (
            signals is not None and signals.shape[0] == n and signals.shape[1] == self.moment_offsets.shape[0] + 1
            and context is not None and context.shape[0] == self.moment_context.shape[0]
        ):
            raise ValueError("a moment of other columns than the head's")
        memset(&told, 0, sizeof(told))
        told.together = &together[0, 0]
        if self.of_moments:
            told.signals, told.context = &signals[0, 0], &context[0]
        return self._scored(user, user_dense, user_ids, rows, &told, None, None)

    def score_for(
        self, const float[::1] user, const float[::1] user_dense, const int64_t[::1] user_ids, const int64_t[:] rows,
        CoListeningTable table not None, const int64_t[:] played, const float[:, ::1] entry, CompiledMoment moment,
    ):
        """The same, of the rows and entries of what the user has played and the moment, if the head knows any."""
        cdef Py_ssize_t n = rows.shape[0], h = played.shape[0]
        cdef float[N_CONTEXT] context
        cdef Told told
        memset(&told, 0, sizeof(told))
        memset(context, 0, sizeof(context))
        if self.of_moments and not (
            moment is not None and moment.laws.n_signals == self.moment_offsets.shape[0] + 1
            and self.moment_context.shape[0] == N_CONTEXT
        ):
            raise ValueError("a moment of other columns than the head's")
        try:
            told.items = <int32_t *>malloc((2 * n + h + 1) * sizeof(int32_t))
            if told.items == NULL:
                raise MemoryError
            told.numbers = told.items + n
            table.items_of(played, told.items + 2 * n)
            make_listened(&told.listened, told.items + 2 * n, h, entry, table.scale, table.fall)
            table.items_of(rows, told.items)
            if self.of_moments:
                moment.find(rows, told.numbers)
                moment.tell_context(context)
                told.context = context
            return self._scored(user, user_dense, user_ids, rows, &told, table, moment)
        finally:
            free_listened(&told.listened)
            free(told.items)

    cdef tuple _scored(
        self, const float[::1] user, const float[::1] user_dense, const int64_t[::1] user_ids, const int64_t[:] rows,
        const Told *told, CoListeningTable table, CompiledMoment moment,
    ):
        cdef Py_ssize_t n = rows.shape[0], i
        cdef HeadWork work
        cdef Scored scored
        if not (
            user.shape[0] == self.vectors.shape[1] and user_dense.shape[0] == self.gate.shape[0]
            and user_ids.shape[0] == self.id_starts.shape[0] - 1
        ):
            raise ValueError("a user of other columns than the head's")
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
        self._make_room(&work)
        try:
            with nogil:
                self._of_user(&work, user, user_dense, user_ids)
                scored = self._of_tracks(
                    &work, user_dense, rows, told, table, moment, to_logits, to_probabilities
                )
        finally:
            free(work.layer)
        if scored == UNKNOWN_ID:
            raise IndexError("an id of a track beyond its column")
        if scored == NOT_FINITE:
            raise FloatingPointError("a score that is not finite")
        return logits, probabilities

    cdef int _make_room(self, HeadWork *work) except -1:
        cdef Py_ssize_t inputs = self.layer.shape[0], outputs = self.layer.shape[1]
        cdef Py_ssize_t pairs = self.moment.shape[0] if self.of_moments else 0
        cdef Py_ssize_t wide = self.moment.shape[1] if self.of_moments else 0
        cdef Py_ssize_t narrow = self.moment_second.shape[1] if self.of_moments else 0
        cdef Py_ssize_t signals = self.moment_offsets.shape[0] + 1 if self.of_moments else 0
        work.layer = <float *>malloc(
            sizeof(float) * (
                (inputs + 1) * outputs + BLOCK * (inputs + outputs + self.second.shape[1])
                + wide + BLOCK * (pairs + wide + narrow + signals)
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
        work.signals = work.v + BLOCK * narrow
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
        i = dim + CROSS * self.user_columns.shape[0]  # what the inputs before count is filled in below
        memset(work.layer, 0, i * outputs * sizeof(float))
        memcpy(work.layer + i * outputs, &self.layer[i, 0], (self.layer.shape[0] - i) * outputs * sizeof(float))
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

    cdef Scored _of_tracks(
        self, HeadWork *work, const float[::1] user_dense, const int64_t[:] rows, const Told *told,
        CoListeningTable table, CompiledMoment moment, float[::1] logits, float[::1] probabilities,
    ) noexcept nogil:
        """Scores all tracks, and says whether all could be."""
        cdef Py_ssize_t n = rows.shape[0], h = self.hidden, inputs = self.layer.shape[0], outputs = self.layer.shape[1]
        cdef Py_ssize_t seconds = self.second.shape[1], n_signals = self.moment_offsets.shape[0] + 1, b = 0, m, r, i
        cdef Py_ssize_t dim = self.vectors.shape[1], asked_for = 0, crossed = 0
        cdef int64_t row
        cdef bint ranked = self.of_moments and told.context[self.known_at] > 0
        cdef const float *together
        cdef const float *signals
        cdef float slope, shift
        slope, shift = self.calibration[0], self.calibration[1]
        if ranked:
            slope, shift = self.moment_calibration[0], self.moment_calibration[1]
            memcpy(work.about, &self.moment_bias[0], self.moment_bias.shape[0] * sizeof(float))
            for i in range(self.moment_context.shape[0]):
                for r in range(self.moment_context.shape[1]):
                    work.about[r] += told.context[i] * self.moment_context[i, r]
        while b < n:
            m = min(BLOCK, n - b)
            while asked_for < min(n, b + AHEAD_OF_HEAD):  # finding the pages takes longest
                row = rows[asked_for]
                ask_for(&self.vectors[row, 0], dim * sizeof(uint16_t))
                ask_for(&self.dense[row, 0], self.width * sizeof(uint16_t))
                ask_for(&self.ids[row, 0], self.ids.shape[1] * sizeof(int32_t))
                ask_for(&self.popularity[row], sizeof(float))
                if table is not None:
                    row = told.items[asked_for]
                    ask_for(&table.neighbours[row, 0], table.neighbours.shape[1] * sizeof(int32_t))
                    ask_for(&table.weights[row, 0], table.neighbours.shape[1] * sizeof(uint16_t))
                asked_for += 1
            while crossed < asked_for:  # after the ids of all: one asked for and read at once would be waited for
                self._ask_for_crosses(rows[crossed])
                crossed += 1
            together = &work.together[0] if table is not None else told.together + 2 * b
            signals = work.signals if moment is not None else told.signals + n_signals * b
            if ranked and moment is not None:
                memset(work.signals, 0, m * n_signals * sizeof(float))
            for r in range(m):
                if table is not None:
                    table.score(&told.listened, told.items[b + r], work.together + 2 * r)
                if ranked and moment is not None:
                    moment.tell(told.numbers[b + r], work.signals + r * n_signals)
                if not self._take(work.x + r * inputs, rows[b + r], user_dense, together + 2 * r):
                    return UNKNOWN_ID
            lhydra_layer(work.x, inputs, inputs, work.layer, outputs, work.first, work.y)
            for r in range(m):
                _rectify(work.y + r * outputs, h)
            lhydra_layer(work.y, outputs, h, &self.second[0, 0], seconds, &self.second_bias[0], work.z)
            for r in range(m):
                _rectify(work.z + r * seconds, seconds)
                logits[b + r] = work.y[r * outputs + h + 1] + _product(work.z + r * seconds, self.out)
            if ranked:
                self._rank(work, m, signals, logits[b : b + m])
            for r in range(b, b + m):
                if not logits[r] - logits[r] == 0:
                    return NOT_FINITE
                probabilities[r] = <float>(1 / (1 + exp(-(slope * logits[r] + shift))))
            b += BLOCK
        return ALL_SCORED

    cdef inline void _ask_for_crosses(self, int64_t row) noexcept nogil:
        """Tells the memory which crosses of a track `_take` will copy; reads its ids, which were asked for first."""
        cdef Py_ssize_t i, j, numbers
        for i in range(self.track_columns.shape[0]):
            numbers, j = CROSS * self.track_pairs[i], self.ids[row, self.track_columns[i]]
            if 0 <= j < self._size(i):
                ask_for(&self.cross_track[self.track_starts[i] + j * numbers], numbers * sizeof(float))

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

    cdef void _rank(self, HeadWork *work, Py_ssize_t m, const float *signals, float[::1] logits) noexcept nogil:
        """Puts in place of the logits of a block those that the moment gives."""
        cdef Py_ssize_t inputs = self.moment.shape[0], outputs = self.moment.shape[1], h = self.moment_second.shape[0]
        cdef Py_ssize_t seconds = self.moment_second.shape[1], n = self.strengths, own = self.moment_own.shape[0], r, i, j
        cdef Py_ssize_t n_signals = self.moment_offsets.shape[0] + 1
        cdef float *one
        cdef const float *x
        cdef const float *told
        cdef float falls
        for r in range(m):
            told = signals + r * n_signals
            one, x = work.pairs + r * inputs, work.x + (r + 1) * self.layer.shape[0] - 4
            one[0], one[1], one[2], one[3] = logits[r], work.y[r * self.layer.shape[1] + self.hidden], x[0], x[3]
            for j in range(n):
                one[PAIR + j] = told[own + j]
                one[PAIR + n + j] = logf(told[own + j] + self.moment_offsets[own - 1 + j])
        lhydra_layer(work.pairs, inputs, inputs, &self.moment[0, 0], outputs, work.about, work.u)
        for r in range(m):
            one, told = work.u + r * outputs, signals + r * n_signals
            if told[0] != 0:  # heard: else nothing is known of how it was played
                for i in range(own):
                    falls = told[0] if i == 0 else told[0] * logf(told[i] + self.moment_offsets[i - 1])
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
