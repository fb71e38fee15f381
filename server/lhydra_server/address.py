"""The address that all workers of a server share: holding it, and leaving it without dropping a call."""

import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from types import TracebackType

from lhydra.errors import ConfigError, PortInUse, complain

_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


def joined(host: str, port: int | str) -> str:
    """Joins a host and a port the way clients take them: an IPv6 address stands in brackets.

    Args:
        host: name or address, without brackets.
        port: of that host.

    Returns:
        HOST:PORT, or [HOST]:PORT for IPv6.
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_exposure(host: str, *, secured: bool, insecure: bool) -> None:
    """Refuses to listen beyond this machine without TLS, unless that is what is wanted.

    Args:
        host: name, address or unix:PATH, without brackets.
        secured: whether there is TLS.
        insecure: whether it is said that there need not be.

    Raises:
        ConfigError: others could read and change what is said.
    """
    if secured or insecure or host.startswith("unix:"):
        return
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4][0]
    except (socket.gaierror, UnicodeError):
        return  # `Reservation` says more
    address = ipaddress.ip_address(str(found).partition("%")[0])
    if not (getattr(address, "ipv4_mapped", None) or address).is_loopback:
        expected = "--tls-cert and --tls-key, or --insecure to listen beyond this machine without TLS"
        raise ConfigError(complain(f"--host {host}", "no TLS", expected))


class Reservation:
    """Holds a port for workers that bind it with SO_REUSEPORT, as long as the context lasts.

    A shared port can be bound by anybody's second server without an error, so it is first asked for alone.
    The socket that holds it never listens: it takes no connections.

    Args:
        host: name or address of this machine.
        port: 0 for any free one.

    Raises:
        PortInUse: somebody listens there already, or holds it.
        ConfigError: not an address of this machine, or one that may not be used.
    """

    def __init__(self, host: str, port: int) -> None:
        try:
            info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (socket.gaierror, UnicodeError) as error:
            found = f"{host or 'nothing'} ({error.strerror if isinstance(error, OSError) else error})"
            expected = "an address of this machine, without a port, or unix:PATH"
            raise ConfigError(complain("--host", found, expected)) from None
        family, kind, _, _, place = info[0]
        try:
            if port:
                with socket.socket(family, kind) as alone:
                    alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections do not count
                    alone.bind(place)
            self._held = socket.socket(family, kind)
            self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._held.bind(place)
        except OSError as error:
            thing = f"address {joined(host, port)}"
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(complain(thing, "the port in use", "a free port, or --port 0")) from None
            raise ConfigError(complain(thing, str(error.strerror), "an address this process may listen on")) from None
        name, self.port = self._held.getsockname()[:2]
        self.address = joined(name, self.port)

    def for_worker(self) -> str:
        """Names what one more worker is to bind.

        Returns:
            The address that they all share.
        """
        return self.address

    def publish(self, address: str) -> None:
        """Does nothing: new connections reach a worker as soon as it has bound the port.

        Args:
            address: that the worker has bound.
        """

    def lost(self) -> bool:
        """Tells whether nobody can connect any more.

        Returns:
            False: nobody can take the port away.
        """
        return False

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()


def stop_listening(bound: int | str) -> None:
    """Lets the other workers have all new connections; those this process has stay as they are.

    gRPC can only stop listening and stop answering in one step, and a call that arrives between that step and
    the client's learning of it fails. So the listening socket is shut beneath it.

    Args:
        bound: port, or path of a unix socket, of this process.
    """
    for opened in _sockets(bound):
        if opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            opened.shutdown(socket.SHUT_RDWR)


def count_connections(bound: int | str) -> int:
    """Counts the clients that are connected.

    Args:
        bound: port, or path of a unix socket, of this process.

    Returns:
        0 where the system cannot tell.
    """
    return sum(_is_connected(opened) for opened in _sockets(bound))


def _sockets(bound: int | str) -> Iterator[socket.socket]:
    """The sockets of this process on a port or path, as duplicates that are closed when the next one is asked for."""
    try:
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # not Linux
        return
    for descriptor in descriptors:
        try:
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            opened = socket.socket(fileno=os.dup(descriptor))
        except OSError:  # closed meanwhile
            continue
        with opened:
            name = opened.getsockname() if opened.family in _FAMILIES else None
            if bound in ((name,) if opened.family == socket.AF_UNIX else (name or ())[1:2]):
                yield opened


def _is_connected(opened: socket.socket) -> bool:
    try:
        opened.getpeername()
    except OSError:
        return False
    return True
