# What a moment is made of; see lhydra/features/moment.py.

cdef class GivenMoment:
    """What one user has played, copied: of the arrays of a `Listening`, or of what the user store keeps."""

    cdef Py_ssize_t h, r
    cdef int64_t *last  # of each entry, as are the next three; all that was given lies in one piece
    cdef int64_t *first
    cdef float *counts
    cdef float *decayed  # three of each
    cdef int64_t *recent  # of each of the last plays, as are the next two
    cdef int64_t *times
    cdef int64_t *flags

    def __dealloc__(self):
        free(self.last)

    cdef int _sum_up(self, const int64_t[:] rows) except -1:
        return 0

    def told(
        self,
        const int64_t[:] rows,
        const float[:] counts,
        const int64_t[:] last,
        const int64_t[:] first,
        const float[:, :] decayed,
        const int64_t[:] recent,
        const int64_t[:] times,
        const int64_t[:] flags,
    ):
        """Makes the sums of a `Listening`."""
        cdef Py_ssize_t i, k
        self._make_room(rows, counts, last, recent.shape[0])
        if first.shape[0] != self.h or decayed.shape[0] != self.h or decayed.shape[1] != 3:
            raise ValueError("a history whose arrays differ in length")
        if times.shape[0] != self.r or flags.shape[0] != self.r:
            raise ValueError("a history whose arrays differ in length")
        for i in range(self.h):
            self.first[i] = first[i]
            for k in range(3):
                self.decayed[3 * i + k] = decayed[i, k]
        for i in range(self.r):
            self.recent[i], self.times[i], self.flags[i] = recent[i], times[i], flags[i]
        self._sum_up(rows)
        return self

    def recorded(
        self,
        const int64_t[:] rows,
        const float[:] counts,
        const int64_t[:] last,
        const int64_t[:] history,
        repeats,
        const int64_t[:] recent,
        plays,
    ):
        """The same of what the user store keeps, without the tracks that the catalog does not hold."""
        cdef Py_ssize_t i, k, r = 0, h = 0
        cdef Py_buffer of_repeats, of_plays
        cdef const Repeated *repeated
        cdef const Recent *play
        for i in range(recent.shape[0]):
            r += recent[i] >= 0
        self._make_room(rows, counts, last, r)
        borrow(repeats, _REPEAT, history.shape[0], &of_repeats)
        try:
            borrow(plays, _RECENT, recent.shape[0], &of_plays)
            try:
                for i in range(history.shape[0]):
                    if history[i] < 0:
                        continue
                    if h == self.h:
                        raise ValueError("a history whose arrays differ in length")
                    repeated = <const Repeated *>(<const char *>of_repeats.buf + i * of_repeats.strides[0])
                    self.first[h] = repeated.first
                    for k in range(3):
                        self.decayed[3 * h + k] = repeated.decayed[k]
                    h += 1
                r = 0
                for i in range(recent.shape[0]):
                    if recent[i] < 0:
                        continue
                    play = <const Recent *>(<const char *>of_plays.buf + i * of_plays.strides[0])
                    self.recent[r], self.times[r], self.flags[r] = recent[i], play.time, play.flags
                    r += 1
            finally:
                PyBuffer_Release(&of_plays)
        finally:
            PyBuffer_Release(&of_repeats)
        if h < self.h:
            raise ValueError("a history whose arrays differ in length")
        self._sum_up(rows)
        return self

    cdef int _make_room(self, const int64_t[:] rows, const float[:] counts, const int64_t[:] last, Py_ssize_t r) except -1:
        """For what is told of h entries and r last plays; takes over counts and last plays."""
        cdef Py_ssize_t h = rows.shape[0], i
        if counts.shape[0] != h or last.shape[0] != h or self.last != NULL:
            raise ValueError("a history whose arrays differ in length")
        self.last = <int64_t *>malloc((2 * h + 3 * r + 1) * sizeof(int64_t) + 4 * h * sizeof(float))
        if self.last == NULL:
            raise MemoryError
        self.first, self.recent = self.last + h, self.last + 2 * h
        self.times, self.flags, self.counts = self.recent + r, self.recent + 2 * r, <float *>(self.recent + 3 * r)
        self.decayed = self.counts + h
        for i in range(h):
            self.last[i], self.counts[i] = last[i], counts[i]
        self.h, self.r = h, r
        return 0
