"""Where a user store lies; that there is one before a server starts, and which one it is.

A server's workers never make a store: one that vanished would come back empty, and take plays that nobody finds again.
The supervisor makes one, once, at the place inside the bundle store or where it is told to. It has the files opened by
a process of its own, `python -m lhydra.users.place FOLDER`, since damaged ones may end whoever maps them.
"""

import logging
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lhydra.errors import ConfigError, MissingExtra, UserStoreError, complain

if TYPE_CHECKING:
    from lhydra.users.redis_store import RedisUsers  # an extra package

EXPECTED = "an LMDB folder that can be written"
_TRY_S = 600.0  # for reading all of a store
_OPEN_S = 10.0  # for a look at a store; a server starts without it
_PIPE = subprocess.PIPE
_NO_ADDRESS = 2  # exit code
_log = logging.getLogger(__name__)


def folder_of(url: str | None, store: Path) -> Path | None:
    """Returns the folder of an LMDB user store.

    Args:
        url: of the user store; None for the one inside the bundle store.
        store: the bundle store.

    Returns:
        The folder, None for a store on Redis.

    Raises:
        ConfigError: a URL of no known kind.
    """
    if url is None:
        return store / "users.lmdb"
    scheme, _, rest = url.partition(":")
    if scheme == "lmdb" and rest:
        return Path(rest)
    if scheme in ("redis", "rediss"):
        return None
    found = "no path" if scheme == "lmdb" else f"an address of kind '{scheme}'"  # no more: it may hold a password
    raise ConfigError(complain("--users", found, "lmdb:PATH or redis://HOST"))


def refuse_other(folder: Path) -> None:
    """Refuses a place where something else than an LMDB environment lies: nothing is written there.

    Args:
        folder: of a user store.

    Raises:
        UserStoreError: there is a file, or a folder with other things in it.
        OSError: the system does not tell.
    """
    try:
        mode = folder.stat().st_mode  # asked once: another process may make the folder at this moment
    except FileNotFoundError:
        return
    found = ""
    if stat.S_ISDIR(mode):
        there = {one.name for one in folder.iterdir()} - {"lost+found"}
        if there and not there & {"lock.mdb", "data.mdb"}:  # the lock comes first where others open it at this moment
            found = "a folder with other things in it"
    else:
        found = "a file"
    if found:
        raise UserStoreError(complain(folder, found, "an LMDB folder, an empty one or a free path"))


def claim(url: str | None, store: Path, create: bool) -> Callable[[], tuple[str, str]]:
    """Finds the user store of a server that starts, or makes it: inside the bundle store, or where `create` says so.

    A process of its own does, and the caller may do other things until it asks what was found.

    Args:
        url: of the user store; None for the one inside the bundle store.
        store: the bundle store.
        create: makes a store at any place.

    Returns:
        What waits for the process, once, and returns the id of the store, which workers hold theirs against, empty
        where it cannot be read; and the place of a store that was made. It raises as this function does.

    Raises:
        ConfigError: a URL of no known kind, or a malformed one.
        UserStoreError: there is no store where one should be, or it cannot be made.
    """
    folder = folder_of(url, store)
    if folder is None:
        return _claim_redis(url or "")
    try:
        refuse_other(folder)
        there = (folder / "data.mdb").exists()
    except OSError as error:
        raise UserStoreError(complain(folder, error.strerror or str(error), EXPECTED)) from None
    if not there and not create and url is not None:
        raise UserStoreError(complain(f"--users {url}", "no user store", "one; --users-create makes it"))
    asked = _ask([str(folder)], "", f"{folder}: no answer within {_OPEN_S:g} s")

    def found() -> tuple[str, str]:
        code, identity, reason = asked()
        if code == 0:
            return identity, "" if there else str(folder)
        if not there:
            raise UserStoreError(reason or f"{folder}: found exit code {code}")
        how = f"user store {folder}: reading it ended with signal {-code}" if code < 0 else reason
        _log.error("starting without the user store: %s", how)
        return "", ""

    return found


def _claim_redis(url: str) -> Callable[[], tuple[str, str]]:
    """The same for a store on Redis, which is served without where it does not answer now."""
    asked = _ask(["--redis"], url, f"user store on Redis: no answer within {_OPEN_S:g} s")

    def found() -> tuple[str, str]:
        code, said, reason = asked()
        if code == _NO_ADDRESS:
            raise ConfigError(reason)
        if code:
            _log.error("starting without the user store: %s", reason)
        identity, _, place = said.partition(" ")
        return identity, place

    return found


def _ask(arguments: list[str], given: str, late: str) -> Callable[[], tuple[int, str, str]]:
    """Has a process of its own look at a store; what waits for its exit code, output, and last line of errors."""
    command = [sys.executable, "-P", "-m", "lhydra.users.place", *arguments]
    process = subprocess.Popen(command, stdin=_PIPE, stdout=_PIPE, stderr=_PIPE, text=True)

    def asked() -> tuple[int, str, str]:
        with process:
            try:
                said, errors = process.communicate(given, timeout=_OPEN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                return 1, "", late
        return process.returncode, said.strip(), (errors.strip().splitlines() or [""])[-1]

    return asked


def try_files(folder: Path) -> None:
    """Has a process of its own read all of a store, and write to it once.

    Args:
        folder: of the store.

    Raises:
        UserStoreError: the process fails or dies of it.
    """
    command = [sys.executable, "-P", "-m", "lhydra.users.place", str(folder), "--all"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TRY_S, check=False)
    except subprocess.TimeoutExpired:
        raise UserStoreError(complain(folder, f"no end of reading it in {_TRY_S:g} s", "a faster disk")) from None
    if done.returncode < 0:
        found = f"a process that read it and ended with signal {-done.returncode}"
        raise UserStoreError(complain(folder, found, "the whole files: restore the backup"))
    if done.returncode:
        raise UserStoreError((done.stderr.strip().splitlines() or [f"{folder}: exit code {done.returncode}"])[-1])


def main() -> int:
    """Opens the store whose folder is the argument, makes it where there is none, and prints its id.

    With `--all` it makes none, and reads every value of an old one. With `--redis` the store is the one whose URL is on
    stdin, since it may hold a password; where its database was empty, the place follows the id.

    Returns:
        The exit code.
    """
    from lhydra.users.environment import Environment
    from lhydra.users.opened import try_all_of

    try:
        if sys.argv[1:] == ["--redis"]:
            print(_redis_identity(sys.stdin.read()))
            return 0
        try_all = sys.argv[2:] == ["--all"]
        environment = Environment(Path(sys.argv[1]), sync_s=0, create=not try_all)
        if try_all:
            with environment.reading() as txn:
                try_all_of(environment.raw, txn)
            environment.write(lambda txn: txn.delete(b"no such key"))
        if not environment.identity:
            environment.write(lambda transaction: None)  # the first write gives it one
        print(environment.identity)
        environment.close()
    except (ConfigError, MissingExtra) as error:
        print(error, file=sys.stderr)
        return _NO_ADDRESS
    except UserStoreError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _redis_identity(url: str) -> str:
    from lhydra.users.store import open_users, redacted

    identity, empty = cast("RedisUsers", open_users(url, Path())).claim()
    return f"{identity} {redacted(url)}" if empty else identity


if __name__ == "__main__":
    sys.exit(main())
