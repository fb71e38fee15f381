"""A connection pool for one Redis server: taking a connection never takes longer than the caller's budget.

The client library's own pool waits for name resolution, TLS and login as long as those take. Here a background
thread makes each connection; a caller whose budget ends leaves, and a later one finds the connection ready.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import redis

from lhydra.errors import ConfigError, complain

MAX_CONNECTIONS = 32  # open, of one process
CONNECT_S = 1.0  # for each step of making one, in the background
ADDRESS_FORM = "redis://[USER:PASSWORD@]HOST[:PORT][/DB]"


@dataclass(frozen=True)
class Address:
    """The address of a Redis server; its text leaves out user and password, and can be shown."""

    host: str
    port: int = 6379
    db: int = 0
    tls: bool = False
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Returns the address that a URL names.

        Args:
            url: `redis://…`, or `rediss://…` for TLS.

        Returns:
            The address; port 6379 and database 0 by default.

        Raises:
            ConfigError: the URL is malformed; the message does not show it.
        """
        try:
            parts = urlsplit(url)
            host, port, db = parts.hostname or "", parts.port or 6379, parts.path.strip("/") or "0"
            host.encode("idna")
        except ValueError:
            raise ConfigError(complain("--users", "a malformed address of a Redis server", ADDRESS_FORM)) from None
        found = [
            *(["no host"] if not host else []),
            *(["a database that is no number"] if not (db.isascii() and db.isdigit()) else []),
            *(["options behind the database"] if parts.query or parts.fragment else []),
        ]
        if found:
            raise ConfigError(complain("--users", f"{found[0]} in the address of a Redis server", ADDRESS_FORM))
        user, password = (unquote(text) if text else None for text in (parts.username, parts.password))
        return cls(host, port, int(db), parts.scheme == "rediss", user, password)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"


class Connections:
    """At most MAX_CONNECTIONS connections, kept open for the next caller; safe to use from several threads.

    Args:
        address: of the server.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._changed = threading.Condition()
        self._idle: list[redis.Connection] = []  # the one used last is taken first
        self._open, self._closed = 0, False

    @property
    def n_open(self) -> int:
        """How many connections there are, those being made included."""
        with self._changed:
            return self._open

    def prepare(self) -> None:
        """Starts making a connection in the background, for the first caller."""
        with self._changed:
            self._open += 1
        nobody: Future[redis.Connection] = Future()
        nobody.cancel()
        self._dial(nobody)

    @contextmanager
    def use(self, budget_s: float) -> Iterator[redis.Connection]:
        """Lends a connection to the block; closes it if the block raises.

        Args:
            budget_s: seconds for taking it; what is left of them limits each step on it.

        Yields:
            The connection.

        Raises:
            redis.RedisError: no connection in time, or the server refuses it.
        """
        deadline = time.monotonic() + budget_s
        connection = self._take(deadline)
        try:
            limit(connection, deadline - time.monotonic())
            yield connection
        except BaseException:
            self._drop(connection)
            raise
        self._give_back(connection)

    def close(self) -> None:
        """Closes the idle connections now, and the others when they come back."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            self._drop(connection)

    def _take(self, deadline: float) -> redis.Connection:
        while True:
            with self._changed:
                if not self._changed.wait_for(
                    lambda: self._idle or self._open < MAX_CONNECTIONS, deadline - time.monotonic()
                ):
                    raise redis.TimeoutError("all connections in use")
                found = self._idle.pop() if self._idle else None
                self._open += found is None
            if found is None:
                return self._dialled(deadline)
            if not _is_stale(found):
                return found
            self._drop(found)

    def _dialled(self, deadline: float) -> redis.Connection:
        made: Future[redis.Connection] = Future()
        self._dial(made)
        try:
            return made.result(max(deadline - time.monotonic(), 0))
        except TimeoutError:
            if made.cancel():
                raise redis.TimeoutError("no connection in time") from None
            return made.result()  # it was made in the same moment

    def _dial(self, made: "Future[redis.Connection]") -> None:
        threading.Thread(target=self._connect, args=(made,), name="users-connect", daemon=True).start()

    def _connect(self, made: "Future[redis.Connection]") -> None:
        connection = self._new()
        try:
            connection.connect()
        except Exception as error:
            self._drop(connection)
            if made.set_running_or_notify_cancel():
                made.set_exception(error)
            return
        if made.set_running_or_notify_cancel():
            made.set_result(connection)
        else:
            self._give_back(connection)

    def _new(self) -> redis.Connection:
        """A connection object, not connected yet. Answers are bytes; nothing is retried."""
        address = self._address
        kind = redis.SSLConnection if address.tls else redis.Connection
        return kind(
            host=address.host,
            port=address.port,
            db=address.db,
            username=address.user,
            password=address.password,
            socket_timeout=CONNECT_S,
            socket_connect_timeout=CONNECT_S,
            protocol=2,
        )

    def _give_back(self, connection: redis.Connection) -> None:
        with self._changed:
            if not self._closed:
                self._idle.append(connection)
                self._changed.notify()
                return
        self._drop(connection)

    def _drop(self, connection: redis.Connection) -> None:
        connection.disconnect()
        with self._changed:
            self._open -= 1
            self._changed.notify()


def limit(connection: redis.Connection, wait_s: float) -> None:
    """Sets how long each step on a connection may take from now on.

    Args:
        connection: one that is in use.
        wait_s: seconds, a millisecond at least.
    """
    # Only the socket takes another timeout for each use; it is private, by this name in every version.
    connection._sock.settimeout(max(wait_s, 0.001))  # type: ignore[attr-defined]


def _is_stale(connection: redis.Connection) -> bool:
    """Whether an idle connection has something to read: its end, or an answer that no command waits for."""
    try:
        return connection.can_read()
    except redis.RedisError:
        return True
