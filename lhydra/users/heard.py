"""Where the heard tracks of a user lie: all in the record, or beyond MAX_CHUNK of them in chunks of their own.

Chunks are ranges of hashes, like the leaves of a B-tree: the record lists at which hash each begins, the first at 0.
So a play rewrites one chunk and divides at most that one, whoever chose the tracks, and the chunks one behind the
other are sorted. Packed: version, checksum of the rest, the hashes.
"""

import struct
import zlib
from collections.abc import Mapping

import numpy as np

from lhydra.domain import Hashes

MAX_CHUNK = 4096  # hashes in one value: 32 KiB
_HEAD = struct.Struct("<B3xI")
_VERSION = 3  # of the record that lists them


def places(lows: Hashes, hashes: Hashes) -> list[int]:
    """Returns in which chunks hashes belong.

    Args:
        lows: (m,) where the chunks begin, ascending, the first 0.
        hashes: (n,) in any order.

    Returns:
        The beginnings of those chunks, each once.
    """
    found: list[int] = lows[np.unique(np.searchsorted(lows, hashes, "right") - 1)].tolist()
    return found


def union(a: Hashes, b: Hashes) -> Hashes:
    """Returns the hashes in either, faster than sorting them where one has few.

    Args:
        a: (n,) sorted, distinct.
        b: (m,) likewise.

    Returns:
        Sorted, distinct; `a` itself where it holds all of `b`.
    """
    if not (len(a) and len(b)):
        return a if len(a) else b
    at = np.searchsorted(a, b)
    new = a[np.minimum(at, len(a) - 1)] != b
    return np.insert(a, at[new], b[new]) if new.any() else a


def add(lows: Hashes, chunks: Mapping[int, Hashes], hashes: Hashes) -> tuple[Hashes, dict[int, Hashes]]:
    """Adds hashes to chunks; one that grows beyond MAX_CHUNK is divided.

    Args:
        lows: (m,) where the chunks begin.
        chunks: at least those in which `hashes` belong, by their beginning.
        hashes: (n,) sorted.

    Returns:
        Where the chunks begin now, and those that are new or changed.
    """
    changed: dict[int, Hashes] = {}
    cuts = np.searchsorted(hashes, lows)
    for low, first, end in zip(lows.tolist(), cuts, [*cuts[1:], len(hashes)], strict=True):
        if first == end:
            continue
        whole = union(chunks[low], hashes[first:end])
        if len(whole) == len(chunks[low]):
            continue
        parts = np.array_split(whole, 1 if len(whole) <= MAX_CHUNK else -(-len(whole) * 4 // (3 * MAX_CHUNK)))
        changed |= {low: parts[0], **{int(part[0]): part for part in parts[1:]}}
    return union(lows, np.array(sorted(changed), np.uint64)), changed


def pack_chunk(hashes: Hashes) -> bytes:
    """Returns a chunk as bytes.

    Args:
        hashes: (n,) sorted.

    Returns:
        The value to store.
    """
    body = np.ascontiguousarray(hashes, "<u8").tobytes()
    return _HEAD.pack(_VERSION, zlib.crc32(body)) + body


def unpack_chunk(packed: bytes | None) -> Hashes | None:
    """Returns what `pack_chunk` packed.

    Args:
        packed: the stored value, None where there is none.

    Returns:
        (n,) uint64, a view; None where it is not what was written.
    """
    if packed is None or len(packed) % 8 or not packed or packed[0] != _VERSION:
        return None
    if zlib.crc32(memoryview(packed)[_HEAD.size :]) != _HEAD.unpack_from(packed)[1]:
        return None
    return np.frombuffer(packed, "<u8", offset=_HEAD.size)


def chunk_key(user_key: bytes, low: int) -> bytes:
    """Returns the key of a chunk: `~`, behind every user's key, so that nothing that goes through users meets it.

    Args:
        user_key: of the user's record.
        low: where the chunk begins.

    Returns:
        At most 510 bytes; chunks of a user follow each other in order.
    """
    return b"~" + user_key + low.to_bytes(8, "big")
