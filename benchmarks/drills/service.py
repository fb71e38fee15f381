"""Swaps under load, for a while and for long: nobody notices."""

import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from statistics import median

import numpy as np

from benchmarks.drills.callers import Callers, wait_for
from benchmarks.drills.server import serve
from benchmarks.drills.verdict import Verdict
from benchmarks.drills.world import K, World, publish
from lhydra_client import Client, ClientError, Play

PLAIN_SHARE = 0.001  # of calls without retries that may fail while a bundle is swapped
RESTART_SHARE = 0.0001  # a restart takes seconds: what it cuts off is little among all calls
GROWTH_MIB, GROWTH = 10.0, 2
SLOPE_MIB_PER_MIN = 1.0


def swaps(world: World, times: int = 50) -> list[Verdict]:
    """Publishes one bundle after the other as fast as the server follows, while callers hold every list to its bundle.

    Args:
        world: to serve.
        times: how often.

    Returns:
        The rows of the table.
    """
    store, held = world.copy("swapped"), []
    with serve(store, world.folder / "swaps.log") as server:
        server.settled(world.bundles[0])
        with Callers(server.address, world, pause_s=0.01) as callers:
            callers.more(500)
            steady_ms = callers.p99_ms()
            started = time.monotonic()
            for i in range(times):
                bundle = world.bundles[(i + 1) % 2]
                publish(store, bundle)
                server.settled(bundle)
                held.append(server.holds())
            took_s, swaps_ms = time.monotonic() - started, callers.p99_ms()
        found, errors = callers.figures(), server.errors()
    plain = _plain_share(callers)
    fifth = max(times // 5, 1)
    grown = {
        name: median(one[name] for one in held[-fifth:]) - median(one[name] for one in held[:fifth]) for name in held[0]
    }
    what = f"{times} swaps in {took_s:.0f} s, {found['calls']:,} calls"
    return [
        Verdict(
            f"swaps under load fail no call of our client ({what})",
            "0 failed",
            f"{found['failed_with_our_client']} failed; p99 {swaps_ms:.0f} ms, {steady_ms:.0f} ms before",
            not found["failed_with_our_client"] and not errors,
        ),
        Verdict("swaps, callers without retries", "at most .1 %", f"{100 * plain:.3f} % failed", plain <= PLAIN_SHARE),
        Verdict(
            "no answer mixes two bundles: every id and score held to the bundle it names",
            "0 mixed",
            f"{found['mixed']} of {found['calls']:,} mixed",
            not found["mixed"] and min(callers.bundles[bundle] for bundle in world.bundles) > 0,
        ),
        Verdict(
            "swaps leave nothing behind: last fifth against first",
            f"at most {GROWTH_MIB:g} MiB, {GROWTH} descriptors, {GROWTH} threads more",
            ", ".join(f"{value:+.1f} {name}" for name, value in grown.items()),
            grown["mib"] <= GROWTH_MIB and max(grown["descriptors"], grown["threads"]) <= GROWTH,
        ),
    ]


def restarts(world: World, times: int = 10) -> list[Verdict]:
    """Ends and starts one of two servers after the other, while callers who know both ask.

    Args:
        world: to serve.
        times: how often, of both together.

    Returns:
        The rows of the table.
    """
    stores = [world.copy(f"restarted-{i}") for i in range(2)]
    logs = [world.folder / f"restarts-{i}.log" for i in range(2)]
    errors: list[str] = []
    with ExitStack() as one, ExitStack() as other:
        servers = [
            stack.enter_context(serve(store, log, workers=1))
            for stack, store, log in zip((one, other), stores, logs, strict=True)
        ]
        for server in servers:
            server.settled(world.bundles[0], workers=1)
        address = "ipv4:" + ",".join(server.address for server in servers)
        with Callers(address, world, plain=6, pause_s=0.005) as callers:
            for i in range(times):
                server, stack = servers[i % 2], (one, other)[i % 2]
                stack.close()
                errors += server.errors()
                port = server.address.rpartition(":")[2]
                again = serve(stores[i % 2], logs[i % 2], "--port", port, workers=1)
                servers[i % 2] = stack.enter_context(again)
                servers[i % 2].settled(world.bundles[0], workers=1)
                callers.more(1_000)
        found = callers.figures()
        errors += [line for server in servers for line in server.errors()]
    plain, failed = _plain_share(callers), found["failed_with_our_client"] + found["mixed"]
    return [
        Verdict(
            f"one of two servers restarts after the other ({times} times, {found['calls']:,} calls)",
            "0 failed of our client",
            f"{failed} failed",
            not failed and not errors,
        ),
        Verdict(
            "restarts, callers without retries", "at most .01 %", f"{100 * plain:.3f} % failed", plain <= RESTART_SHARE
        ),
    ]


def same(world: World, times: int = 1_000) -> list[Verdict]:
    """Asks the same again and again: of one worker, and of two after a restart.

    Args:
        world: to serve.
        times: how often, of each server.

    Returns:
        The rows of the table.
    """
    store, user = world.copy("same"), world.users[0]
    tracks, scores = set[tuple[str, ...]](), list[list[float]]()
    for workers in (1, 2):
        with serve(store, world.folder / "same.log", workers=workers) as server:
            server.settled(world.bundles[0], workers)
            for _ in range(10):  # connections, of which each reaches any worker
                with Client(server.address, timeout_s=10) as client:
                    for _ in range(times // 10):
                        found = client.recommend(user, k=K, now_s=world.now_s).tracks
                        tracks.add(tuple(track.track_id for track in found))
                        scores.append([track.score for track in found])
    apart = float(np.ptp(np.array(scores), axis=0).max()) if len(tracks) == 1 else np.inf
    return [
        Verdict(
            f"the same request {times:,} times of one worker, and of two after a restart",
            "one list, scores within 1e-6",
            f"{len(tracks)} list" + "s" * (len(tracks) > 1) + f", scores within {apart:.1e}",
            apart <= 1e-6,
        )
    ]


def soak(world: World, seconds: float = 600.0, every_s: float = 10.0) -> list[Verdict]:
    """Half load, plays, and a swap now and then, for long: memory, descriptors and threads stay.

    Args:
        world: to serve.
        seconds: how long.
        every_s: seconds between two swaps.

    Returns:
        The rows of the table.
    """
    store, held, recorded = world.copy("soaked"), list[tuple[float, dict[str, float]]](), 0
    with serve(store, world.folder / "soak.log") as server:
        server.settled(world.bundles[0])
        with (
            Callers(server.address, world, ours=2, plain=1, pause_s=0.005) as callers,
            Client(server.address, timeout_s=10) as client,
        ):
            started, i = time.monotonic(), 0
            while time.monotonic() - started < seconds:
                i += 1
                publish(store, world.bundles[i % 2])
                server.settled(world.bundles[i % 2])
                plays = [Play(f"soak-{n}", "T0000001", timestamp_s=world.now_s) for n in range(200)]
                recorded += client.record_plays(plays).recorded
                held.append(((time.monotonic() - started) / 60, server.holds()))
                wait_for(lambda goal=started + i * every_s: time.monotonic() >= goal)  # type: ignore[misc]
        found, errors = callers.figures(), server.errors()
    warm = held[len(held) // 4 :]  # pages of the store are read in at first
    minutes = np.array([at for at, _ in warm])
    slopes = {name: float(np.polyfit(minutes, [one[name] for _, one in warm], 1)[0]) for name in warm[0][1]}
    failed, plain = found["failed_with_our_client"] + found["mixed"], _plain_share(callers)
    what = f"{seconds:g} s, {i} swaps, {found['calls']:,} calls, {recorded:,} plays"
    return [
        Verdict(
            f"soak: no call of our client fails, no answer is mixed ({what})",
            "0 failed",
            f"{failed} failed",
            not failed and not errors,
        ),
        Verdict("soak, callers without retries", "at most .1 %", f"{100 * plain:.4f} % failed", plain <= PLAIN_SHARE),
        Verdict(
            "soak: memory after warm-up",
            f"at most {SLOPE_MIB_PER_MIN:g} MiB a minute",
            f"{slopes['mib']:+.2f} MiB a minute",
            slopes["mib"] <= SLOPE_MIB_PER_MIN,
        ),
        Verdict(
            "soak: descriptors and threads",
            "flat: less than 1 a minute",
            f"{slopes['descriptors']:+.2f} descriptors, {slopes['threads']:+.2f} threads a minute",
            max(slopes["descriptors"], slopes["threads"]) < 1,
        ),
    ]


def _plain_share(callers: Callers) -> float:
    """Of the calls without retries that failed: a connection may end as one is sent."""
    failed: int = callers.figures()["failed_without_retries"]
    return failed / max(sum(callers.plain.values()), 1)


def answered(call: Callable[[], object]) -> bool:
    """Makes a call of a client.

    Args:
        call: to make.

    Returns:
        Whether it ended well.
    """
    with suppress(ClientError):
        call()
        return True
    return False


def mounted(words: list[str]) -> str:
    """Runs a command of the system.

    Args:
        words: of it.

    Returns:
        Nothing, or why it failed.
    """
    try:
        ended = subprocess.run(words, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return ended.stderr.strip() if ended.returncode else ""
