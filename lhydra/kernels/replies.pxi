# The tracks of a reply as bytes; see server/lhydra_server/replies.py.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize


cdef inline void _write(uint8_t *to, float value) noexcept nogil:
    """A float as protobuf has it: its lowest byte first."""
    cdef uint32_t bits
    memcpy(&bits, &value, 4)
    to[0], to[1], to[2], to[3] = bits & 255, bits >> 8 & 255, bits >> 16 & 255, bits >> 24


cdef struct Offsets:
    # Where parts begin, of four bytes or of eight; one is NULL.
    const int32_t *narrow
    const int64_t *wide


cdef inline int64_t begins(const Offsets *offsets, int64_t row) noexcept nogil:
    return offsets.wide[row] if offsets.narrow == NULL else offsets.narrow[row]


cdef inline uint8_t *varint(uint8_t *to, uint64_t value) noexcept nogil:
    """Seven bits a byte, lowest first; returns where the next byte goes."""
    while value > 0x7F:
        to[0] = value & 0x7F | 0x80
        to += 1
        value >>= 7
    to[0] = <uint8_t>value
    return to + 1


def reply_stages(uint8_t tag, uint8_t time_tag, dict names, stage_us):
    """A field for each of `names`, of its bytes and the microseconds of the stage."""
    cdef Py_ssize_t room = 0, width
    cdef list told = []
    cdef uint64_t took_us
    cdef uint8_t[10] number
    cdef uint8_t *out
    cdef uint8_t *start
    cdef bytes name
    for stage, name in names.items():
        told.append((name, <uint64_t>stage_us.get(stage, 0)))
        room += len(name) + 22  # two tags of a byte, two numbers of ten at most
    found = PyBytes_FromStringAndSize(NULL, room)
    start = out = <uint8_t *>PyBytes_AS_STRING(found)
    for name, took_us in told:
        width = varint(number, took_us) - number
        out[0] = tag
        out = varint(out + 1, len(name) + (1 + width if took_us else 0))
        memcpy(out, <const uint8_t *>name, len(name))
        out += len(name)
        if took_us:
            out[0] = time_tag
            memcpy(out + 1, number, width)
            out += 1 + width
    return found[:out - start]


def reply_tracks(
    const uint8_t[::1] data,
    parts,
    const int64_t[:] rows,
    const float[:] scores,
    const float[:] retrieval_scores,
    Py_ssize_t score_bytes,
):
    """Joins the parts of some rows and writes both scores into the last bytes of each."""
    cdef Py_ssize_t m = rows.shape[0], i, total = 0
    cdef int64_t start, end
    cdef const int32_t[::1] narrow
    cdef const int64_t[::1] wide
    cdef Offsets offsets
    cdef Py_ssize_t n = len(parts) - 1
    offsets.narrow, offsets.wide = NULL, NULL
    if n < 0:
        raise ValueError("no offsets")
    if parts.itemsize == 4:
        narrow = parts
        offsets.narrow = &narrow[0]
    else:
        wide = parts
        offsets.wide = &wide[0]
    cdef uint8_t *out
    if scores.shape[0] != m or retrieval_scores.shape[0] != m or score_bytes < 10:
        raise ValueError("scores of other tracks")
    for i in range(m):
        if not 0 <= rows[i] < n:
            raise IndexError(f"row {rows[i]} of {n}")
        if offsets.narrow == NULL:
            __builtin_prefetch(offsets.wide + rows[i])
        else:
            __builtin_prefetch(offsets.narrow + rows[i])
    for i in range(m):
        start, end = begins(&offsets, rows[i]), begins(&offsets, rows[i] + 1)
        if not (0 <= end <= data.shape[0] and 0 <= start <= end - score_bytes):
            raise ValueError(f"a part from {start} to {end} of {data.shape[0]} bytes")
        ask_for(&data[start], end - start)
        total += end - start
    joined = PyBytes_FromStringAndSize(NULL, total)
    out = <uint8_t *>PyBytes_AS_STRING(joined)
    for i in range(m):
        start, end = begins(&offsets, rows[i]), begins(&offsets, rows[i] + 1)
        memcpy(out, &data[start], end - start)
        out += end - start
        _write(out - score_bytes + 1, scores[i])
        _write(out - score_bytes + 6, retrieval_scores[i])
    return joined
