"""Users as they were encoded and embedded last, so that one who asks again is not computed again.

They are found by all that their features and vector are made of, byte by byte, and not by whose it is: whatever play,
skip or profile the user store has since, from whichever worker, is another key.
"""

import numpy as np

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.candidates import encode_states
from lhydra.domain import F32, UserState
from lhydra.errors import LhydraError
from lhydra.features.histories import EncodedUsers
from lhydra.lru_cache import LruCache
from lhydra.traced import Key, Traced

Known = tuple[EncodedUsers, F32]  # one user, and the vector, (1, dim)
OBJECT_BYTES = 2_048  # Python objects of an entry, measured: 1,900


class KnownUsers:
    """Encodes users, and keeps those who were asked for last. Safe to call from several threads.

    Args:
        bundle: whose features and tracks.
        capacity: bytes for the users.
    """

    def __init__(self, bundle: Bundle, capacity: int) -> None:
        self._bundle = bundle
        self.cache = LruCache[Key, Known](capacity, entry_bytes)
        self.hits = 0  # users who were known; counted roughly under threads

    def encode(self, requests: list[Traced]) -> None:
        """Encodes the users of all requests at once, and one by one where a profile is refused.

        Args:
            requests: each is given its user, and the vector of one who is known, or its error.
        """
        for request in requests:
            request.known_by = key_of(request.query.state)
            if (known := self.cache.find(request.known_by)) is not None:
                self.hits += 1
                request.user, request.vector = known
        new = [request for request in requests if request.user is None]
        if not new:
            return
        try:
            users = encode_states(self._bundle, [request.query.state for request in new])
        except LhydraError as error:
            for request in new:
                if len(new) == 1:
                    request.error = error
                else:
                    self.encode([request])
            return
        for i, request in enumerate(new):
            request.user = users if len(new) == 1 else users.take(np.array([i]))  # no entry holds on to others

    def keep(self, request: Traced) -> None:
        """Keeps the user of a request.

        Args:
            request: with its user and vector.
        """
        assert request.user is not None
        assert request.vector is not None
        self.cache.keep(request.known_by, (request.user, request.vector))


def key_of(state: UserState) -> Key:
    """Returns all of a user that `encode_states` and `Recommender.moved_away` read.

    Args:
        state: of the user.

    Returns:
        History, skipped tracks and profile; `repr` tells 1 from True and 1.0, which the profile's texts tell apart.
    """
    return state.history.tobytes(), state.skipped.tobytes(), repr(state.profile)


def entry_bytes(key: Key, known: Known) -> int:
    """Returns the memory that one entry takes.

    Args:
        key: of the user.
        known: the user, encoded.

    Returns:
        Bytes.
    """
    user, vector = known
    history = user.histories
    arrays = (user.dense, user.ids, user.entry, history.offsets, history.rows, history.counts, history.times, vector)
    return OBJECT_BYTES + sum(map(len, key)) + sum(array.nbytes for array in arrays)
