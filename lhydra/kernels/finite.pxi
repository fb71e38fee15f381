# Whether all numbers are finite; see `is_finite` in lhydra/bundle/arrays.py.

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer


def all_finite(values):
    """Whether a float32 array of any shape holds neither a NaN nor an infinity."""
    cdef Py_buffer buffer
    cdef const uint32_t *bits
    cdef uint32_t bad = 0
    cdef Py_ssize_t i, n
    PyObject_GetBuffer(values, &buffer, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
    try:
        if buffer.format == NULL or buffer.format[0] != c"f" or buffer.itemsize != 4:
            raise ValueError("an array of another type than float32")
        bits, n = <const uint32_t *>buffer.buf, buffer.len // 4
        for i in range(n):
            bad |= (bits[i] & 0x7F800000) == 0x7F800000
    finally:
        PyBuffer_Release(&buffer)
    return not bad
