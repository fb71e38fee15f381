# The sums and candidates of a moment; see lhydra/features/moment.py, whose NumPy code defines them.

cdef class SummedMoment(GivenMoment):
    """Sums by number: entries of the history come first, then other tracks among the last plays, then all others.

    What only heard tracks have is computed when one is asked for.
    """

    cdef MomentLaws laws
    cdef SequenceTables tables
    cdef Places places
    cdef Py_ssize_t heard, size, n
    cdef int64_t *row  # of each number
    cdef int32_t *number  # of each of the last plays
    cdef int32_t *newest  # of each heard track how many plays ago its newest one was, 0: not among the last
    cdef int32_t *oldest  # and where among the last plays the oldest is
    cdef double *sums  # three of each number: after the last few, after the last many, together
    cdef double *own  # two of each heard track: after the user's own plays
    cdef double *base  # three of each entry
    cdef double *now  # of each entry three counts decayed until now
    cdef double[2] strongest, strongest_own
    cdef double[3] strongest_base
    cdef double clock
    cdef int64_t clock_now
    cdef int64_t latest, began
    cdef Py_ssize_t in_session
    cdef bint flagged  # whether any of the last plays is

    def __cinit__(self, MomentLaws laws not None, SequenceTables tables not None, Py_ssize_t n, int64_t now):
        if n > 0x7FFFFFFF:
            raise ValueError(f"{n} tracks")
        self.laws, self.tables, self.n, self.clock_now = laws, tables, n, now

    cdef int _sum_up(self, const int64_t[:] rows) except -1:
        cdef Py_ssize_t h = self.h, r = self.r, n = self.n, i, j, side, number, m, room, tracks = self.tables.n
        cdef const int64_t *recent = self.recent
        cdef const int32_t *offsets = self.tables.offsets
        cdef const int32_t *others = self.tables.others
        cdef const uint16_t *weights = self.tables.weights
        cdef MomentLaws laws = self.laws
        cdef int64_t start, end
        cdef int32_t at
        cdef double few, many, weight
        m = min(r, laws.many) if tracks else 0
        for i in range(h):
            if not 0 <= rows[i] < n:
                raise IndexError(f"row {rows[i]} of {n}")
        for i in range(r):
            if not 0 <= recent[i] < n:
                raise IndexError(f"row {recent[i]} of {n}")
        for i in range(r - m, r):
            if recent[i] >= tracks:
                raise IndexError(f"row {recent[i]} of {tracks}")
            __builtin_prefetch(&offsets[recent[i]])
            __builtin_prefetch(&offsets[recent[i] + tracks])
        self._session(self.clock_now)
        room = h + r
        for i in range(r - m, r):
            for side in range(2):
                start, end = offsets[recent[i] + side * tracks], offsets[recent[i] + side * tracks + 1]
                if not 0 <= start <= end <= self.tables.m:
                    raise IndexError(f"list {start} to {end} of {self.tables.m} entries")
                ask_for(others + start, (end - start) * sizeof(int32_t))
                ask_for(weights + start, (end - start) * sizeof(uint16_t))
                room += end - start
        room = min(room, h + n)
        make_places(&self.places, room)
        self.row = <int64_t *>malloc((room + 1) * sizeof(int64_t))
        self.number = <int32_t *>malloc((r + 1) * sizeof(int32_t))
        self.newest = <int32_t *>calloc(2 * (h + r) + 1, sizeof(int32_t))
        self.sums = <double *>calloc(3 * room + 1, sizeof(double))
        if self.row == NULL or self.number == NULL or self.newest == NULL or self.sums == NULL:
            raise MemoryError
        self.oldest = self.newest + h + r
        for i in range(h):
            put(&self.places, <int32_t>rows[i], <int32_t>i)
            self.row[i] = rows[i]
        self.size = h
        for i in range(r):
            at = self._number_of(<int32_t>recent[i])
            self.number[i] = at
            self.flagged |= self.flags[i] != 0
            if not self.newest[at]:
                self.oldest[at] = <int32_t>i
            self.newest[at] = <int32_t>(r - i)
        self.heard = self.size
        for i in range(r - m, r):
            if self.newest[self.number[i]] != r - i:
                continue
            few, many = laws.falls[0, r - i - 1], laws.falls[1, r - i - 1]
            for side in range(2):
                start, end = offsets[recent[i] + side * tracks], offsets[recent[i] + side * tracks + 1]
                for j in range(start, end):
                    if not 0 <= others[j] < n:
                        raise IndexError(f"row {others[j]} of {n}")
                    number, weight = self._number_of(others[j]), widened(weights[j])
                    if side:
                        self.sums[3 * number + 2] += weight * many
                    else:
                        self.sums[3 * number] += weight * few
                        self.sums[3 * number + 1] += weight * many
        _strongest(self.sums, self.size, 3, self.strongest)
        return 0

    def __dealloc__(self):
        free_places(&self.places)
        free(self.row)
        free(self.number)
        free(self.newest)
        free(self.sums)
        free(self.own)
        free(self.base)

    cdef int32_t _number_of(self, int32_t row) noexcept:
        """The number of a track, a new one where it has none yet."""
        cdef int32_t at = place_of(&self.places, row)
        if at < 0:
            at = <int32_t>self.size
            put(&self.places, row, at)
            self.row[at] = row
            self.size += 1
        return at

    cdef int _session(self, int64_t now) except -1:
        """When the moment is, and how far the session that goes on reaches back."""
        cdef Py_ssize_t i, r = self.r, n
        cdef int64_t oldest, at, pause = self.laws.pause, away
        cdef int64_t *times
        self.latest = 0
        for i in range(self.h):
            self.latest = max(self.latest, self.last[i])
        for i in range(r):
            self.latest = max(self.latest, self.times[i])
        away = max(now - self.latest, 0) if now and self.latest else 0
        self.clock = <double>(self.latest + min(away, self.laws.away))
        self.in_session = 0
        if not r or self.clock - self.times[r - 1] > pause:
            return 0
        self.in_session = 1
        while self.in_session < r and self.times[r - self.in_session] - self.times[r - self.in_session - 1] <= pause:
            self.in_session += 1
        self.began = oldest = self.times[r - self.in_session]
        if self.in_session < r or not self.h:
            return 0
        times = <int64_t *>malloc(2 * self.h * sizeof(int64_t))
        if times == NULL:
            raise MemoryError
        n = 0
        for i in range(2 * self.h):
            at = self.last[i >> 1] if i & 1 else self.first[i >> 1]
            if 0 < at < oldest:
                times[n] = at
                n += 1
        qsort(times, n, sizeof(int64_t), _ascending)
        while n and self.began - times[n - 1] <= pause:
            n -= 1
            self.began = times[n]
        free(times)
        return 0

    cdef int _own_sums(self) except -1:
        """What followed the user's last plays when they had been played before."""
        cdef Py_ssize_t i, j, step
        cdef int32_t back, at
        cdef double few, many, damping
        if self.own != NULL:
            return 0
        self.own = <double *>calloc(2 * self.heard + 1, sizeof(double))
        if self.own == NULL:
            raise MemoryError
        for i in range(self.r):
            back = self.newest[self.number[i]]
            if back > self.laws.many:
                continue
            few, many = self.laws.falls[0, back - 1], self.laws.falls[1, back - 1]
            if self.tables.n:
                if self.recent[i] >= self.tables.n:
                    raise IndexError(f"row {self.recent[i]} of {self.tables.n}")
                damping = widened(self.tables.damping[self.recent[i]])
                if damping == 0:
                    damping = 1
                few, many = few * damping, many * damping
            for step in range(1, self.laws.follows + 1):
                j = i + step
                if j >= self.r or self.times[j] - self.times[j - 1] > self.laws.pause:
                    break
                at = self.number[j]
                self.own[2 * at] += few / step
                self.own[2 * at + 1] += many / step
        _strongest(self.own, self.heard, 2, self.strongest_own)
        return 0

    cdef int _base_levels(self) except -1:
        """Base level of each entry: exact for the last plays, else by its decayed counts."""
        cdef Py_ssize_t h = self.h, i, j, k
        cdef const double[:, :] exponentials = self.laws.exponentials
        cdef double age, power
        cdef double *lately
        cdef double *left
        if self.base != NULL:
            return 0
        self.base = <double *>calloc(10 * h + 1, sizeof(double))  # and then what it is computed of
        if self.base == NULL:
            raise MemoryError
        self.now, lately, left = self.base + 3 * h, self.base + 6 * h, self.base + 9 * h
        for i in range(self.r):
            j = self.number[i]
            if j >= h:
                continue
            age = max(self.clock - self.times[i], self.laws.minute) / self.laws.day
            power = log(age)
            left[j] += 1
            for k in range(3):
                lately[3 * j + k] += exp(self.laws.rates[k] * age)
                self.base[3 * j + k] += exp(-self.laws.powers[k] * power)
        self.strongest_base[0] = self.strongest_base[1] = self.strongest_base[2] = 1e-9
        for j in range(h):
            age = self._age(j)
            power = max(self.counts[j] - left[j], 0.0)  # plays that are not among the last
            for k in range(3):
                self.now[3 * j + k] = self.decayed[3 * j + k] * exp(age * self.laws.rates[k])
                lately[3 * j + k] = max(self.now[3 * j + k] - lately[3 * j + k], 0.0)
            for k in range(3):
                for i in range(3):
                    self.base[3 * j + k] += lately[3 * j + i] * exponentials[i, k]
                self.base[3 * j + k] += power * exponentials[3, k]
                self.strongest_base[k] = max(self.strongest_base[k], self.base[3 * j + k])
        return 0

    cdef inline double _age(self, Py_ssize_t entry) noexcept nogil:
        return max(self.clock - self.last[entry], self.laws.minute) / self.laws.day

    def candidates(self, Py_ssize_t n_own, Py_ssize_t n_few, Py_ssize_t n_many, Py_ssize_t n_together, bint repeats):
        cdef Found *found = <Found *>malloc((2 * self.size + 1) * sizeof(Found))
        cdef Py_ssize_t i, n, m
        cdef int64_t[::1] of_following
        if found == NULL:
            raise MemoryError
        try:
            if repeats:
                self._base_levels()
                self._own_sums()
            own = np.empty(min(n_own, self.h) if repeats else 0, np.int64)
            if repeats:
                for i in range(self.h):
                    found[i].value, found[i].row = self.base[3 * i + 1], self.row[i]
                _fill(found, self.h, own)
            n = self._nonzero(found, 0, repeats)
            m = self._nonzero(found + n, 1, repeats)
            following = np.empty(min(n_few, n) + min(n_many, m), np.int64)
            of_following = following
            _fill(found, n, of_following[: min(n_few, n)])
            _fill(found + n, m, of_following[min(n_few, n) :])
            n = self._nonzero(found, 2, False)
            together = np.empty(min(n_together, n), np.int64)
            if n:
                _fill(found, n, together)
        finally:
            free(found)
        return own, following, together

    cdef Py_ssize_t _nonzero(self, Found *found, int which, bint repeats) noexcept:
        """Collects the tracks of which a sum is not 0, and says how many they are."""
        cdef Py_ssize_t i, n = 0
        cdef double value
        for i in range(self.size):
            value = self.sums[3 * i + which]
            if repeats and i < self.heard:
                value = value + self.own[2 * i + which]
            if value != 0:
                found[n].value, found[n].row = value, self.row[i]
                n += 1
        return n


cdef void _strongest(const double *sums, Py_ssize_t n, Py_ssize_t width, double *out) noexcept nogil:
    """The largest of the first two of each n sums, 1 where all are 0."""
    cdef double first = 0, second = 0
    cdef Py_ssize_t i
    for i in range(n):
        first, second = max(first, sums[width * i]), max(second, sums[width * i + 1])
    out[0], out[1] = first or 1, second or 1
