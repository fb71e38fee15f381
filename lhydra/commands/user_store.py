"""A user store that is there, opened for one command."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lhydra.errors import UsageError, complain

if TYPE_CHECKING:
    from lhydra.users.store import UserStore


@contextlib.contextmanager
def opened(url: str | None, store: Path | None) -> "Iterator[tuple[UserStore, str]]":
    """Opens a user store that is there, and closes it when the block ends; what is written is on disk at once.

    Args:
        url: of the user store; None for the one inside the bundle store.
        store: the bundle store.

    Yields:
        The store, and where it lies, for people.

    Raises:
        UsageError: neither is given.
        UserStoreError: there is none.
    """
    from lhydra.users.store import open_users, redacted

    if url is None and store is None:
        raise UsageError(complain("--store", "nothing", "the folder of a store, or --users URL"))
    users = open_users(url, store or Path("."), create=False, sync_s=0)
    try:
        yield users, redacted(url) if url else f"lmdb:{store}/users.lmdb"
    finally:
        users.close()
