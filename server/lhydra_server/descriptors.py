"""The files that a process may have open, of which every connection is one: as many as may be, and never too few."""

import os
import resource
from contextlib import suppress

from lhydra.errors import ConfigError, complain

LEAST = 128  # a worker that maps a bundle with a dozen filters has 64 open before anybody connects
LEAST_FREE = 32  # of a worker that serves


def use_all_descriptors() -> None:
    """Lets this process, and those it starts, open as many files as it may.

    The usual soft limit of 1,024 is for programs that call select(2).

    Raises:
        ConfigError: that is too few to serve with.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # a system that allows less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if 0 <= most < LEAST:  # no limit is -1
        raise _too_few(f"a hard limit of {most}", f"{LEAST} at least")


def check_free_descriptors() -> None:
    """Checks that callers can connect to this process, which has opened all that it serves.

    Raises:
        ConfigError: hardly anybody could.
    """
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError):  # no /proc
        used = len(os.listdir("/proc/self/fd"))
        if 0 <= most < used + LEAST_FREE:
            raise _too_few(
                f"a limit of {most}, and {used} in use before anybody connects", f"{used + LEAST_FREE} at least"
            )


def _too_few(found: str, expected: str) -> ConfigError:
    return ConfigError(complain("open files", found, f"{expected}, better some thousands: raise `ulimit -Hn`"))
