"""The user store: profile, history and heard tracks of every user, shared by all workers of a machine.

Users arrive from prepared data (`load`) and from live traffic (`record`). Loading again replaces what was
loaded before; a live play is given up only once the loaded history has caught up with it, so nothing that
was recorded is lost. The store outlives bundles: it knows tracks by hash, never by row. What is kept of a
user, and how it changes, is in `lhydra.users.record`; here is where it is kept.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from lhydra.domain import Play, UserState
from lhydra.errors import ConfigError, MissingExtra, complain
from lhydra.users.lmdb_store import SYNC_S, LmdbUsers


class UserStore(Protocol):
    """Where user state lives. Every method may raise UserStoreError; all may be called from any thread."""

    def get(self, user_id: str) -> UserState | None:
        """Returns the user's state, None when the user is unknown."""

    def record(self, plays: Sequence[Play]) -> list[bool]:
        """Records plays, all or none; False where the user's event id was seen before. Creates users."""

    def load(self, states: Iterable[tuple[str, UserState]]) -> int:
        """Loads users from prepared data, keeping live plays it does not cover; returns how many."""

    def sample(self, n: int) -> list[UserState]:
        """Returns the states of at most `n` users, spread over all of them; the same ones while nobody is added."""

    def close(self) -> None:
        """Releases the store, everything written."""


def open_users(url: str | None, store: Path, *, sync_s: float = SYNC_S) -> UserStore:
    """Opens the user store at `url`, by default the LMDB one inside the bundle store `store`.

    url: None, `lmdb:PATH`, `redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, or `rediss://…` for the same over TLS.
    sync_s: at most so long after a write LMDB forces it to disk (0: before the write returns); what a killed
    process wrote survives in any case.

    Raises:
        ConfigError: a URL of no known kind, or a malformed one.
        MissingExtra: Redis, without the package that talks to it.
        UserStoreError: the folder cannot be opened. A Redis server that does not answer is no error here.
    """
    if url is None:
        return LmdbUsers(store / "users.lmdb", sync_s=sync_s)
    scheme, _, rest = url.partition(":")
    if scheme == "lmdb" and rest:
        return LmdbUsers(Path(rest), sync_s=sync_s)
    if scheme in ("redis", "rediss"):
        try:
            from lhydra.users.connections import Address
            from lhydra.users.redis_store import RedisUsers
        except ModuleNotFoundError as error:
            if error.name != "redis":
                raise
            raise MissingExtra("redis", "redis") from None
        return RedisUsers(Address.parse(url))
    found = f"an address of kind '{scheme}'"  # no more of it: it may hold a password
    raise ConfigError(complain("--users", found, "lmdb:PATH or redis://HOST"))


def redacted(url: str) -> str:
    """Returns the address of a user store as it may be shown: without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else url
