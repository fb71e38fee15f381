# Rows of tracks by their hashes; see `Catalog.rows` in lhydra/bundle/catalog.py.

from cpython.buffer cimport PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer

cdef enum:
    TOGETHER = 64  # hashes whose buckets are asked of the memory before the first is read


cdef packed struct Played:
    # HISTORY_DTYPE
    uint64_t track
    float count
    int64_t time


cdef packed struct Recent:
    # RECENT_DTYPE
    uint64_t track
    uint32_t time
    uint32_t flags


# HISTORY_DTYPE, RECENT_DTYPE and REPEAT_DTYPE, and then the equal ones that arrays came with last: comparing an object
# with itself costs nothing.
cdef list _HISTORY = [np.dtype([("track", "<u8"), ("count", "<f4"), ("time", "<i8")])]
cdef list _RECENT = [np.dtype([("track", "<u8"), ("time", "<u4"), ("flags", "<u4")])]
cdef list _REPEAT = [np.dtype([("first", "<u4"), ("decayed", "<f4", (3,))])]


cdef int borrow(array, list dtype, Py_ssize_t n, Py_buffer *view) except -1:
    """A look at n records, without the format that a typed view spells out field by field."""
    if array.dtype != dtype[0] or array.shape != (n,):
        raise ValueError(f"{array.shape} of {array.dtype}, not {n} of {dtype[0]}")
    dtype[0] = array.dtype
    PyObject_GetBuffer(array, view, PyBUF_STRIDES)
    return 0


cdef class HashTable:
    """Rows by hash, of one catalogue, looked at once."""

    cdef const uint64_t *hashes
    cdef const int32_t *rows
    cdef const int32_t *starts
    cdef Py_ssize_t n, buckets
    cdef int shift
    cdef tuple held

    def __cinit__(self, const uint64_t[::1] hashes, const int32_t[::1] rows, const int32_t[::1] starts):
        cdef Py_ssize_t n = hashes.shape[0]
        if rows.shape[0] != n:
            raise ValueError("hashes and rows of unequal number")
        self.n, self.buckets, self.shift, self.held = n, starts.shape[0], 63, (hashes, rows, starts)
        while self.shift > 1 and n > <int64_t>1 << (64 - self.shift):
            self.shift -= 1
        if n:
            self.hashes, self.rows = &hashes[0], &rows[0]
        if self.buckets:
            self.starts = &starts[0]

    def rows_of(self, const uint64_t[:] wanted):
        """The row of each hash, -1 where there is none."""
        found = np.empty(wanted.shape[0], np.int64)
        cdef int64_t[::1] out = found
        if wanted.shape[0]:
            self.find(<const char *>&wanted[0], wanted.strides[0], wanted.shape[0], &out[0])
        return found

    def state_rows(self, history, recent, const uint64_t[:] heard):
        """The rows of a history, of the last plays and of what was heard, one behind the other; -1: there is none."""
        cdef Py_buffer records
        cdef Py_ssize_t h = len(history), r = len(recent), m = heard.shape[0]
        found = np.empty(h + r + m, np.int64)
        cdef int64_t[::1] out = found
        if h:
            borrow(history, _HISTORY, h, &records)
            self.find(<const char *>records.buf, records.strides[0], h, &out[0])
            PyBuffer_Release(&records)
        if r:
            borrow(recent, _RECENT, r, &records)
            self.find(<const char *>records.buf, records.strides[0], r, &out[h])
            PyBuffer_Release(&records)
        if m:
            self.find(<const char *>&heard[0], heard.strides[0], m, &out[h + r])
        return found

    cdef void find(self, const char *wanted, Py_ssize_t stride, Py_ssize_t m, int64_t *out) noexcept nogil:
        """Rows of m hashes that lie `stride` bytes apart, -1 where there is none."""
        cdef Py_ssize_t[TOGETHER] at
        cdef uint64_t[TOGETHER] hashes
        cdef Py_ssize_t done = 0, block, i, place
        cdef uint64_t bucket
        while done < m:
            block = min(m - done, TOGETHER)
            for i in range(block):
                memcpy(&hashes[i], wanted + (done + i) * stride, sizeof(uint64_t))
                __builtin_prefetch(self.starts + (hashes[i] >> self.shift))
            for i in range(block):
                bucket = hashes[i] >> self.shift
                at[i] = self.starts[bucket] if self.n and <Py_ssize_t>bucket < self.buckets else self.n
                __builtin_prefetch(self.hashes + at[i])
                __builtin_prefetch(self.rows + at[i])
            for i in range(block):
                place = max(at[i], 0)
                while place < self.n and self.hashes[place] < hashes[i]:  # a bucket holds one or two
                    place += 1
                out[done + i] = self.rows[place] if place < self.n and self.hashes[place] == hashes[i] else -1
            done += block


def all_known(const int64_t[:] rows):
    """Whether no row is below 0."""
    cdef Py_ssize_t i
    cdef int64_t least = 0
    for i in range(rows.shape[0]):
        least = min(least, rows[i])
    return least == 0
