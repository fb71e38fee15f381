# The weights of a prediction head and the tables of a catalog, checked against each other; see lhydra/bundle/folded_head.py.

cdef enum:
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


cdef class HeadWeights:
    """What `CompiledHead` scores with."""

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

    cdef Py_ssize_t _size(self, Py_ssize_t column) noexcept nogil:
        """Values of a crossed column of tracks."""
        return (self.track_starts[column + 1] - self.track_starts[column]) // (CROSS * self.track_pairs[column])
