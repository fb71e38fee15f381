"""A small real bundle behind `lhydra serve` and `lhydra web`, and a browser before them."""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.page import CHROMIUM_FLAGS
from tests.harness import free_port, until

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "server" / "lhydra_server" / "web" / "page_source"
BUILT = SOURCE.parent / "page"
CHROMIUM = next((path for path in map(Path, ("/usr/bin/chromium", "/usr/bin/chromium-browser")) if path.exists()), None)


class Command:
    """A running `lhydra COMMAND`, which can be stopped and started again.

    Args:
        words: after `lhydra`.
    """

    def __init__(self, *words: str) -> None:
        self.words = words
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        paths = [str(ROOT), *(str(ROOT / part) for part in ("protos", "index_builder", "server", "client"))]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lhydra.cli", *self.words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )

    def stop(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
            self.process = None

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


@contextmanager
def served(store: Path, *flags: str, serve: tuple[str, ...] = ()) -> Iterator[tuple[str, Command]]:
    """Serves a store and its page.

    Args:
        store: with a CURRENT bundle.
        flags: of `lhydra web`.
        serve: more flags of `lhydra serve`.

    Yields:
        The address of the page, and the server behind it.
    """
    back, front = free_port(), free_port()
    page = f"http://127.0.0.1:{front}"
    with (
        Command("serve", str(store), "--port", str(back), "--workers", "1", "--no-pin", *serve) as server,
        Command("web", "--address", f"127.0.0.1:{back}", "--port", str(front), *flags) as web,
    ):
        until(lambda: _ready(page, web))
        yield page, server


@contextmanager
def of_store(store: Path, *flags: str) -> Iterator[str]:
    """`lhydra web STORE`, which starts the server behind it.

    Args:
        store: with a CURRENT bundle.
        flags: of `lhydra web`.

    Yields:
        The address of the page.
    """
    front = free_port()
    page = f"http://127.0.0.1:{front}"
    with Command("web", str(store), "--port", str(front), *flags) as web:
        until(lambda: _ready(page, web))
        yield page


def _ready(page: str, web: Command) -> bool:
    assert web.process is not None
    assert web.process.poll() is None, "lhydra web ended"
    try:
        with urllib.request.urlopen(f"{page}/readyz", timeout=5) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False


@contextmanager
def browser() -> Iterator[Any]:
    """Debian's chromium.

    Yields:
        A browser of Playwright.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_FLAGS)
        yield found
        found.close()
