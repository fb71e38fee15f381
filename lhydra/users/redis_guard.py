"""A Redis server asked with a limit to every wait: through a circuit breaker, while it holds the same store."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import redis

from lhydra.errors import DeadlineExceeded, UserStoreError, complain
from lhydra.users.breaker import Breaker, BreakerOpen
from lhydra.users.connections import Address, Connections
from lhydra.users.redis_values import reason

_UNREACHED = (redis.ConnectionError, redis.TimeoutError)


class GuardedServer:
    """The connections to one server, and what they are refused for. Opening it asks nothing of the server.

    Args:
        address: of the server.
        identity: of the store that it must hold; empty: the one found first; None: any, at any time.
        clock: monotonic, in seconds, for the circuit breaker.
    """

    def __init__(self, address: Address, identity: str | None, clock: Callable[[], float]) -> None:
        self.address, self.identity = address, identity
        self.breaker = Breaker(f"user store {address}", _UNREACHED, clock=clock)
        self._connections = Connections(address)
        self._connections.prepare()

    def close(self) -> None:
        """Closes the connections; the server makes its data durable by its own settings."""
        self._connections.close()

    @contextmanager
    def _connection(self, budget_s: float, deadline_s: float = math.inf) -> Iterator[redis.Connection]:
        wait_s = self._left(budget_s, deadline_s)
        try:
            with self.breaker.attempt():
                try:
                    with self._connections.use(wait_s) as connection:
                        yield connection
                except redis.TimeoutError:
                    self._left(budget_s, deadline_s)  # the caller's time may have ended first: no fault of the server
                    raise
        except BreakerOpen:
            raise self._failed("no answer a moment ago") from None
        except redis.RedisError as error:
            raise self._failed(reason(error, budget_s)) from None

    def _check(self, found: bytes | None) -> None:
        """Raises where the store is another one than it was."""
        identity = (found or b"").decode(errors="replace")
        if self.identity == "":
            self.identity = identity
        if self.identity not in (None, identity):
            expected = f"store {self.identity}, which was served: put it back, or restart the server"
            there = f"store {identity}" if identity else "no store: the database was emptied, or is another one"
            raise UserStoreError(complain(f"user store {self.address}", there, expected))

    def _left(self, budget_s: float, deadline_s: float) -> float:
        """How long to wait for one step: the budget, or what is left to the caller, in seconds above 0."""
        if (left_s := deadline_s - time.monotonic()) <= 0:
            raise DeadlineExceeded(f"the deadline passed while user store {self.address} was asked")
        return min(budget_s, left_s)

    def _failed(self, found: str) -> UserStoreError:
        return UserStoreError(complain(f"user store {self.address}", found, "a Redis server that answers"))
