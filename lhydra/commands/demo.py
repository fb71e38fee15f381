"""`lhydra demo [DIR]`: the whole pipeline once, by the same commands that a user types."""

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lhydra import config
from lhydra.console import step_display
from lhydra.errors import ConfigError, LhydraError, MissingExtra, complain
from lhydra.lines import say

HELP = "synthetic world -> prepare -> train -> rebuild -> users load -> serve -> query, in minutes"
EXTRA = "all"
MARK = "lhydra-demo"  # the file that says a folder is ours to replace
PARTS = ("world", "dataset", "model", "store")
NEEDED = ("duckdb", "faiss", "onnxruntime", "torch", "onnxscript", "implicit", "lmdb", "grpc_health")


@dataclass(frozen=True)
class DemoSettings(config.Settings):
    """How large the demo is."""

    users: int = config.setting(2_000, "listeners of the synthetic world", low=1)
    tracks: int = config.setting(3_000, "tracks of the synthetic world", low=1)
    plays: int = config.setting(150_000, "plays of the synthetic world", low=1)
    epochs: int = config.setting(10, "epochs of training", low=1)
    seed: int = config.setting(0, "of world and training", low=0)
    open: bool = config.setting(False, "start the page of the demo's store at the end, until Ctrl-C")
    k: int = config.setting(10, "tracks to recommend", low=1, high=1_000)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `lhydra demo`.

    Args:
        parser: of the command.
    """
    parser.add_argument("dir", nargs="?", type=Path, default=Path("demo"), metavar="DIR", help="default: demo")
    config.add_flags(parser, DemoSettings)


def run(args: argparse.Namespace) -> int:
    """Runs every step, shows one listener's history and recommendations, and what to try next.

    Args:
        args: of the command line.

    Returns:
        0.

    Raises:
        MissingExtra: a package that some step needs is not installed.
        ConfigError: the folder is neither empty nor of an earlier demo.
        LhydraError: a step failed.
    """
    settings = config.resolve("demo", DemoSettings, args)
    for module in (*NEEDED, *(("httptools", "starlette", "uvicorn") if settings.open else ())):
        if importlib.util.find_spec(module) is None:
            raise MissingExtra(EXTRA, module)
    folder: Path = args.dir
    _claim(folder)
    world, dataset, model, store = (folder / part for part in PARTS)
    seed = ["--seed", str(settings.seed)]
    sizes = [word for name in ("users", "tracks", "plays") for word in (f"--{name}", str(getattr(settings, name)))]
    training = ["--epochs", str(settings.epochs), "--head-epochs", "2"]
    started = time.monotonic()
    _step(1, "make a synthetic listening world", ["synth", str(world), *sizes, *seed])
    _step(2, "split and check it", ["prepare", str(world), str(dataset)])
    _step(3, "train towers and head", ["train", str(dataset), str(model), *training, *seed], show="epoch")
    _step(
        4, "embed, index, prove, publish", ["index", "rebuild", "--model", model, "--data", dataset, "--store", store]
    )
    _step(5, "load profiles and histories", ["users", "load", str(dataset), "--store", str(store)])
    user_id, history = _listener(dataset)
    with _serving(store) as address:
        print(f"\n{user_id} listened most recently to")
        for title, artist in history:
            print(f"      {title} - {artist}")
        say(f"\n$ lhydra query recommend {user_id} --k {settings.k}")
        _lhydra(["query", "recommend", user_id, "--k", str(settings.k), "--address", address])
    print(f"\nDone in {time.monotonic() - started:.0f} s. Everything is in {folder}/. Commands to try next:")
    print(f"  lhydra serve {store} --count            # then, in another terminal:")
    print(f"  lhydra query recommend {user_id}")
    print(f"  lhydra evaluate {dataset} --store {store}")
    say(f"  lhydra web {store} --open               # its page, in a browser")
    if settings.open:  # this process becomes the gateway, until Ctrl-C
        command = [sys.executable, "-m", "lhydra.cli", "web", str(store), "--open"]
        os.execv(sys.executable, command)  # noqa: S606  # words, by no shell
    return 0


def _step(number: int, what: str, command: list[object], show: str = "") -> None:
    """Runs one `lhydra` command; keeps its output to itself unless it fails, but for lines that begin with `show`."""
    words = [str(word) for word in command]
    say(f"[{number}/6] {what}\n$ lhydra {' '.join(words)}")
    started = time.monotonic()
    with step_display(lines=False) as display, _popen(words, stderr=subprocess.STDOUT) as process:
        kept = []
        for line in _lines(process.stdout):
            kept.append(line)
            if show and line.startswith(show):
                display(line)
    if process.returncode:
        raise LhydraError(f"step {number} failed: {kept[-1] if kept else f'exit code {process.returncode}'}")
    say(f"      {time.monotonic() - started:.1f} s")


def _lhydra(words: list[str]) -> None:
    if subprocess.run([sys.executable, "-m", "lhydra.cli", *words], check=False).returncode:
        raise LhydraError(f"`lhydra {' '.join(words)}` failed")


def _popen(words: list[str], stderr: int | None = None) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "lhydra.cli", *words], stdout=subprocess.PIPE, stderr=stderr, text=True
    )


def _lines(stream: IO[str] | None) -> Iterator[str]:
    assert stream is not None  # opened with a pipe
    for line in stream:
        yield line.rstrip()


@contextlib.contextmanager
def _serving(store: Path) -> Iterator[str]:
    """Serves the store on a free port and gives the address; stops the server at the end."""
    say(f"[6/6] serve and ask\n$ lhydra serve {store} --port 0 --workers 1 --count")
    with _popen(["serve", str(store), "--port", "0", "--workers", "1", "--count", "--log-level", "warning"]) as server:
        try:
            ready = next(_lines(server.stdout), "")
            if " on " not in ready:
                raise LhydraError("the server did not start; run the command above to see why")
            print(f"      {ready}")
            yield ready.split(" on ")[1].split()[0]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=30)


def _listener(dataset: Path) -> tuple[str, list[tuple[str, str]]]:
    """A listener with about thirty tracks, and the (title, artist) of the five newest, newest first."""
    import numpy as np

    from lhydra.data.dataset import Dataset

    opened = Dataset.open(dataset)
    plays = opened.plays
    lengths = np.bincount(plays.user, minlength=len(opened.user_ids))
    user = int(np.abs(lengths - 30).argmin())
    own = plays.where(plays.user == user)
    newest = own.track[np.argsort(-own.time, kind="stable")][:5].tolist()
    titles, artists = (opened.tracks[name].to_pylist() for name in ("name", "artist"))
    return opened.user_ids[user], [(titles[track] or "?", artists[track] or "?") for track in newest]


def _claim(folder: Path) -> None:
    """Makes an empty folder, replacing an earlier demo. Raises ConfigError when `folder` is something else."""
    from lhydra import files  # brings numpy, which `--help` must not import

    if folder.exists():
        if not (folder / MARK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(complain(folder, "something else", "a new folder, or one of an earlier `lhydra demo`"))
        for part in PARTS:
            shutil.rmtree(folder / part, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / MARK, "Made by `lhydra demo`; it may replace this folder.\n")
