# Features of users from their profiles and histories; see `FeatureSpec.encode_users` in lhydra/features/spec.py.
# The logarithm of 1 + x in double is log1p to float32, in half the time.

cdef enum:
    PATTERNS = 8  # columns behind the preferences
    MAX_VALUES = 256  # of an id column of which shares are taken


def profile_numbers(profiles, tuple categories, tuple numbers):
    """What `ProfileColumns.encoded` says; None where a number is a text, infinite or of another type."""
    cdef list dense = [], ids = [], scaled, numbered
    cdef dict index
    cdef tuple bounds
    cdef double number, mean, std
    cdef Py_ssize_t group
    for profile in profiles:
        scaled, numbered = [], []
        for name, index in categories:
            value = profile.get(name)
            if not isinstance(value, str):
                value = "" if value is None else str(value)
            numbered.append(index.get(value, 0))
        for name, mean, std, bounds in numbers:
            value = profile.get(name)
            if value is None:
                scaled += [0.0, False]
                group = -1
            else:
                if type(value) is not float and type(value) is not int:
                    return None
                number = value
                if not isfinite(number):
                    return None
                scaled += [fmin(fmax((number - mean) / std, -5.0), 5.0), True]
                group = 0
                while group < len(bounds) and <double>bounds[group] <= number:
                    group += 1
            if bounds:
                numbered.append(group + 1)
        dense.append(scaled)
        ids.append(numbered)
    return dense, ids


def known_plays(history, list lengths, const int64_t[::1] rows):
    """Offsets, rows, counts and times of the plays of several histories, back to back, without those of rows below 0."""
    cdef Py_ssize_t n = len(lengths), m = rows.shape[0], user, i, at = 0, end = 0, known = 0, total = 0
    cdef Py_buffer records
    cdef const Played *play
    for user in range(n):
        total += <Py_ssize_t>lengths[user]
        if lengths[user] < 0:
            raise ValueError("histories of unequal length")
    if total != m:
        raise ValueError("histories of unequal length")
    for i in range(m):
        known += rows[i] >= 0
    found = np.zeros(n + 1, np.int64), np.empty(known, np.int64), np.empty(known, np.float32), np.empty(known, np.int64)
    cdef int64_t[::1] offsets = found[0], known_rows = found[1], times = found[3]
    cdef float[::1] counts = found[2]
    borrow(history, _HISTORY, m, &records)
    try:
        i = 0
        for user in range(n):
            end += <Py_ssize_t>lengths[user]
            while i < end:
                if rows[i] >= 0:
                    play = <const Played *>(<const char *>records.buf + i * records.strides[0])
                    known_rows[at], counts[at], times[at] = rows[i], play.count, play.time
                    at += 1
                i += 1
            offsets[user + 1] = at
    finally:
        PyBuffer_Release(&records)
    return found


cdef struct Segment:
    # One user's history.
    const int64_t *rows
    const float *counts
    const int64_t *times
    Py_ssize_t length


cdef inline Py_ssize_t largest(const double *shares, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t best = 0, i
    for i in range(1, n):
        if shares[i] > shares[best]:
            best = i
    return best


cdef double fill_entries(const Segment *of, double total, double max_gap, double scale, float[:, ::1] out, Py_ssize_t at) noexcept nogil:
    """Makes the log weights at `out[at:, 0]` relative, and fills gaps and positions; returns the days of dated plays."""
    cdef Py_ssize_t h = of.length, i
    cdef double mean = fmax(fmax(<float>total, 1e-9) / h, 1e-9), log_max_gap = log(1 + max_gap), relative, days, span = 0
    cdef int64_t last = of.times[0]
    cdef bint known
    for i in range(1, h):
        last = max(last, of.times[i])
    for i in range(h):
        relative = out[at + i, 0] / mean
        out[at + i, 0] = logf(<float>(20.0 if relative > 20.0 else 0.05 if relative < 0.05 else relative))
        out[at + i, 1] = out[at + i, 2] = 0
        if last == 0:
            continue
        known = of.times[i] > 0
        days = <int64_t>(<uint64_t>last - <uint64_t>of.times[i]) / 86400.0 if known else max_gap
        days = max_gap if days > max_gap else 0.0 if days < 0 else days
        if known and days > span:
            span = days
        if last > 0:
            out[at + i, 1] = <float>(log(1 + days) / log_max_gap)
        out[at + i, 2] = <float>(log(<double>(h - i)) / scale)
    return span


def encode_histories(
    const uint16_t[:, ::1] track_dense,
    const int32_t[:, ::1] track_ids,
    const int64_t[::1] offsets,
    const int64_t[::1] rows,
    const float[::1] counts,
    const int64_t[::1] times,
    list profile_dense,
    list profile_ids,
    tuple columns,
):
    """Dense columns and ids of n users and the features of their entries; `columns` is `_HistoryColumns`."""
    cdef Py_ssize_t n = offsets.shape[0] - 1, m = rows.shape[0], tracks = track_dense.shape[0]
    cdef Py_ssize_t width = track_dense.shape[1], n_ids = track_ids.shape[1]
    cdef Py_ssize_t genre, genre_size, quadrant, quadrant_size, artist, artist_size, duration
    cdef Py_ssize_t start, start_ids  # of what profiles hold
    cdef double mean, std, max_gap, scale, share, entropy, focus
    genre, genre_size, quadrant, quadrant_size, artist, artist_size, duration, mean, std, max_gap, scale, start, start_ids = (
        columns
    )
    cdef Py_ssize_t user, i, j, distinct, top
    cdef list given, given_ids
    cdef Py_ssize_t tops = (genre >= 0) + (quadrant >= 0)
    cdef int64_t row
    cdef int32_t value
    cdef float weight, log_ms, total, plays, hours, floor
    cdef const uint16_t *halves
    cdef const int32_t *ids
    cdef double[MAX_VALUES] genres
    cdef double[MAX_VALUES] quadrants
    cdef Segment segment
    cdef Places artists
    segment.rows, segment.counts, segment.times = NULL, NULL, NULL
    if n < 0 or len(profile_dense) != n or len(profile_ids) != n or track_ids.shape[0] != tracks:
        raise ValueError("users or tracks of unequal number")
    if counts.shape[0] != m or times.shape[0] != m or offsets[0] != 0 or offsets[n] != m:
        raise ValueError("histories of unequal length")
    if max(genre, quadrant, artist) >= n_ids or duration >= width or max(genre_size, quadrant_size) > MAX_VALUES:
        raise ValueError("columns that the tracks do not have")
    found = np.zeros((n, start + width + PATTERNS), np.float32)
    found_ids = np.empty((n, start_ids + tops), np.int64)
    entries = np.empty((m, 3), np.float32)
    cdef float[:, ::1] out = found, entry = entries
    cdef int64_t[:, ::1] out_ids = found_ids
    cdef float *sums
    cdef float *patterns
    for user in range(n):
        segment.length = offsets[user + 1] - offsets[user]
        if not offsets[user] <= offsets[user + 1] <= m:
            raise ValueError("histories that overlap")
        given, given_ids = profile_dense[user], profile_ids[user]
        if len(given) != start or len(given_ids) != start_ids:
            raise ValueError("profiles of other columns")
        for j in range(start):
            out[user, j] = <double>given[j]
        for j in range(start_ids):
            out_ids[user, j] = given_ids[j]
        sums = &out[user, 0] + start
        patterns = sums + width
        total = plays = hours = 0
        distinct = 0
        memset(genres, 0, sizeof(genres))
        memset(quadrants, 0, sizeof(quadrants))
        if segment.length:
            segment.rows, segment.counts, segment.times = &rows[offsets[user]], &counts[offsets[user]], &times[offsets[user]]
            make_places(&artists, segment.length)
            try:
                for i in range(min(segment.length, AHEAD)):
                    ask_for(&track_dense[segment.rows[i], 0], width * sizeof(uint16_t))
                    ask_for(&track_ids[segment.rows[i], 0], n_ids * sizeof(int32_t))
                for i in range(segment.length):
                    if i + AHEAD < segment.length:
                        ask_for(&track_dense[segment.rows[i + AHEAD], 0], width * sizeof(uint16_t))
                        ask_for(&track_ids[segment.rows[i + AHEAD], 0], n_ids * sizeof(int32_t))
                    row = segment.rows[i]
                    if not 0 <= row < tracks:
                        raise IndexError(f"row {row} of {tracks} tracks")
                    halves, ids = &track_dense[0, 0] + row * width, &track_ids[0, 0] + row * n_ids
                    weight = <float>log(1.0 + segment.counts[i])
                    entry[offsets[user] + i, 0] = weight
                    total += weight
                    plays += segment.counts[i]
                    for j in range(width):
                        sums[j] += widened(halves[j]) * weight
                    if duration >= 0:
                        log_ms = widened(halves[duration]) * <float>std + <float>mean
                        hours += segment.counts[i] * <float>((exp(0 if log_ms < 0 else 20 if log_ms > 20 else log_ms) - 1) / 3.6e6)
                    else:
                        hours += segment.counts[i] / 15
                    if genre >= 0:
                        genres[checked(ids[genre], genre_size)] += weight
                    if quadrant >= 0:
                        quadrants[checked(ids[quadrant], quadrant_size)] += weight
                    if artist >= 0:
                        value = checked(ids[artist], artist_size)
                        if value and place_of(&artists, value) < 0:
                            put(&artists, value, 1)
                            distinct += 1
            finally:
                free_places(&artists)
        floor = total if total > <float>1e-9 else <float>1e-9
        for j in range(width):
            sums[j] /= floor
        genres[0] = quadrants[0] = entropy = focus = 0
        for j in range(1, genre_size):
            if genres[j]:
                share = genres[j] / floor
                entropy -= share * log(fmax(share, 1e-9))
                focus = fmax(focus, share)
        if segment.length:
            patterns[0] = log(1.0 + segment.length) / 4
            patterns[1] = log(1.0 + plays) / 6
            patterns[2] = floor / <double>segment.length / 2
            patterns[3] = entropy / 3
            patterns[4] = focus
            patterns[5] = distinct / <double>segment.length
            patterns[6] = log(1.0 + hours) / 6
            patterns[7] = fill_entries(&segment, total, max_gap, scale, entry, offsets[user]) / max_gap
        top = start_ids
        if genre >= 0:
            out_ids[user, top] = largest(genres, genre_size)
            top += 1
        if quadrant >= 0:
            out_ids[user, top] = largest(quadrants, quadrant_size)
    return found, found_ids, entries


cdef inline int32_t checked(int32_t value, Py_ssize_t size) except -1:
    if not 0 <= value < size:
        raise ValueError(f"id {value} of {size}")
    return value
