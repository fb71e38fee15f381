"""What strangers do to a port: idle connections, pings without end, bytes that mean nothing. Callers notice nothing."""

import contextlib
import os
import random
import resource
import socket
import struct
import threading
import time

from benchmarks.drills.callers import Callers, wait_for
from benchmarks.drills.server import serve
from benchmarks.drills.service import answered
from benchmarks.drills.verdict import Verdict
from benchmarks.drills.world import K, World
from lhydra_client import Client

HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
IDLE, P99_MS, BACK_S = 2_000, 50.0, 5.0
THERE_S = 15.0  # a connection that says nothing ends with its age and grace, 7 s here, and after 10 s at the latest
PATHS = [
    f"/lhydra.v1.Recommender/{name}"
    for name in ("Recommend", "RecordPlays", "Explain", "SimilarTracks", "RecommendMany")
]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Makes an HTTP/2 frame (RFC 9113, section 4.1).

    Args:
        kind: its type.
        flags: its flags.
        stream: its stream.
        payload: at most 16,384 bytes.

    Returns:
        Its bytes.
    """
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def call(stream: int, path: str, body: bytes) -> bytes:
    """Makes the frames of one gRPC call with any bytes for its message.

    Args:
        stream: odd number.
        path: of the method.
        body: the message.

    Returns:
        Their bytes.
    """
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "drill",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in pair) for pair in fields.items())
    return frame(1, 4, stream, block) + frame(0, 1, stream, b"\0" + struct.pack(">I", len(body)) + body)


def _place(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def idle(world: World) -> list[Verdict]:
    """Opens thousands of connections that say nothing, to a server as it is and to one with few descriptors.

    Args:
        world: to serve.

    Returns:
        The rows of the table.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, IDLE + 500), hard))
    usual = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))  # noqa: E731
    rows = []
    try:
        with (
            serve(world.copy("idled"), world.folder / "idle.log", before=usual) as server,
            contextlib.ExitStack() as stack,
        ):
            server.settled(world.bundles[0])
            for _ in range(IDLE):
                stack.enter_context(socket.create_connection(_place(server.address), timeout=30))
            with Callers(server.address, world, pause_s=0.005) as callers:
                wait_for(lambda: len(callers.took_ms) >= 1_000)
            found, p99 = callers.figures(), callers.p99_ms()
        failed = found["failed_with_our_client"] + found["failed_without_retries"] + found["mixed"]
        rows.append(
            Verdict(
                f"{IDLE:,} idle connections keep nobody waiting",
                f"0 failed, p99 at most {P99_MS:g} ms",
                f"{failed} of {found['calls']:,} failed, p99 {p99:.0f} ms",
                not failed and p99 <= P99_MS,
            )
        )
        few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))  # noqa: E731
        with serve(world.copy("few"), world.folder / "few.log", before=few) as server:
            server.settled(world.bundles[0])
            before = set(server.workers)
            with contextlib.ExitStack() as stack:
                for _ in range(600):
                    with contextlib.suppress(OSError):
                        stack.enter_context(socket.create_connection(_place(server.address), timeout=1))
                there_s = _seconds_until_answered(server.address, world)  # those connections say nothing, and end
                for _ in range(600):
                    with contextlib.suppress(OSError):
                        stack.enter_context(socket.create_connection(_place(server.address), timeout=1))
            gone_s = _seconds_until_answered(server.address, world)
            kept = before == set(server.workers)
        rows.append(
            Verdict(
                "out of descriptors (ulimit -n 256, 600 connections): back while they are there, and after",
                f"within {THERE_S:g} s and {BACK_S:g} s, no worker lost",
                f"{there_s:.1f} s and {gone_s:.1f} s, workers {'kept' if kept else 'lost'}",
                gone_s <= BACK_S and there_s <= THERE_S and kept,
            )
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return rows


def _seconds_until_answered(address: str, world: World) -> float:
    """Until ten new connections in a row get a list."""
    started, streak = time.monotonic(), 0
    while streak < 10 and time.monotonic() - started < 60:
        with Client(address, timeout_s=5) as client:
            right = answered(lambda: client.recommend(world.users[0], k=K))
        streak = streak + 1 if right else 0
    return time.monotonic() - started


def pings(world: World) -> list[Verdict]:
    """Pings without end from several connections: they are sent away, callers are not.

    Args:
        world: to serve.

    Returns:
        The rows of the table.
    """
    sent_away, stop = [0], threading.Event()
    with serve(world.copy("pinged"), world.folder / "pings.log") as server:
        server.settled(world.bundles[0])

        def flood() -> None:
            while not stop.is_set():
                with contextlib.suppress(OSError), socket.create_connection(_place(server.address), timeout=5) as raw:
                    raw.sendall(HELLO + frame(4, 0, 0))
                    while not stop.is_set():
                        raw.sendall(frame(6, 0, 0, bytes(8)) * 50)
                        if b"too_many_pings" in raw.recv(65_536):
                            sent_away[0] += 1
                            break

        floods = [threading.Thread(target=flood) for _ in range(4)]
        with Callers(server.address, world, pause_s=0.005) as callers:
            for one in floods:
                one.start()
            try:
                callers.more(1_000)
                with contextlib.suppress(TimeoutError):
                    wait_for(lambda: sent_away[0] > 0, 30)
            finally:
                stop.set()
                for one in floods:
                    one.join()
        found, errors = callers.figures(), server.errors()
    failed = found["failed_with_our_client"] + found["failed_without_retries"] + found["mixed"]
    return [
        Verdict(
            "floods of pings are sent away, callers are not",
            "GOAWAY too_many_pings, 0 failed",
            f"{sent_away[0]:,} sent away, {failed} of {found['calls']:,} failed",
            sent_away[0] > 0 and not failed and not errors,
        )
    ]


def noise(world: World, messages: int = 10_000, seed: int = 0) -> list[Verdict]:
    """Sends bytes that mean nothing at three depths: no HTTP/2, frames of no sense, calls whose message is noise.

    Args:
        world: to serve.
        messages: how many in all.
        seed: of the bytes.

    Returns:
        The rows of the table.
    """
    chance, inner = random.Random(seed), []
    with serve(world.copy("noised"), world.folder / "noise.log") as server:
        server.settled(world.bundles[0])
        before = set(server.workers)
        with Callers(server.address, world, ours=1, plain=1, pause_s=0.02) as callers:
            sent = 0
            while sent < messages:
                with contextlib.suppress(OSError), socket.create_connection(_place(server.address), timeout=10) as raw:
                    kind = chance.randrange(3)
                    if kind == 0:
                        raw.sendall(os.urandom(chance.randrange(1, 500)))
                        sent += 1
                        continue
                    raw.sendall(HELLO + frame(4, 0, 0) + frame(4, 1, 0))
                    for stream in range(1, 101, 2):
                        body = chance.randbytes(chance.choice((0, 1, 5, 40, 400, 4_000)))
                        if kind == 1:
                            raw.sendall(frame(chance.randrange(10), chance.randrange(256), chance.randrange(8), body))
                        else:
                            raw.sendall(call(stream, chance.choice(PATHS), body))
                        sent += 1
                    raw.shutdown(socket.SHUT_WR)
                    while data := raw.recv(65_536):
                        inner += [word for word in (b"Traceback", b"Error(", b'File "') if word in data]
        found, errors = callers.figures(), server.errors()
        kept = before == set(server.workers)
    failed = found["failed_with_our_client"] + found["failed_without_retries"] + found["mixed"]
    measured = f"{failed} of {found['calls']:,} calls failed, workers {'kept' if kept else 'lost'}, "
    measured += f"{len(inner)} inner texts, {len(errors)} errors logged"
    return [
        Verdict(
            f"{messages:,} messages of noise to the live port",
            "0 crashes, 0 failed calls of others, no inner text",
            measured,
            not failed and kept and not inner and not errors,
        )
    ]
