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
