"""A unix socket as the address of a server: each worker binds a name beside the path and is then renamed over it.

Two processes cannot share a listening unix socket as they share a port, so one worker has it at a time. A rename has
no moment without a socket: until it, connections reach the worker before, from then on the new one.
"""

import contextlib
import hashlib
import itertools
import os
import socket
import stat
import sys
from types import TracebackType
from urllib.parse import quote, unquote

from lhydra.errors import ConfigError, PortInUse, complain

SCHEME = "unix:"
MAX_PATH_BYTES = 107  # of a unix socket
SUFFIX_BYTES = 20  # room for the names beside it
MODE = 0o660  # its owner and its group may connect; the folder may narrow that


class SocketFile:
    """Holds the path of a socket for one worker after another, as long as the context lasts.

    Args:
        host: unix:PATH.

    Raises:
        PortInUse: a server listens there, or is about to.
        ConfigError: something else is there, or nothing can be.
    """

    def __init__(self, host: str) -> None:
        name = host.removeprefix(SCHEME)
        name = name[2:] if name.startswith("///") else name  # unix:///PATH, as gRPC writes it too
        folder = os.path.realpath(os.path.dirname(name) or ".")
        self._path = os.path.join(folder, os.path.basename(name))
        self.address = address_of(self._path)
        self._beside: list[str] = []  # names that workers bind, or have bound, and that are not the path yet
        self._count = itertools.count()
        self._inode = 0
        self._claim: socket.socket | None = None
        size, most = len(os.fsencode(self._path)), MAX_PATH_BYTES - SUFFIX_BYTES
        if not os.path.basename(name) or "\0" in name:
            raise ConfigError(complain("--host", host, "unix:PATH, of a socket"))
        if size > most:
            raise ConfigError(complain("--host", f"a path of {size} bytes", f"at most {most}"))
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(complain("--host", host, f"a folder {folder} that this process may write to"))
        self._look()

    def _look(self) -> None:
        """Refuses a path that is taken; what a server that was killed has left is none."""
        in_use = PortInUse(complain(f"address {self.address}", "the socket in use", "another path"))
        if sys.platform == "linux":  # two that start together must not both find it free
            self._claim = socket.socket(socket.AF_UNIX)
            try:
                self._claim.bind("\0lhydra-" + hashlib.sha256(os.fsencode(self._path)).hexdigest())
            except OSError:
                self._claim.close()
                raise in_use from None
        try:
            if not stat.S_ISSOCK(os.lstat(self._path).st_mode):
                raise ConfigError(complain(f"address {self.address}", "a file that is no socket", "another path"))
            if _answers(self._path):
                raise in_use
        except FileNotFoundError:
            pass
        except BaseException:
            self._release()
            raise

    def __enter__(self) -> "SocketFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path in [*self._beside, *([self._path] if self._is_ours() else [])]:
            with contextlib.suppress(OSError):
                os.unlink(path)
        self._release()

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.close()

    def for_worker(self) -> str:
        """Names what one more worker is to bind.

        Returns:
            An address that no worker had before.
        """
        for path in [path for path in self._beside if os.path.exists(path) and not _answers(path)]:
            self._beside.remove(path)  # its worker died before it served
            with contextlib.suppress(OSError):
                os.unlink(path)
        self._beside.append(
            f"{self._path}.{os.getpid()}.{next(self._count)}"
        )  # gRPC unlinks what it has bound: no twice
        return address_of(self._beside[-1])

    def publish(self, address: str) -> None:
        """Lets new connections reach a worker; one that they reach already stays as it is.

        Args:
            address: that the worker has bound.

        Raises:
            OSError: the folder is gone, or may not be written to any more.
        """
        path = path_of(address)
        if path in self._beside:
            os.rename(path, self._path)
            self._beside.remove(path)
            self._inode = os.lstat(self._path).st_ino

    def lost(self) -> bool:
        """Tells, once, that the socket was taken away, so that nobody can connect any more.

        Returns:
            False as long as nothing is published, or where another server listens now.
        """
        lost = bool(self._inode) and not self._is_ours() and not _answers(self._path)
        if lost:
            self._inode = 0
        return lost

    def _is_ours(self) -> bool:
        try:
            return os.lstat(self._path).st_ino == self._inode
        except OSError:
            return False


def address_of(path: str) -> str:
    """Writes a path as gRPC takes it.

    Args:
        path: of a socket.

    Returns:
        unix:PATH with what is special in a URI escaped.
    """
    return SCHEME + quote(path)


def path_of(address: str) -> str:
    """Reads what `address_of` wrote.

    Args:
        address: unix:PATH.

    Returns:
        The path of the socket; empty for an address that is none.
    """
    return unquote(address.removeprefix(SCHEME)) if address.startswith(SCHEME) else ""


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)
        try:
            asking.connect(path)
        except BlockingIOError:  # more connections wait than it takes
            return True
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:
            raise ConfigError(complain(f"address {address_of(path)}", str(error.strerror), "another path")) from None
    return True
