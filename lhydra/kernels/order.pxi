# Order: the best of many, and times from the first to the last.

from libc.stdlib cimport qsort


cdef int _ascending(const void *a, const void *b) noexcept nogil:
    cdef int64_t x = (<const int64_t *>a)[0], y = (<const int64_t *>b)[0]
    return (x > y) - (x < y)


cdef struct Found:
    double value
    int64_t row


cdef inline bint _better(Found a, Found b) noexcept nogil:
    return a.value > b.value or (a.value == b.value and a.row < b.row)


cdef void choose(Found *found, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """Puts the k best first, in no order, ties by row: Hoare's selection."""
    cdef Py_ssize_t low = 0, high = n - 1, i, j
    cdef Found pivot, other
    while low < high and low < k:
        pivot = found[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while _better(found[i], pivot):
                i += 1
            while _better(pivot, found[j]):
                j -= 1
            if i <= j:
                other = found[i]
                found[i] = found[j]
                found[j] = other
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            break


cdef int _fill(Found *found, Py_ssize_t n, int64_t[::1] out) except -1:
    """The rows of the best of n, as many as there is room for."""
    cdef Py_ssize_t i
    choose(found, n, out.shape[0])
    for i in range(out.shape[0]):
        out[i] = found[i].row
    return 0
