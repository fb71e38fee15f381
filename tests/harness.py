"""Helpers that several test files share."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis

DEEP = "deep"  # the profile of `make test-deep`: many examples, every kill, real processes throughout


def until(found: Callable[[], Any]) -> Any:
    """Returns the first truthy value of `found`, asked again and again for a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.005)
    raise AssertionError("it never came")


def log_lines(log: Path) -> list[dict[str, Any]]:
    """The lines of a log that is still written to: of the last one there may be only a part yet."""
    return [json.loads(line) for line in log.read_text().rpartition("\n")[0].splitlines()]


def gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def free_port() -> int:
    """Returns a TCP port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def deep() -> bool:
    """Whether this run takes the time that `make test-deep` has."""
    return hypothesis.settings.get_current_profile_name() == DEEP


def examples(n: int) -> int:
    """Returns how many examples a slow property is held against: `n`, or twenty times as many in `make test-deep`."""
    return n * 20 if deep() else n
