"""Users as they were encoded and embedded last, and what was nearest, so that one who asks again is not computed again.

They are found by all that their features and vector are made of, byte by byte, and not by whose it is: whatever play,
skip or profile the user store has since, from whichever worker, is another key.
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.candidates import encode_states
from lhydra.domain import F32, I64, UserState
from lhydra.features.histories import EncodedUsers, Histories
from lhydra.lru_cache import LruCache
from lhydra.traced import Nearest, Traced

OBJECT_BYTES = 300  # Python objects of an entry, measured: 260
MOST_NEAREST = 1_024  # tracks of a search that is kept
HISTORY_ENTRY_BYTES = 32  # row, time, count, three features
MOST_WIDTHS = 2  # searches of a user that are kept
_WIDTH = struct.Struct("<qq")  # how wide a search was, and how many it found


class KnownUsers:
    """Encodes users, and keeps those who were asked for last. Safe to call from several threads.

    Args:
        bundle: whose features and tracks.
        capacity: bytes for the users.
    """

    def __init__(self, bundle: Bundle, capacity: int) -> None:
        self._bundle = bundle
        self.cache = LruCache[bytes, bytes](capacity, entry_bytes)
        self._widths = len(bundle.spec.user_ids), len(bundle.spec.user_dense), bundle.index.dim
        self.hits = 0  # users who were known; counted roughly under threads

    def encode(self, requests: list[Traced]) -> None:
        """Encodes the users of all requests at once, and one by one where one of them is refused.

        Args:
            requests: each is given its user, and the vector of one who is known, or its error.
        """
        try:
            self._encode(requests)
        except Exception as error:
            if len(requests) == 1:
                requests[0].error = error
                return
            for request in requests:
                if request.user is None:
                    self.encode([request])

    def _encode(self, requests: list[Traced]) -> None:
        for request in requests:
            request.known_by = key_of(request.query.state)
            if (known := self.cache.find(request.known_by)) is not None:
                self.hits += 1
                request.is_kept = True
                request.user, request.vector, request.nearest = unpacked(known, *self._widths)
        new = [request for request in requests if request.user is None]
        if not new:
            return
        state_rows = [request.state_rows for request in new if request.state_rows is not None]
        users = encode_states(self._bundle, [request.query.state for request in new], state_rows)
        for i, request in enumerate(new):
            request.user = users if len(new) == 1 else users.one(i)

    def keep(self, request: Traced) -> None:
        """Keeps the user of a request, and what was nearest to them.

        Args:
            request: with its user and vector.
        """
        assert request.user is not None
        assert request.vector is not None
        self.cache.put(request.known_by, packed(request.user, request.vector, request.nearest))
        request.is_kept = True

    def search(self, requests: list[Traced], ks: Sequence[int]) -> list[tuple[I64, F32]]:
        """Finds the nearest tracks of all requests, at once for those whose are not kept, and keeps them.

        A user's last searches of MOST_WIDTHS widths are kept, as one may be asked for with repeats and without. What a
        wide search found is not: it takes the room of many users.

        Args:
            requests: each with its user and vector.
            ks: how many each of them searches for.

        Returns:
            Of each what `Index.search` returns.
        """
        found = [nearest_of(request, k) if request.nearest else None for request, k in zip(requests, ks, strict=True)]
        if new := [i for i, one in enumerate(found) if one is None]:
            vectors = [vector for i in new if (vector := requests[i].vector) is not None]
            together = np.concatenate(vectors) if len(vectors) > 1 else vectors[0]
            searched = self._bundle.index.search_many(together, [ks[i] for i in new])
            for i, (rows, products) in zip(new, searched, strict=True):
                request, found[i] = requests[i], (rows, products)
                if ks[i] <= MOST_NEAREST:
                    request.nearest = (ks[i], rows, products), *request.nearest[: MOST_WIDTHS - 1]
                if ks[i] <= MOST_NEAREST or not request.is_kept:
                    self.keep(request)
        return [one for one in found if one is not None]


def nearest_of(request: Traced, k: int) -> tuple[I64, F32] | None:
    """Returns what a search of one width found for a user.

    Args:
        request: with what is kept.
        k: how wide.

    Returns:
        Rows and inner products; None where none so wide is kept.
    """
    return next((one[1:] for one in request.nearest if one[0] == k), None)


def key_of(state: UserState) -> bytes:
    """Returns what stands for all of a user that `encode_states` and `Recommender.moved_away` read.

    Args:
        state: of the user.

    Returns:
        The BLAKE2b hash of history, skipped tracks and profile; `repr` tells 1 from True and 1.0, as features do.
    """
    rest = f"{len(state.history)} {len(state.skipped)} {state.profile!r}"
    read = state.history.tobytes() + state.skipped.tobytes() + rest.encode(errors="surrogatepass")
    return hashlib.blake2b(read, digest_size=16).digest()


def packed(user: EncodedUsers, vector: F32, nearest: tuple[Nearest, ...]) -> bytes:
    """Packs one user into one piece of memory: many small ones would scatter what every request allocates.

    Args:
        user: the one user, encoded; like the rest in arrays of one piece each.
        vector: (1, dim) float32.
        nearest: what searches found.

    Returns:
        What `unpacked` takes.
    """
    history = user.histories
    parts: list[Any]  # all are buffers
    parts = [history.rows, history.times, user.ids, history.counts, user.entry, user.dense, vector]
    for _, rows, products in nearest:
        parts += products, rows.astype(np.int32)
    return b"".join([*parts, *(_WIDTH.pack(k, len(rows)) for k, rows, _ in nearest), bytes([len(nearest)])])


def unpacked(known: bytes, n_ids: int, n_dense: int, dim: int) -> tuple[EncodedUsers, F32, tuple[Nearest, ...]]:
    """Returns what `packed` was given.

    Args:
        known: the packed user.
        n_ids: width of the ids.
        n_dense: width of the dense columns.
        dim: width of the vector.

    Returns:
        The user, the vector, (1, dim), and what searches found; read-only views of `known`, but for rows.
    """
    end = len(known) - 1
    widths = [_WIDTH.unpack_from(known, end - _WIDTH.size * i) for i in range(known[end], 0, -1)]
    fixed = 8 * n_ids + 4 * n_dense + 4 * dim + sum(_WIDTH.size + 8 * n for _, n in widths)
    at, h = 0, (end - fixed) // HISTORY_ENTRY_BYTES

    def part(dtype: type[Any], n: int) -> npt.NDArray[Any]:
        nonlocal at
        array = np.frombuffer(known, dtype, n, at)
        at += array.nbytes
        return array

    rows, times, ids = part(np.int64, h), part(np.int64, h), part(np.int64, n_ids)[None]
    counts, entry = part(np.float32, h), part(np.float32, 3 * h).reshape(h, 3)
    dense, vector = part(np.float32, n_dense)[None], part(np.float32, dim)[None]
    user = EncodedUsers(dense, ids, Histories.one(rows, counts, times), entry)
    found = [(k, part(np.float32, n), part(np.int32, n)) for k, n in widths]
    return user, vector, tuple((k, near.astype(np.int64), products) for k, products, near in found)


def entry_bytes(key: bytes, known: bytes) -> int:
    """Returns the memory that one entry takes.

    Args:
        key: of the user.
        known: the packed user.

    Returns:
        Bytes.
    """
    return OBJECT_BYTES + len(key) + len(known)
