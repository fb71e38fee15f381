# History vectors of tracks as the user tower takes them; see `HistoryVectors` in lhydra/bundle/history_vectors.py.


cdef inline void widen(const int8_t *row, Py_ssize_t dim, uint16_t *to) noexcept nogil:
    """Multiplies numbers by the scale behind them: seven bits by four, so a float16 holds the product as it is."""
    cdef uint32_t bits = <uint32_t><uint8_t>row[dim] << 20  # of 2^-112 times the scale, which has the exponent of a float16
    cdef float scale, value
    cdef Py_ssize_t j
    memcpy(&scale, &bits, 4)
    for j in range(dim):
        value = row[j] * scale
        memcpy(&bits, &value, 4)
        to[j] = <uint16_t>(bits >> 13) | (<uint16_t>(bits >> 16) & 0x8000)


def history_vectors(table, const int64_t[:, :] rows):
    """Of rows of several users the numbers times their scale, as float16."""
    cdef Py_buffer of, to
    cdef Py_ssize_t n = rows.shape[0], h = rows.shape[1], width = table.shape[1], i, j
    cdef const int8_t *first
    cdef uint16_t *out
    if width < 1 or table.itemsize != 1:
        raise ValueError("a table of another type than int8, or without scales")
    found = np.empty((n, h, width - 1), np.float16)
    PyObject_GetBuffer(table, &of, PyBUF_C_CONTIGUOUS)
    try:
        first = <const int8_t *>of.buf
        for i in range(n):
            for j in range(h):
                if not 0 <= rows[i, j] < of.shape[0]:
                    raise IndexError(f"row {rows[i, j]} of {of.shape[0]}")
                if j < AHEAD:
                    ask_for(first + rows[i, j] * width, width)
        PyObject_GetBuffer(found, &to, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        out = <uint16_t *>to.buf
        for i in range(n):
            for j in range(h):
                if j + AHEAD < h:
                    ask_for(first + rows[i, j + AHEAD] * width, width)
                widen(first + rows[i, j] * width, width - 1, out)
                out += width - 1
        PyBuffer_Release(&to)
    finally:
        PyBuffer_Release(&of)
    return found
