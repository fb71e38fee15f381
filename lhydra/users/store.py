"""The user store: profile, history and heard tracks of every user, shared by all workers of a machine.

Users arrive from prepared data (`load`) and from live traffic (`record`). Loading again replaces what was
loaded before; a live play is given up only once the loaded history has caught up with it, so nothing that
was recorded is lost. The store outlives bundles: it knows tracks by hash, never by row. What is kept of a
user, and how it changes, is in `lhydra.users.record`; here is where it is kept.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from lhydra.domain import Play, UserState
from lhydra.errors import MissingExtra
from lhydra.events.event import Event
from lhydra.events.log import EventLogInfo
from lhydra.users.lmdb_store import SYNC_S, LmdbUsers
from lhydra.users.place import folder_of
from lhydra.users.stored import StoredUser


class UserStore(Protocol):
    """Where user state lives. Every method may raise UserStoreError; all may be called from any thread."""

    def get(self, user_id: str, deadline_s: float = math.inf) -> UserState | None:
        """Returns what is stored of one user.

        Args:
            user_id: whose.
            deadline_s: when the caller leaves, on the clock of `time.monotonic`; waiting ends then at the latest.

        Returns:
            The state in read-only arrays, None when the user is unknown.

        Raises:
            DeadlineExceeded: the deadline passed first; of the store nothing is known by that.
        """

    def search(self, prefix: str, n: int, deadline_s: float = math.inf) -> tuple[list[str], bool]:
        """Finds users by the beginning of their ids, with bounded work.

        Ids of more than 500 bytes are kept as hashes: of them only the whole id is found.

        Args:
            prefix: what the ids begin with; empty for any.
            n: how many at most.
            deadline_s: as for `get`.

        Returns:
            The first of them in order of their UTF-8 bytes, and whether there are, or may be, others. Redis keeps no
            order: of so many keys that it is not looked through to its end, the ids are some of those that begin so.
        """

    def record(self, plays: Sequence[Play], deadline_s: float = math.inf) -> list[bool]:
        """Records plays, all or none; creates users.

        Args:
            plays: of any users.
            deadline_s: as for `get`.

        Returns:
            Whether each play was new, in order; False where the user's event id was seen before.

        Raises:
            DeadlineExceeded: the deadline passed first. Where that leaves open whether the plays were taken, the
                same call again counts nothing twice.
        """

    def load(self, states: Iterable[tuple[str, UserState]], logged: str | None = None) -> int:
        """Loads users from prepared data, keeping live plays that the data do not cover.

        Args:
            states: (user id, state) pairs.
            logged: the position in the event log up to which the data hold it; None where that is not known.

        Returns:
            How many users there were.
        """

    def stored(self, user_id: str) -> StoredUser | None:
        """Returns all that is stored of one user, not only what requests read.

        Args:
            user_id: whose.

        Returns:
            The record with every heard track, None when the user is unknown.
        """

    def delete(self, user_id: str) -> bool:
        """Takes away everything that is stored of one user, also what is damaged; on disk before it returns, in LMDB.

        The event log is looked through from its beginning. A play that is recorded at the same time is either in what
        was deleted, or begins a new record that holds nothing of the old one.

        Args:
            user_id: whose.

        Returns:
            Whether there was anything.
        """

    def sample(self, n: int) -> list[UserState]:
        """Returns the states of some users, the same ones while nobody is added.

        Args:
            n: how many at most.

        Returns:
            The states, spread over all users in order of their ids.
        """

    def events(
        self, after: str = "", until: str | None = None, user_id: str | None = None
    ) -> Iterator[list[tuple[str, Event]]]:
        """Reads the event log in order, a chunk at a time, while writers go on.

        What was recorded before the end was reached is there, once. Positions are text; `lhydra.events.log.place`
        makes them comparable.

        Args:
            after: the position before the first entry; empty for the first of all. It need not be there any more.
            until: the last position that is wanted; None for the end.
            user_id: whose; None for everybody's.

        Yields:
            Entries with their positions.

        Raises:
            UserStoreError: an entry is damaged, the error names its position; or `after` or `until` is no position.
        """

    def entries(self, after: str = "", until: str | None = None) -> Iterator[list[tuple[str, bytes]]]:
        """Reads the event log as it lies there, packed: for whoever reads much of it.

        Args:
            after: as for `events`.
            until: as for `events`.

        Yields:
            Positions and packed events, in order.

        Raises:
            UserStoreError: `after` or `until` is no position.
        """

    def event_log(self) -> EventLogInfo:
        """Returns how large the event log is, and where it begins and ends; cheap."""

    def prune(self, before_ms: int) -> int:
        """Removes the oldest entries of the event log, up to the first that was recorded at a moment or later.

        Args:
            before_ms: the moment, Unix milliseconds by the clocks of the servers that recorded.

        Returns:
            How many were removed.
        """

    def close(self) -> None:
        """Releases the store, everything written."""


def open_users(
    url: str | None,
    store: Path,
    *,
    sync_s: float = SYNC_S,
    create: bool = True,
    lasting: bool = False,
    identity: str = "",
    doubtful: bool = False,
    events: bool = True,
    events_keep_ms: int = 0,
) -> UserStore:
    """Opens the user store at `url`, by default the LMDB one inside the bundle store `store`.

    Args:
        url: None, `lmdb:PATH`, `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, or `rediss://…` for the same over TLS.
        store: the bundle store.
        sync_s: at most so long after a write LMDB forces it to disk (0: before the write returns); what a killed
            process wrote survives in any case.
        create: makes the folder where there is none.
        lasting: for servers: a folder that cannot be opened, now or later, is no error here and tried every second; a
            Redis database that was emptied is no store.
        identity: the id of the store that it must be; empty where any will do.
        doubtful: has the files of a lasting store read by a process of its own first: they may end whoever maps them.
        events: has recorded plays enter the event log.
        events_keep_ms: age in milliseconds above which entries of the log are removed, some with every so many
            recorded plays; 0: none are.

    Returns:
        The store, to be closed.

    Raises:
        ConfigError: a URL of no known kind, or a malformed one.
        MissingExtra: Redis, without the package that talks to it.
        UserStoreError: the folder cannot be opened. A Redis server that does not answer is no error here.
    """
    folder = folder_of(url, store)
    if folder is not None:
        return LmdbUsers(
            folder,
            sync_s=sync_s,
            create=create,
            lasting=lasting,
            identity=identity,
            doubtful=doubtful,
            events=events,
            events_keep_ms=events_keep_ms,
        )
    assert url is not None
    try:
        from lhydra.users.connections import Address
        from lhydra.users.redis_store import RedisUsers
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise MissingExtra("redis", "redis") from None
    return RedisUsers(
        Address.parse(url), identity=identity if lasting else None, events=events, events_keep_ms=events_keep_ms
    )


def redacted(url: str) -> str:
    """Returns the address of a user store without user and password, as it may be shown.

    Args:
        url: of any kind that `open_users` takes.

    Returns:
        The same URL, without what stands before `@`.
    """
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else url
