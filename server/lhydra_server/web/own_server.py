"""A server of the gateway's own: `lhydra serve` on a unix socket that nobody else on this machine may connect to."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread

from lhydra.errors import LhydraError, complain
from lhydra_server.heartbeat import end_when_orphaned

_FOLDER = "lhydra-web-"  # begins the names of folders of sockets
_LEFT_S = 3600.0  # an empty folder so old is in use no more


@contextmanager
def own_server(store: Path, words: Sequence[str] = ()) -> Iterator[str]:
    """Serves a store until the block ends, or this process does. A server that ends earlier ends this process.

    Args:
        store: the folder of bundles.
        words: more flags of `lhydra serve`.

    Yields:
        The address, as gRPC names it.

    Raises:
        SystemExit: the server did not start, and has said why in a line of its own.
        LhydraError: it ended while it was needed.
    """
    _remove_left()
    with tempfile.TemporaryDirectory(prefix=_FOLDER) as folder:  # which only this user may enter
        address = f"unix:{folder}/socket"
        command = [sys.executable, "-m", "lhydra.cli", "serve", str(store), "--host", address]
        command += ["--workers", "1", "--count", *words]
        orphaned = partial(end_when_orphaned, signal.SIGTERM)
        leaving, ended = Event(), Event()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=orphaned) as process:

            def watch() -> None:
                assert process.stdout is not None
                for _ in process.stdout:  # a pipe that nobody reads fills up, and stops who writes
                    pass
                if not leaving.is_set():
                    ended.set()
                    os.kill(os.getpid(), signal.SIGTERM)

            try:
                assert process.stdout is not None  # a pipe
                if not process.stdout.readline().startswith("serving "):
                    sys.exit(process.wait() or 1)
                Thread(target=watch, daemon=True).start()
                yield address
            finally:
                leaving.set()
                process.terminate()
                if (code := process.wait()) and ended.is_set():
                    found = f"it ended with code {code}"
                    raise LhydraError(complain("the gateway's own server", found, "one that stays"))


def _remove_left() -> None:
    """Removes the folders of gateways that were killed, whose servers took their sockets away as they ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        with suppress(OSError):  # another user's, not empty, or gone
            if folder.stat().st_mtime < time.time() - _LEFT_S:
                folder.rmdir()
