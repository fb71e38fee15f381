# Whether files are what they were; see `Opened.fault` in lhydra/users/opened.py.

from posix.stat cimport stat, struct_stat


cdef int look(const char *path, uint64_t device, uint64_t inode, int64_t *size) noexcept nogil:
    """Whether a file is there and which it was, and its bytes."""
    cdef struct_stat found
    if stat(path, &found) or <uint64_t>found.st_dev != device or <uint64_t>found.st_ino != inode:
        return 0
    size[0] = found.st_size
    return 1


def unchanged(bytes data, bytes lock, tuple files, int64_t data_size, int64_t lock_size):
    """Whether both files are those of before, the one of the same size, the other no shorter."""
    cdef int64_t sizes[2]
    cdef uint64_t data_device, data_inode, lock_device, lock_inode
    cdef const char *data_path = data
    cdef const char *lock_path = lock
    cdef bint same
    (data_device, data_inode), (lock_device, lock_inode) = files
    with nogil:  # a file system may be slow
        same = look(data_path, data_device, data_inode, &sizes[0]) and look(lock_path, lock_device, lock_inode, &sizes[1])
    return same and sizes[0] == data_size and sizes[1] >= lock_size
