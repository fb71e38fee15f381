"""Stores that fail: Redis frozen, slow, killed; disks that are full, read-only or stalled. Lists go on."""

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.drills.callers import Callers, wait_for
from benchmarks.drills.server import serve
from benchmarks.drills.service import answered, mounted
from benchmarks.drills.verdict import Verdict, not_run
from benchmarks.drills.world import K, World, command, publish
from lhydra_client import Client, ClientError, Play

BACK_S = 5.0  # until lists know their listeners again, once the store is well
STALL_S, SWAP_S = 20.0, 10.0  # how long a file system stalls; until another bundle is served once it moves
ADDED_MS = 10.0  # that a call may take longer without its store


class Relay:
    """A TCP relay to a port of this machine that can be slow.

    Args:
        port: to carry to.
    """

    def __init__(self, port: int) -> None:
        self.delay_s, self._to = 0.0, ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(self._to) as far:
            while True:
                for one in select.select([near, far], [], [])[0]:
                    data = one.recv(65_536)
                    if not data:
                        return
                    if one is near:
                        time.sleep(self.delay_s)
                    (far if one is near else near).sendall(data)

    def close(self) -> None:
        """Takes no more connections."""
        self._listener.close()


@contextlib.contextmanager
def _redis(folder: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    words = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with subprocess.Popen([*words, "--appendonly", "yes"], stdout=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: _listens(port))
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")
    return False


def redis(world: World) -> list[Verdict]:
    """Freezes, slows and kills Redis under load, and lets it come back.

    Args:
        world: to serve.

    Returns:
        The rows of the table.
    """
    target = f"0 failed, no list of another bundle, at most {ADDED_MS:g} ms more in the median, well {BACK_S:g} s after"
    if shutil.which("redis-server") is None:
        return [not_run("Redis frozen, slow, killed", target, "no redis-server: apt-get install redis-server")]
    folder = world.folder / "redis"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    rows, relay = [], Relay(port)
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(_redis(folder, port))
        command("users", "load", world.dataset, "--users", f"redis://127.0.0.1:{port}/0", "--store", world.store)
        url = f"redis://127.0.0.1:{relay.port}/0"
        server = stack.enter_context(serve(world.copy("redised"), world.folder / "redis.log", users=url))
        server.settled(world.bundles[0])
        for name in ("frozen", "slow by 200 ms", "killed"):
            with Callers(server.address, world, pause_s=0.005, allow=lambda why: why == ["user_store"]) as callers:
                callers.more(200)
                steady_ms = float(np.median(callers.took_ms))
                callers.took_ms.clear()
                if name == "frozen":
                    process.send_signal(signal.SIGSTOP)
                elif name == "killed":
                    process.kill()
                    process.wait()
                else:
                    relay.delay_s = 0.2
                wait_for(lambda: len(callers.took_ms) >= 300)
                harmed_ms = float(np.median(callers.took_ms))
                process.send_signal(signal.SIGCONT)
                relay.delay_s = 0.0
                if name == "killed":
                    process = stack.enter_context(_redis(folder, port))
                back_s = _seconds_until_well(server.address, world)
                callers.more(200)
            found = callers.figures()
            failed = found["failed_with_our_client"] + found["failed_without_retries"] + found["mixed"]
            measured = f"{failed} of {found['calls']:,} failed, {callers.degraded:,} said they did without it, "
            measured += f"{harmed_ms - steady_ms:+.1f} ms, well after {back_s:.1f} s"
            met = not failed and callers.degraded > 0 and harmed_ms - steady_ms <= ADDED_MS and back_s <= BACK_S
            rows.append(Verdict(f"Redis {name}: lists go on without it", target, measured, met))
    relay.close()
    return rows


def _seconds_until_well(address: str, world: World) -> float:
    """Until ten new connections in a row get a list that knows its listener."""
    started, streak = time.monotonic(), 0
    while streak < 10 and time.monotonic() - started < 60:
        with Client(address, timeout_s=10) as client, contextlib.suppress(ClientError):
            streak = 0 if client.recommend(world.users[0], k=K, now_s=world.now_s).degraded else streak + 1
            continue
        streak = 0
    return time.monotonic() - started


@contextlib.contextmanager
def _tmpfs(folder: Path, size: str) -> Iterator[str]:
    """A file system in memory; yields why there is none, or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    why = mounted(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)])
    try:
        yield why
    finally:
        if not why:
            mounted(["umount", "-l", str(folder)])


def full(world: World) -> list[Verdict]:
    """Fills the disk of a store, and runs the commands that write.

    Args:
        world: to serve.

    Returns:
        The rows of the table.
    """
    promise, target = (
        "disk full: commands say so in a line and leave nothing",
        "exit code not 0, one line, store as before",
    )
    plays = "disk full: plays are refused, lists go on, and plays are taken again when there is room"
    folder = world.folder / "small"
    with _tmpfs(folder, "1g") as why:
        if why:
            return [not_run(promise, target, why)]
        store = Path(shutil.copytree(world.store, folder / "store"))
        rows, wrong = [], []
        with serve(store, world.folder / "full.log") as server:
            server.settled(world.bundles[0])
            with (
                Callers(server.address, world, pause_s=0.01) as callers,
                Client(server.address, timeout_s=10) as client,
            ):
                client.record_plays([Play("room", "T0000001")])
                _fill(folder / "filler")
                refused = [_refusal(client, _many(i)) for i in range(40)]
                before = _tree(folder)
                demo = world.folder / "demo"
                for words in (
                    (
                        "index",
                        "rebuild",
                        "--model",
                        demo / "model",
                        "--data",
                        world.dataset,
                        "--store",
                        store,
                        "--force",
                    ),
                    ("users", "load", world.dataset, "--users", f"lmdb:{folder / 'users.lmdb.more'}"),
                    ("prepare", demo / "world", folder / "dataset"),
                    ("train", world.dataset, folder / "model", "--epochs", 1, "--head-epochs", 1),
                    (
                        "recommend",
                        world.dataset,
                        store,
                        "--users",
                        ",".join(world.users),
                        "--out",
                        folder / "lists.csv",
                    ),
                ):
                    ended = command(*words, ok=False)
                    said = ended.stderr.strip().splitlines()
                    if ended.returncode == 0 or not said or "Traceback" in ended.stderr:
                        wrong.append(f"{words[0]}: exit {ended.returncode}, {said[-1:]}")
                left = sorted(map(str, _tree(folder) - before))
                (folder / "filler").unlink()
                again = answered(lambda: client.record_plays([Play("again", "T0000001")]))
            found = callers.figures()
        failed = found["failed_with_our_client"] + found["mixed"]
        measured = "; ".join([*wrong, *(f"left {path}" for path in left)]) or "5 commands did"
        rows.append(Verdict(promise, target, measured, not wrong and not left))
        unavailable = refused.count("Unavailable")
        otherwise = len(refused) - unavailable - refused.count("")
        measured = f"{unavailable} of {len(refused)} batches refused and {otherwise} failed otherwise, "
        measured += f"{failed} of {found['calls']:,} lists failed, {'taken' if again else 'refused'} after"
        met = unavailable > 0 and not otherwise and not failed and again
        rows.append(Verdict(plays, "some refused as Unavailable, 0 lists failed, taken again", measured, met))
        return rows


def _refusal(client: Client, plays: list[Play]) -> str:
    """The name of the error by which plays are refused; nothing where they are taken."""
    try:
        client.record_plays(plays)
    except ClientError as error:
        return type(error).__name__
    return ""


def _many(batch: int) -> list[Play]:
    return [Play(f"full-{batch}-{i}", f"T{i:07}") for i in range(500)]


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        for size in (2**20, 4096):
            with contextlib.suppress(OSError):
                while filler.write(bytes(size)):
                    pass


def _tree(folder: Path) -> set[Path]:
    """What a user takes for a result: no hidden files, which the next run sweeps, no user store, no run to resume."""
    found = {path.relative_to(folder) for path in folder.rglob("*")}
    unfinished = {path for path in found if path.parts[0] == "model" and not (folder / "model/model.json").exists()}
    return {path for path in found - unfinished if not any(re.match(r"\.|users\.lmdb", part) for part in path.parts)}


def read_only(world: World) -> list[Verdict]:
    """Serves a store that nobody can write to.

    Args:
        world: to serve.

    Returns:
        The rows of the table.
    """
    promise, target = "read-only store: lists go on, plays are refused", "0 failed, every play refused"
    store = world.copy("read_only")
    if why := mounted(["mount", "--bind", str(store), str(store)]):
        return [not_run(promise, target, why)]
    try:
        if why := mounted(["mount", "-o", "remount,ro,bind", str(store)]):
            return [not_run(promise, target, why)]
        with serve(store, world.folder / "read_only.log") as server:
            server.settled(world.bundles[0])
            known = Callers(server.address, world, pause_s=0.005, allow=lambda why: why == ["user_store"])
            with known as callers, Client(server.address, timeout_s=10) as client:
                refused = [not answered(lambda: client.record_plays([Play(f"ro-{i}", "T0000001")])) for i in range(20)]  # noqa: B023
                callers.more(200)
            found = callers.figures()
    finally:
        mounted(["umount", "-l", str(store)])
    failed = found["failed_with_our_client"] + found["failed_without_retries"] + found["mixed"]
    measured = f"{failed} of {found['calls']:,} failed, {sum(refused)} of {len(refused)} plays refused"
    return [Verdict(promise, target, measured, not failed and all(refused))]


def stalled(world: World) -> list[Verdict]:
    """Stalls the file system of a store: with another bundle to move to, and with the listeners on it.

    Args:
        world: to serve.

    Returns:
        The rows of the table.
    """
    promise = "bundles on a file system that stalls as another is published: lists go on, and the swap comes after"
    target = f"0 failed, the other bundle served within {SWAP_S:g} s after"
    users = "listeners on a file system that stalls: lists wait with it, and are well again after"
    well = f"well within {BACK_S:g} s after, plays taken"
    image, folder = world.folder / "disk.img", world.folder / "disk"
    folder.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(2**30)
    steps = (["mkfs.ext4", "-q", "-F", str(image)], ["mount", "-o", "loop", str(image), str(folder)])
    if why := next(filter(None, map(mounted, steps)), ""):
        return [not_run(promise, target, why)]
    try:
        store = Path(shutil.copytree(world.store, folder / "store"))
        elsewhere = world.copy("elsewhere") / "users.lmdb"
        with serve(store, world.folder / "stalled.log", users=f"lmdb:{elsewhere}") as server:
            server.settled(world.bundles[0])
            with Callers(server.address, world, pause_s=0.01) as callers:
                os.sync()
                publish(store, world.bundles[1])
                with _frozen(folder) as why:
                    callers.more(0 if why else 1_000)
                    time.sleep(0 if why else STALL_S)
                started = time.monotonic()
                if not why:
                    server.settled(world.bundles[1])
                swap_s = time.monotonic() - started
            found = callers.figures()
        if why:
            return [not_run(promise, target, why)]
        with serve(store, world.folder / "stalled_users.log") as server:
            server.settled(world.bundles[1])
            with _frozen(folder), Callers(server.address, world, timeout_s=2.0, least=0):
                time.sleep(STALL_S)
            back_s = _seconds_until_well(server.address, world)
            with Client(server.address, timeout_s=10) as client:
                taken = answered(lambda: client.record_plays([Play("after", "T0000001")]))
    finally:
        mounted(["umount", "-l", str(folder)])
    failed = found["failed_with_our_client"] + found["failed_without_retries"] + found["mixed"]
    after = f"well after {back_s:.1f} s, plays {'taken' if taken else 'refused'}"
    return [
        Verdict(
            promise,
            target,
            f"{failed} of {found['calls']:,} failed, served after {swap_s:.1f} s",
            not failed and swap_s <= SWAP_S,
        ),
        Verdict(users, well, after, back_s <= BACK_S and taken),
    ]


@contextlib.contextmanager
def _frozen(folder: Path) -> Iterator[str]:
    """A file system on which writes wait; yields why that cannot be, or nothing."""
    os.sync()
    why = mounted(["fsfreeze", "-f", str(folder)])
    try:
        yield why
    finally:
        if not why:
            mounted(["fsfreeze", "-u", str(folder)])
