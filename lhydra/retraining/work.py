"""The work folder of `lhydra retrain`: its lock, what is done so far, and what is kept when a run is over.

WORK/lock             held by the run and by each process that it starts, so that it is free only when all are gone
     state.json       the run: its inputs, and what each finished step found; replaced as a whole after every step
     run/             what the run has made so far; emptied when the next one begins
     served/          the model of the bundle that the last run published, from which the next training starts
"""

import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lhydra import files
from lhydra.errors import ConfigError, LhydraError, StoreLocked, complain
from lhydra.json_text import parse_json

FORMAT = 1
EXPECTED = "a free path, or the work folder of an earlier run"
_PARTS = {"lock", "state.json", "run", "served", "reports"}  # reports of earlier versions, which kept them here


@dataclass(frozen=True)
class State:
    """A run, as state.json keeps it.

    run_id: names its report. started_s: Unix seconds. inputs: what the run was begun with, a text each. done: by step,
    in the order they ended, what it found. outcome: "" while the run goes on. judged, judged_s: a hash of
    what the run before judged, whatever came of it, and when it was begun.
    """

    run_id: str = ""
    started_s: int = 0
    inputs: dict[str, str] = field(default_factory=dict)
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    outcome: str = ""
    judged: str = ""
    judged_s: int = 0
    format: int = FORMAT

    @classmethod
    def read(cls, work: Path) -> "State":
        """Reads what a work folder says of its last run.

        Args:
            work: the folder.

        Returns:
            The state; an empty one where there was no run.

        Raises:
            LhydraError: state.json is not what a run wrote.
        """
        path = work / "state.json"
        if not path.is_file():
            return cls()
        found = files.read_json(path, LhydraError, "a state that `lhydra retrain` wrote")
        if found.get("format") != FORMAT or found.keys() != asdict(cls()).keys():
            raise LhydraError(complain(path, "another format", "that of this version; move the work folder away"))
        return cls(**found)

    def write(self, work: Path) -> None:
        """Replaces state.json as a whole.

        Args:
            work: the folder.
        """
        files.write_text(work / "state.json", json.dumps(asdict(self), indent=2) + "\n")

    def with_step(self, name: str, found: Mapping[str, Any]) -> "State":
        """Adds a finished step.

        Args:
            name: of the step.
            found: what it found, JSON values.

        Returns:
            The new state.
        """
        return replace(self, done={**self.done, name: dict(found)})


@contextmanager
def locked(work: Path) -> Iterator[int]:
    """Holds the lock of a work folder, which is made where there is none.

    Args:
        work: the folder.

    Yields:
        A descriptor, to be handed to every process that is started: a lock lasts as long as one of them lives.

    Raises:
        ConfigError: `work` is something else.
        StoreLocked: another run holds it.
    """
    if work.exists() and (
        not work.is_dir() or not {one.name for one in work.iterdir() if one.name[0] != "."} <= _PARTS
    ):
        raise ConfigError(complain(f"retrain.work {work}", "something else", EXPECTED))
    work.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(work / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreLocked(complain(work, _holder(descriptor), "one run at a time; wait for it to end")) from None
        os.truncate(descriptor, 0)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since_s": int(time.time())}
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Who holds the lock, in words."""
    try:
        found = parse_json(os.pread(descriptor, 4096, 0))
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(found["since_s"]))
        return f"a run of process {found['pid']} on {found['host']} since {since}, or a step that it began"
    except (ValueError, KeyError, TypeError):
        return "another run"


def fingerprint(path: Path) -> str:
    """Tells whether a file or folder is the one it was, by names, sizes and times of change.

    Args:
        path: a file, or a folder with files at any depth.

    Returns:
        A text, to be compared.

    Raises:
        ConfigError: there is no such path.
    """
    if not path.exists():
        raise ConfigError(complain(path, "nothing", "a file or folder"))
    every = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    lines = [f"{one.relative_to(path)} {one.stat().st_size} {one.stat().st_mtime_ns}" for one in every]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
