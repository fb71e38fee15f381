"""`python -m benchmarks.ann`, from the root of the repository."""

import sys

from benchmarks.environment import one_thread_per_library


def run() -> int:
    """Runs the benchmark.

    Returns:
        Its exit code.
    """
    one_thread_per_library()
    from benchmarks.ann.command import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
