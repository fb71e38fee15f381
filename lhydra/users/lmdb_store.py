"""The user store on LMDB: one environment, shared by the processes of a machine."""

import itertools
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import lmdb

from lhydra.domain import Play, UserState
from lhydra.users.environment import Environment
from lhydra.users.opened import META
from lhydra.users.record import UserRecord, unpack, user_key

_LOAD_CHUNK = 1000  # users per write transaction: short, so that live plays get their turn
_LOAD_WAIT_S = 30.0  # for the write lock, which other processes take for moments
SYNC_S = 1.0


class LmdbUsers:
    """A user store in one LMDB environment, shared by the processes of a machine. Open it once per process.

    Args:
        path: the folder of the environment.
        sync_s: seconds after a write at most until it is forced to disk; 0: before the write returns.
        create: makes the store where there is none.
        lasting: raises nothing here; a store that cannot be opened, now or later, is tried again every second.
        identity: of the store that it must be; empty where any will do.

    Raises:
        UserStoreError: the folder cannot be opened, or holds something else.
    """

    def __init__(
        self, path: Path, *, sync_s: float = SYNC_S, create: bool = True, lasting: bool = False, identity: str = ""
    ) -> None:
        self.path = path
        self._env = Environment(path, sync_s=sync_s, create=create, lasting=lasting, identity=identity)

    def get(self, user_id: str, deadline_s: float = math.inf) -> UserState | None:
        """See `UserStore.get`. LMDB readers never block, so the deadline has no effect.

        Args:
            user_id: whose.
            deadline_s: without effect.

        Returns:
            The state, None when the user is unknown.
        """
        with self._env.reading() as txn:
            packed = txn.get(user_key(user_id))
        return None if packed is None else unpack(bytes(packed), user_id).state

    def record(self, plays: Sequence[Play], deadline_s: float = math.inf) -> list[bool]:
        """See `UserStore.record`. Waits a second at most for other writers.

        Args:
            plays: of any users.
            deadline_s: on the clock of `time.monotonic`.

        Returns:
            Whether each play was new, in order.
        """
        positions_of: dict[str, list[int]] = {}
        for position, play in enumerate(plays):
            positions_of.setdefault(play.user_id, []).append(position)

        def change(txn: lmdb.Transaction) -> list[bool]:
            fresh = [False] * len(plays)
            for user_id, positions in positions_of.items():
                new, flags = _stored(txn, user_id).with_plays([plays[position] for position in positions])
                for position, flag in zip(positions, flags, strict=True):
                    fresh[position] = flag
                if any(flags):
                    txn.put(user_key(user_id), new.pack())
            return fresh

        return self._env.write(change, deadline_s)

    def load(self, states: Iterable[tuple[str, UserState]]) -> int:
        """See `UserStore.load`. Writes _LOAD_CHUNK users at a time: an error leaves those before it loaded.

        Args:
            states: (user id, state) pairs.

        Returns:
            How many users there were.
        """
        remaining, n_users = iter(states), 0
        while chunk := list(itertools.islice(remaining, _LOAD_CHUNK)):  # built before the lock is taken
            self._env.write(partial(_load, chunk), wait_s=_LOAD_WAIT_S)
            n_users += len(chunk)
        return n_users

    def sample(self, n: int) -> list[UserState]:
        """See `UserStore.sample`.

        Args:
            n: how many at most.

        Returns:
            The states, spread over all users in order of their keys.
        """
        with self._env.reading() as txn, txn.cursor() as cursor:
            step = max(1, txn.stat(self._env.raw.open_db())["entries"] // max(1, n))
            keys = list(itertools.islice(cursor.iternext(values=False), 0, n * step, step))
            packed = [txn.get(key) for key in keys if key != META]
            return [unpack(bytes(value), "sampled").state for value in packed if value is not None]

    def close(self) -> None:
        """Forces everything to disk and releases the environment."""
        self._env.close()


def _load(users: Sequence[tuple[str, UserState]], txn: lmdb.Transaction) -> None:
    for user_id, state in users:
        txn.put(user_key(user_id), _stored(txn, user_id).with_base(state).pack())


def _stored(txn: lmdb.Transaction, user_id: str) -> UserRecord:
    packed = txn.get(user_key(user_id))
    return UserRecord() if packed is None else unpack(bytes(packed), user_id)
