# The signals and the context of a moment; see lhydra/features/moment.py.

cdef enum:
    N_CONTEXT = 9


cdef class CompiledMoment(SummedMoment):
    """A moment whose sums are made, and what is told of it and of tracks."""

    cdef int32_t *flag_counts  # two of each entry

    def __dealloc__(self):
        free(self.flag_counts)

    def signals(self, const int64_t[:] rows):
        cdef Py_ssize_t m = rows.shape[0], i
        cdef int32_t *numbers = <int32_t *>malloc((m + 1) * sizeof(int32_t))
        found = np.zeros((m, self.laws.n_signals), np.float32)
        cdef float[:, ::1] out = found
        if numbers == NULL:
            raise MemoryError
        try:
            self.find(rows, numbers)
            for i in range(m):
                self.tell(numbers[i], &out[i, 0])
        finally:
            free(numbers)
        return found

    cdef int find(self, const int64_t[:] rows, int32_t *numbers) except -1:
        """The numbers of tracks, -1 where they have none; computes what `tell` tells of them."""
        cdef Py_ssize_t i
        cdef int32_t at
        cdef bint some_heard = False, some_entry = False
        for i in range(rows.shape[0]):
            if not 0 <= rows[i] < self.n:
                raise IndexError(f"row {rows[i]} of {self.n}")
            numbers[i] = at = place_of(&self.places, <int32_t>rows[i])
            some_heard |= 0 <= at < self.heard
            some_entry |= 0 <= at < self.h
        if some_heard:
            self._own_sums()
        if some_entry:
            self._base_levels()
            if self.flagged:
                self._count_flags()
        return 0

    cdef void tell(self, int32_t at, float *out) noexcept nogil:
        """The signals of a track that `find` was asked for; `out` holds zeros."""
        cdef Py_ssize_t which, n_own = self.laws.n_own
        if at < 0:
            return
        for which in range(2):
            out[n_own + which] = out[n_own + 4 + which] = <float>(self.sums[3 * at + which] / self.strongest[which])
        if at >= self.heard:
            return
        for which in range(2):
            out[n_own + 2 + which] = <float>(self.own[2 * at + which] / self.strongest_own[which])
            out[n_own + 4 + which] = <float>(out[n_own + 4 + which] + self.own[2 * at + which] / self.strongest[which])
        if at < self.h:
            self._tell_entry(at, out)

    cdef void _tell_entry(self, int32_t at, float *out) noexcept nogil:
        """What is known of one entry of the history."""
        cdef int64_t first = self.first[at] if self.first[at] > 0 else self.last[at], since = self.laws.unknown
        cdef Py_ssize_t k
        if self.newest[at]:
            since = self.newest[at] - 1
        out[0], out[1], out[2] = 1, self.counts[at], <float>(self._age(at) * (self.laws.day / self.laws.minute))
        out[3] = <float>(max(self.clock - first, self.laws.minute) / self.laws.minute)
        for k in range(3):
            out[4 + k] = <float>self.now[3 * at + k]
            out[7 + k] = <float>(self.base[3 * at + k] / self.strongest_base[k])
        out[11] = <float>since
        if self.in_session:
            out[10] = since < self.in_session or self.last[at] >= self.began
        if self.flagged:
            out[12], out[13] = self.flag_counts[2 * at], self.flag_counts[2 * at + 1]

    cdef int _count_flags(self) except -1:
        """How often each entry was skipped and played to its end among the last plays."""
        cdef Py_ssize_t i
        cdef int32_t at
        if self.flag_counts != NULL:
            return 0
        self.flag_counts = <int32_t *>calloc(2 * self.h + 1, sizeof(int32_t))
        if self.flag_counts == NULL:
            raise MemoryError
        for i in range(self.r):
            at = self.number[i]
            if at < self.h:
                self.flag_counts[2 * at] += (self.flags[i] & self.laws.skipped) > 0
                self.flag_counts[2 * at + 1] += (self.flags[i] & self.laws.completed) > 0
        return 0

    def context(self):
        found = np.zeros(N_CONTEXT, np.float32)
        cdef float[::1] out = found
        self.tell_context(&out[0])
        return found

    cdef int tell_context(self, float *out) except -1:
        """What the moment is like; `out` holds zeros."""
        cdef Py_ssize_t i, h = self.h, r = self.r, repeating = 0, distinct = 0, repeated = 0
        cdef int64_t lately = self.laws.lately
        cdef double plays = 0, away = max(self.clock - self.latest, self.laws.minute) / self.laws.minute
        cdef bint again = False
        cdef int32_t *counted
        for i in range(h):
            plays += self.counts[i]
        for i in range(r):
            distinct += self.newest[self.number[i]] == r - i
            repeating += r > lately and i >= r - lately and self.oldest[self.number[i]] < r - lately
        out[0], out[1], out[2] = self.in_session > 0, <float>log1p(self.in_session), <float>log1p(h)
        out[3], out[4] = <float>log1p(plays), <float>(<double>distinct / max(r, 1))
        out[5], out[6] = <float>(<double>repeating / lately), <float>log1p(away)
        if self.in_session:
            counted = <int32_t *>calloc(h + 1, sizeof(int32_t))
            if counted == NULL:
                raise MemoryError
            for i in range(r - self.in_session, r):
                counted[min(self.number[i], h)] += 1
            for i in range(r - self.in_session, r):
                again = self._heard_before(self.number[i], counted)
                repeated += again
            free(counted)
            out[7], out[8] = <float>(<double>repeated / self.in_session), again
        return 0

    cdef bint _heard_before(self, int32_t at, const int32_t *counted) noexcept:
        """Whether a track of the session that goes on was heard before it."""
        if at >= self.h:
            return False
        if self.first[at] >= self.began and self.began == self.times[self.r - self.in_session]:
            return self.counts[at] - <double>counted[at] > self.laws.least_count
        return self.first[at] < self.began
