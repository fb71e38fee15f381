"""`lhydra serve` with workers that only count: they answer no calls, so what they have counted is known exactly.

python fake_counting.py STORE SETTINGS   the supervisor, SETTINGS as JSON
python fake_counting.py                  a worker, as the supervisor starts it

A worker on a bundle of `n` counts n answers, says that 2 requests wait and 3 are in flight, and reports ready.
"""

import json
import os
import sys
from pathlib import Path

from lhydra import logs
from lhydra.errors import LhydraError
from lhydra_server.config import ServeSettings, WorkerSettings
from lhydra_server.heartbeat import Heart
from lhydra_server.metrics.worker import Metrics
from lhydra_server.supervisor import Supervisor


def work() -> int:
    settings = WorkerSettings.from_json(sys.stdin.readline())
    store = Path(settings.store)
    (store / f"worker-{os.getpid()}").write_text(settings.to_json())
    metrics = Metrics.open(settings.metrics)
    what = json.loads((store / settings.bundle_id / "fake.json").read_text())
    for _ in range(what["n"]):
        metrics.record("Recommend", "OK", 700, {"lookup": 40, "rerank": 600}, "personal")
    metrics.queue(2)
    metrics.in_flight(3)
    error = what.get("error", "")
    Heart(os.dup(1)).report(error=error, ready=not error, model_id="m-1")
    sys.stdin.read()
    return 0


def main() -> int:
    if len(sys.argv) == 1:
        return work()
    logs.configure("info", as_json=True)
    settings = ServeSettings(**json.loads(sys.argv[2]))
    try:
        return Supervisor(Path(sys.argv[1]), settings, command=(sys.executable, __file__)).run()
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
