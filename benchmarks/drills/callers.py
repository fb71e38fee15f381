"""Threads that ask a server without pause, and hold every answer to the bundle that it names."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np

from benchmarks.drills.world import K, World
from lhydra_client import Client, ClientError
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_protos.v1.recommender_pb2_grpc import RecommenderStub

PLAIN = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
PATIENCE_S = 120.0


class Callers:
    """Callers of our client, and callers without any retry; use as a context manager.

    Args:
        address: HOST:PORT.
        world: what is right.
        ours: callers of our client.
        plain: callers of a bare channel.
        pause_s: between two calls of one caller.
        timeout_s: of a call.
        least: calls that have ended before the block begins.
        allow: whether an answer that is not the list of its bundle is all right, such as one that says it is degraded.
    """

    def __init__(
        self,
        address: str,
        world: World,
        *,
        ours: int = 2,
        plain: int = 2,
        pause_s: float = 0.0,
        timeout_s: float = 10.0,
        least: int = 10,
        allow: Callable[[list[str]], bool] = lambda degraded: False,
    ) -> None:
        self.address, self.world, self.pause_s, self.allow = address, world, pause_s, allow
        self.timeout_s, self.least = timeout_s, least
        self.ours, self.plain = Counter[str](), Counter[str]()
        self.took_ms: list[float] = []
        self.bundles = Counter[str]()
        self.degraded = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ours, args=(i,)) for i in range(ours)]
        self._threads += [threading.Thread(target=self._plain, args=(i,)) for i in range(plain)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        self.more(self.least)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def answers(self) -> int:
        """Calls that ended, well or not."""
        return sum(self.ours.values()) + sum(self.plain.values())

    def more(self, n: int) -> None:
        """Waits until so many more calls have ended.

        Args:
            n: calls of all callers.
        """
        wait_for(lambda goal=self.answers + n: self.answers >= goal)  # type: ignore[misc]

    def p99_ms(self) -> float:
        """Returns the p99 of the answers to our client since the last time that this was asked."""
        took_ms, self.took_ms = self.took_ms, []
        return float(np.percentile(took_ms, 99))

    def figures(self) -> dict[str, Any]:
        """Returns calls and failures of both kinds of callers, by what went wrong."""
        return {
            "calls": self.answers,
            "failed_with_our_client": sum(n for code, n in self.ours.items() if code != "OK"),
            "failed_without_retries": sum(n for code, n in self.plain.items() if code not in ("OK", "mixed")),
            "mixed": self.ours["mixed"] + self.plain["mixed"],
            "codes": {code: n for code, n in (self.ours + self.plain).items() if code != "OK"},
        }

    def _ours(self, number: int) -> None:
        with Client(self.address, timeout_s=self.timeout_s) as client:
            for user in itertools.islice(itertools.cycle(self.world.users), number, None):
                if self._stop.is_set():
                    return
                started = time.perf_counter()
                try:
                    found = client.recommend(user, k=K, now_s=self.world.now_s)
                except ClientError as error:
                    self.ours[f"{type(error).__name__}: {error}"[:200]] += 1
                else:
                    tracks = [(track.track_id, track.score) for track in found.tracks]
                    self.ours[self._outcome(found.bundle_id, user, tracks, list(found.degraded))] += 1
                    self.took_ms.append(1e3 * (time.perf_counter() - started))
                time.sleep(self.pause_s)

    def _plain(self, number: int) -> None:
        with grpc.insecure_channel(self.address, PLAIN) as channel:
            ask = RecommenderStub(channel).Recommend
            for user in itertools.islice(itertools.cycle(self.world.users), number, None):
                if self._stop.is_set():
                    return
                request = pb.RecommendRequest(user_id=user, k=K, now_s=self.world.now_s)
                try:
                    reply = ask(request, timeout=self.timeout_s)
                except grpc.RpcError as error:
                    self.plain[f"{error.code().name}: {error.details()}"[:200]] += 1
                else:
                    tracks = [(track.track_id, track.score) for track in reply.tracks]
                    self.plain[self._outcome(reply.bundle_id, user, tracks, list(reply.degraded))] += 1
                time.sleep(self.pause_s)

    def _outcome(self, bundle: str, user: str, tracks: list[tuple[str, float]], degraded: list[str]) -> str:
        self.bundles[bundle] += 1
        if degraded and self.allow(degraded):
            self.degraded += 1
            return "OK"
        return "OK" if self.world.right(bundle, user, tracks) else "mixed"


def wait_for(found: Callable[[], Any], most_s: float = PATIENCE_S) -> Any:
    """Returns the first truthy value of `found`, asked again and again.

    Args:
        found: what to ask.
        most_s: seconds until it is given up.

    Returns:
        The value.

    Raises:
        TimeoutError: it never came.
    """
    last_s = time.monotonic() + most_s
    while time.monotonic() < last_s:
        if value := found():
            return value
        time.sleep(0.01)
    raise TimeoutError(f"found nothing for {most_s:g} s, expected {getattr(found, '__doc__', None) or 'an end'}")
