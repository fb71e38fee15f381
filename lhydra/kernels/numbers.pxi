# What all kernels share: arithmetic, float16 and sets of rows.

import numpy as np

from libc.math cimport exp, expm1, fabsf, fmax, fmin, isfinite, log, log1p, logf
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    /* Asks the memory for all lines of the cache that a row lies in. Always inline: a compiler leaves out calls of a
       function that does nothing else. */
    static inline __attribute__((always_inline)) void ask_for(const void *row, ptrdiff_t width) {
        const char *end = (const char *)row + width, *line = (const char *)((uintptr_t)row & ~(uintptr_t)63);
        for (; line < end; line += 64) __builtin_prefetch(line);
    }
    """
    void ask_for(const void *, Py_ssize_t) noexcept nogil
    void __builtin_prefetch(const void *) noexcept nogil


cdef enum:
    AHEAD = 12  # rows of a table that are asked of the memory before they are read


cdef inline float widened(uint16_t half) noexcept nogil:
    """Float16 as float32; a product with 2^112 moves the exponent, of subnormal numbers too."""
    cdef uint32_t bits = <uint32_t>(half & 0x7FFF) << 13
    cdef float value
    cdef uint32_t out
    memcpy(&value, &bits, 4)
    value *= 5.192296858534828e33
    memcpy(&out, &value, 4)
    if (half & 0x7C00) == 0x7C00:  # infinite, or no number
        out |= 0x7F800000
    out |= <uint32_t>(half & 0x8000) << 16
    memcpy(&value, &out, 4)
    return value


cdef enum:
    HASH = 2654435769u  # of Fibonacci hashing
    MOST_PLACES = 1 << 28  # so that the size of a table fits in 32 bits


cdef struct Places:
    # Where rows lie in a list: open addressing with linear probing, small enough for the first cache, behind a bit
    # for each of 8192 classes of rows, so that the many rows that are not there cost one look.
    uint64_t seen[128]
    uint32_t mask
    int32_t *keys  # -1: free
    int32_t *values


cdef int make_places(Places *places, Py_ssize_t n) except -1:
    """An empty table for at most n rows, which `free_places` gives back."""
    cdef uint32_t size = 16
    if n > MOST_PLACES:
        raise MemoryError
    while size < 3 * n:
        size *= 2
    places.mask = size - 1
    places.keys = <int32_t *>malloc(2 * sizeof(int32_t) * size)
    if places.keys == NULL:
        raise MemoryError
    places.values = places.keys + size
    memset(places.keys, 0xFF, size * sizeof(int32_t))
    memset(places.seen, 0, sizeof(places.seen))
    return 0


cdef inline void free_places(Places *places) noexcept nogil:
    free(places.keys)


cdef inline uint32_t slot_of(const Places *places, int32_t row) noexcept nogil:
    """Where a row is, or where it would be."""
    cdef uint32_t at = (<uint32_t>row * HASH >> 7) & places.mask
    while places.keys[at] != row and places.keys[at] != -1:
        at = (at + 1) & places.mask
    return at


cdef inline void put(Places *places, int32_t row, int32_t value) noexcept nogil:
    cdef uint32_t at = slot_of(places, row), kind = <uint32_t>row * HASH >> 19
    places.seen[kind >> 6] |= <uint64_t>1 << (kind & 63)
    places.keys[at] = row
    places.values[at] = value


cdef inline int32_t place_of(const Places *places, int32_t row) noexcept nogil:
    """The value of a row, -1 where it is not there."""
    cdef uint32_t at, kind = <uint32_t>row * HASH >> 19
    if not places.seen[kind >> 6] >> (kind & 63) & 1:
        return -1
    at = slot_of(places, row)
    return places.values[at] if places.keys[at] == row and row >= 0 else -1  # -1 is the key of what is free
