"""The servers that are measured: ours, ours with other flags, and peers on the same bundle."""

import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from benchmarks.latency.own_server import (
    RunningServer,
    child_environment,
    serve_command,
    start_server,
    start_web_server,
)
from benchmarks.latency.peers import PEERS, Peer
from benchmarks.latency.peers.settings import PeerSettings
from benchmarks.latency.settings import Settings
from lhydra.lines import say

OURS = "lhydra"


@dataclass(frozen=True)
class Contestant:
    """A server that can be started, again for every repeat."""

    name: str
    start: Callable[[], AbstractContextManager[RunningServer]]
    http1: bool = False


def contestants(settings: Settings, stack: ExitStack) -> Iterator[Contestant]:
    """Yields the servers to measure, ours first.

    Args:
        settings: the command line.
        stack: keeps a copy of the users for as long as the servers run.

    Yields:
        Servers; a peer whose package is not installed is left out with a line that says so.
    """
    if settings.store is None:
        address = settings.address or ""
        yield Contestant(OURS, lambda: nullcontext(RunningServer(address)))
        return
    users = None
    if {"mixed", "cases"} & set(settings.modes):  # what they record goes to a copy
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        users = _copied(settings.store / "users.lmdb", folder / "users.lmdb")
    command = serve_command(
        settings.store, settings.workers, depth=settings.depth, users=users, flags=settings.serve_flag
    )
    yield Contestant(OURS, lambda: start_server(command))
    for text in settings.variant:
        name, _, flags = text.partition("=")
        yield Contestant(name, partial(start_server, [*command, *shlex.split(flags)]))
    for name in settings.peers:
        if find_spec(PEERS[name].needs):
            yield Contestant(name, partial(_start_peer, PEERS[name], settings), http1=True)
        else:
            say(f"{name}: left out, {PEERS[name].needs} is not installed")


def _start_peer(peer: Peer, settings: Settings) -> AbstractContextManager[RunningServer]:
    assert settings.store is not None  # the settings were checked
    assert settings.model is not None
    assert settings.workers is not None
    own = PeerSettings(settings.store, settings.model, settings.depth).environment() | dict(peer.environment)
    command = [sys.executable, "-m", *peer.arguments, "--workers", str(settings.workers)]
    return start_web_server(command, settings.workers, environment=child_environment() | own)


def _copied(source: Path, to: Path) -> str | None:
    if not source.is_dir():
        return None
    to.mkdir()
    shutil.copyfile(source / "data.mdb", to / "data.mdb")
    return f"lmdb:{to}"
