"""`lhydra serve` with workers that serve fake bundles: a bundle is a folder with fake.json in it.

python fake_serve.py STORE SETTINGS   the supervisor, SETTINGS as JSON; after SIGUSR1 workers have no time to open,
                                      after SIGUSR2 they have it again
python fake_serve.py                  a worker, as the supervisor starts it
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lhydra.errors import BundleCorrupt, LhydraError
from lhydra_server.config import ServeSettings, WorkerSettings
from lhydra_server.heartbeat import Heart, Limits, end_when_orphaned

if TYPE_CHECKING:
    from lhydra_server.served import Served  # a worker imports it after its first sign of life


def write_bundle(store: Path, bundle_id: str, **what: Any) -> None:
    """Makes a fake bundle; `n`: its tracks, `error`: why it cannot be opened, `hangs`: opening never ends,
    `locks`: nor does anything else. A call waits while there is a file `stuck`.

    With `n` and `error`, the first worker opens it, and every other one fails once there is a file `go`.
    """
    folder = store / bundle_id
    folder.mkdir(parents=True)
    (folder / "fake.json").write_text(json.dumps(what))


def load(settings: WorkerSettings) -> "Served":
    """Returns a fake bundle."""
    folder = Path(settings.store) / settings.bundle_id
    what = json.loads((folder / "fake.json").read_text())
    if "hangs" in what:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # deaf as well: only a kill ends it
        threading.Event().wait()
    if "locks" in what:
        (folder / f"locked-{os.getpid()}").touch()
        ctypes.PyDLL(None).pause()  # no other thread of this process runs any Python again
    if "error" in what and not ("n" in what and is_first(folder)):
        while "n" in what and not (folder / "go").exists():
            time.sleep(0.01)
        raise BundleCorrupt(what["error"])
    from tests.fake_core import FakeRecommender, served

    found = served(settings.bundle_id, what["n"])
    assert isinstance(found.recommender, FakeRecommender)
    found.recommender.between = lambda check: wait_while(folder / "stuck")
    return found


def wait_while(path: Path) -> None:
    """Returns when there is no such file."""
    while path.exists():
        time.sleep(0.01)


def is_first(folder: Path) -> bool:
    """Whether this worker is the first to ask."""
    try:
        (folder / "first").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def main() -> int:
    if len(sys.argv) == 1:  # as in lhydra_server.start
        end_when_orphaned()
        heart = Heart.of_this_process()
        from lhydra_server import admission, worker

        admission.CALL_LIMIT_S = float(os.environ.get("CALL_LIMIT_S", admission.CALL_LIMIT_S))
        return worker.run(load, heart=heart)
    from lhydra import logs
    from lhydra_server.supervisor import Supervisor

    logs.configure("info", as_json=True)
    settings = ServeSettings(**json.loads(sys.argv[2]))
    try:
        supervisor = Supervisor(Path(sys.argv[1]), settings, command=(sys.executable, __file__))
        signal.signal(signal.SIGUSR1, lambda *_: setattr(supervisor, "limits", Limits(open_s=0.0)))
        signal.signal(signal.SIGUSR2, lambda *_: setattr(supervisor, "limits", Limits()))
        supervisor.limits = Limits(**json.loads(os.environ.get("LIMITS", "{}")))
        return supervisor.run()
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
