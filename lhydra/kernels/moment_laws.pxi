# What the sums of a moment are made with; see lhydra/features/moment.py.

cdef class MomentLaws:
    """The constants of lhydra/features/listening.py and moment.py, so that they stand in one place."""

    cdef int64_t pause, away, lately
    cdef double minute, day, least_count
    cdef int64_t unknown, skipped, completed
    cdef Py_ssize_t follows, many, n_own, n_signals
    cdef const double[:, ::1] falls
    cdef const double[:, :] exponentials
    cdef const double[::1] rates, powers

    def __cinit__(self, *, falls, rates, powers, exponentials, numbers):
        self.falls, self.rates, self.powers, self.exponentials = falls, rates, powers, exponentials
        self.many = self.falls.shape[1]
        self.pause, self.away, self.lately, self.follows = (
            numbers["pause_s"], numbers["away_s"], numbers["lately"], numbers["follows"]
        )
        self.minute, self.day, self.least_count = numbers["minute_s"], numbers["day_s"], numbers["least_count"]
        self.unknown, self.skipped, self.completed = numbers["unknown"], numbers["skipped"], numbers["completed"]
        self.n_own, self.n_signals = numbers["n_own"], numbers["n_signals"]
        if self.falls.shape[0] != 2 or self.rates.shape[0] != 3 or self.powers.shape[0] != 3:
            raise ValueError("laws of other shapes")
        if self.exponentials.shape[0] != 4 or self.exponentials.shape[1] != 3:
            raise ValueError("laws of other shapes")
        if self.n_own != 14 or self.n_signals != 20:
            raise ValueError("other signals")


cdef packed struct Repeated:
    # REPEAT_DTYPE
    uint32_t first
    float[3] decayed


cdef class SequenceTables:
    """The tables of lhydra/features/sequences.py, looked at once."""

    cdef Py_ssize_t n, m
    cdef const int32_t *offsets
    cdef const int32_t *others
    cdef const uint16_t *weights
    cdef const uint16_t *damping
    cdef tuple held

    def __cinit__(
        self,
        const int32_t[::1] offsets,
        const int32_t[::1] others,
        const uint16_t[::1] weights,
        const uint16_t[::1] damping,
    ):
        self.n, self.m, self.held = damping.shape[0], others.shape[0], (offsets, others, weights, damping)
        if weights.shape[0] != self.m or self.n and offsets.shape[0] != 2 * self.n + 1:
            raise ValueError("sequences whose arrays differ in length")
        if self.n:
            self.offsets, self.damping = &offsets[0], &damping[0]
        if self.m:
            self.others, self.weights = &others[0], &weights[0]
