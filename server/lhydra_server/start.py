"""Where a worker process begins: with a sign of life, before the imports, which take a while."""

import gc
import sys

from lhydra_server.heartbeat import Heart, end_when_orphaned


def main() -> int:
    """Serves; returns the exit code."""
    end_when_orphaned()
    gc.disable()  # what is loaded stays; `run` has the collector begin once it serves
    heart = Heart.of_this_process()
    from lhydra_server.worker import run  # a process that stops in here is missed in seconds

    return run(heart=heart)


if __name__ == "__main__":
    sys.exit(main())
