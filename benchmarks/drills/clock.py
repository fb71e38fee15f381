"""A clock that jumps under a server that serves: a library before libc moves what it takes for the time of day."""

import shutil
import subprocess
from pathlib import Path

from benchmarks.drills.callers import Callers
from benchmarks.drills.server import serve
from benchmarks.drills.verdict import Verdict, not_run
from benchmarks.drills.world import World
from lhydra_client import Client, Play

# libfaketime would do this, but its clock_nanosleep fails (EINVAL) in the version that Debian 12 has.
_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long moved(void) {
    char text[32] = {0};
    int file = open(getenv("DRILL_CLOCK"), O_RDONLY);
    if (file < 0) return 0;
    if (read(file, text, sizeof text - 1) < 0) text[0] = 0;
    close(file);
    return atol(text);
}
int clock_gettime(clockid_t clock, struct timespec *out) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, out);
    if (!failed && clock == CLOCK_REALTIME) out->tv_sec += moved();
    return failed;
}
int gettimeofday(struct timeval *out, void *zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int failed = real(out, zone);
    if (!failed) out->tv_sec += moved();
    return failed;
}
"""
DAY_S = 86_400
JUMPS = (DAY_S, -DAY_S, 0) * 10  # often: a jump harms a call that is just being answered


def jumps(world: World) -> list[Verdict]:
    """Moves the server's clock a day on and a day back while callers ask.

    Args:
        world: to serve.

    Returns:
        The rows of the table.
    """
    promise, target = (
        f"a clock that jumps a day both ways, {len(JUMPS)} times, is not noticed",
        "0 failed, no worker lost",
    )
    compiler = shutil.which("cc")
    if compiler is None:
        return [not_run(promise, target, "no C compiler")]
    library, offset = world.folder / "clock.so", world.folder / "clock"
    _compile(compiler, library)
    offset.write_text("0")
    moved = {"LD_PRELOAD": str(library), "DRILL_CLOCK": str(offset)}
    with serve(world.copy("clocked"), world.folder / "clock.log", environment=moved) as server:
        server.settled(world.bundles[0])
        before, recorded = set(server.workers), 0
        with Callers(server.address, world, pause_s=0.005) as callers, Client(server.address, timeout_s=10) as client:
            for i, jump_s in enumerate(JUMPS):
                offset.with_suffix(".next").write_text(str(jump_s))
                offset.with_suffix(".next").replace(offset)
                callers.more(60)
                recorded += client.record_plays([Play("jumped", "T0000001", event_id=f"jump-{i}")]).recorded
        found, errors, kept = callers.figures(), server.errors(), before == set(server.workers)
    failed = found["failed_with_our_client"] + found["failed_without_retries"] + found["mixed"]
    measured = f"{failed} of {found['calls']:,} failed, workers {'kept' if kept else 'lost'}, "
    measured += f"{recorded} of {len(JUMPS)} plays taken"
    return [Verdict(promise, target, measured, not failed and kept and recorded == len(JUMPS) and not errors)]


def _compile(compiler: str, library: Path) -> None:
    words = [compiler, "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(words, input=_SHIM, text=True, check=True)
