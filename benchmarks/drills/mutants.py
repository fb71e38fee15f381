"""`python -m benchmarks.drills.mutants WORK --out FILE.json`: whether each drill notices that its promise is broken.

For each promise what keeps it is taken out of a copy of this checkout, and its drill runs on the copy: it must say NOT
KEPT. A drill that says otherwise proves nothing. Exit code 1 where one does. WORK is that of the drills.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.drills import world
from benchmarks.machine import machine, versions
from lhydra.files import write_text
from lhydra.lines import say

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("lhydra", "server", "client", "protos", "index_builder", "benchmarks", "tests/golden")
MOST_S = 900.0  # of one drill

SUPERVISOR, WORKER, PROCESSES, APP, SERVICE, INTERCEPTORS = (
    f"server/lhydra_server/{name}.py"
    for name in ("supervisor", "worker", "processes", "app", "service", "interceptors")
)
FLEET, REDIS, BREAKER = "server/lhydra_server/fleet.py", "lhydra/users/redis_store.py", "lhydra/users/breaker.py"


@dataclass(frozen=True)
class Mutant:
    """A build that breaks a promise.

    Attributes:
        flags: of the drills: which part, and how long.
        promises: how the rows begin that must say so.
        taken_out: what keeps them, in a few words.
        edits: (file, text, what stands there instead).
    """

    flags: str
    promises: tuple[str, ...]
    taken_out: str
    edits: tuple[tuple[str, str, str], ...]


Edit = tuple[str, str, str]

EARLY_END: Edit = (  # of the workers on the bundle before
    SUPERVISOR,
    """            self._coming = self._spawn(self._current)

    def _give_up""",
    """            self._dismiss(self._serving.workers)
            self._coming = self._spawn(self._current)

    def _give_up""",
)
NO_DRAIN: Edit = (
    WORKER,
    """    listener.drain(NOTICE_S)
    listener.stop(GRACE_S)
""",
    """    listener.stop(0)
""",
)
NO_RETRY: Edit = ("client/lhydra_client/client.py", '"retryPolicy": RETRY_POLICY', '"waitForReady": False')
OPEN_PIPES: Edit = (
    PROCESSES,
    """            os.close(self._stdin)
            self._close_report()
""",
    """            self.report = -1
""",
)
IDLE_FOR_EVER: tuple[Edit, ...] = (
    (APP, "HANDSHAKE_S = 10.0", "HANDSHAKE_S = 600.0"),
    (APP, "CONNECTION_GRACE_S = 5.0", "CONNECTION_GRACE_S = 600.0"),
)
IN_PLACE: Edit = (
    "lhydra/files.py",
    """            new.mkdir()
            yield new
            for""",
    """            new.mkdir()
            target.mkdir(exist_ok=True)
            yield target
            return
            for""",
)
EARLY_ANSWER: Edit = (
    "lhydra/users/writer.py",
    """                    results = [job.change(transaction) for job in jobs]
                for job, result in zip(jobs, results, strict=True):
                    job.done.set_result(result)
""",
    """                    for job in jobs:
                        job.done.set_result(job.change(transaction))
""",
)
RAW_ERRORS: Edit = (
    "lhydra/users/environment.py",
    """        except lmdb.Error as error:
            raise _failed(f"user store {self.path}", error) from None
        finally:
            opened.leave()""",
    """        finally:
            opened.leave()""",
)
WALL_CLOCK: tuple[Edit, ...] = (
    (SUPERVISOR, "self._ticked_s = 0.0, time.monotonic()", "self._ticked_s = 0.0, time.time()"),
    (
        SUPERVISOR,
        """        now_s = time.monotonic()
        self._awake_s += min(now_s - self._ticked_s, 2 * TICK_S)
""",
        """        now_s = time.time()
        self._awake_s += now_s - self._ticked_s
""",
    ),
)
FAIL: Edit = (
    SERVICE,
    """            call.degraded.append("user_store")
            return None
""",
    """            raise
""",
)
WRONG_ID: Edit = (
    SERVICE,
    """            bundle_id=served.bundle_id,
            degraded""",
    """            bundle_id=self._fleet().current_bundle_id or served.bundle_id,
            degraded""",
)
ESCAPED: Edit = (
    "lhydra/errors.py",
    """    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)""",
    """    return text""",
)
SWAPS, REDIS_DOWN = "--parts swaps --swaps 10", ("Redis frozen", "Redis slow", "Redis killed")
UNSTABLE: Edit = (
    SERVICE,
    "        self._answered = next(self._count)\n        said = reply(",
    "        self._answered = next(self._count)\n"
    "        found = replace(found, scores=found.scores * (1 + 1e-5 * (self._answered % 2)))\n"
    "        said = reply(",
)
SOAK = "--parts soak --seconds 60"
PINGS = '                ("grpc.so_reuseport", 1),\n'
MUTANTS = (
    Mutant(SWAPS, ("swaps under load",), "workers drain, and our client tries again", (NO_DRAIN, NO_RETRY)),
    Mutant(SWAPS, ("swaps under load",), "workers drain, after the new ones are ready", (NO_DRAIN, EARLY_END)),
    Mutant(SWAPS, ("swaps, callers",), "workers drain before they end", (NO_DRAIN,)),
    Mutant(SWAPS, ("no answer mixes",), "a reply names the bundle that its worker has open, not CURRENT", (WRONG_ID,)),
    Mutant(SWAPS, ("swaps leave",), "the pipes to a worker that has ended are closed", (OPEN_PIPES,)),
    Mutant("--parts restarts", ("one of two",), "workers drain, and our client tries again", (NO_DRAIN, NO_RETRY)),
    Mutant("--parts restarts", ("restarts, callers",), "workers drain before they end", (NO_DRAIN,)),
    Mutant("--parts same", ("the same request",), "scores do not depend on what was asked before", (UNSTABLE,)),
    Mutant("--parts redis", REDIS_DOWN, "a list is made without its listener where the store is down", (FAIL,)),
    Mutant(
        "--parts redis", REDIS_DOWN[:2], "reading from Redis ends in time", ((REDIS, "READ_S = 0.02", "READ_S = 30.0"),)
    ),
    Mutant("--parts redis", REDIS_DOWN[:2], "the circuit breaker", ((BREAKER, "FAILURES = 3 ", "FAILURES = 10**9 "),)),
    Mutant(
        "--parts redis",
        REDIS_DOWN,
        "the circuit breaker tries again within seconds",
        ((BREAKER, "REST_S = 1.0 ", "REST_S = 60.0 "), (BREAKER, "LONGEST_REST_S = 4.0", "LONGEST_REST_S = 60.0")),
    ),
    Mutant("--parts full", ("disk full: commands",), "results are written beside their place and renamed", (IN_PLACE,)),
    Mutant(
        "--parts full",
        ("disk full: commands",),
        "errors of the system are one line",
        (("lhydra/cli.py", "except (OSError, MemoryError)", "except ZeroDivisionError"),),
    ),
    Mutant("--parts full", ("disk full: plays",), "plays are answered once they are committed", (EARLY_ANSWER,)),
    Mutant("--parts full", ("disk full: plays",), "errors of LMDB are those of a store that is down", (RAW_ERRORS,)),
    Mutant(
        "--parts read_only",
        ("read-only store",),
        "a worker starts without its user store",
        ((WORKER, "lasting=True", "lasting=False"),),
    ),
    Mutant(
        "--parts stalled",
        ("bundles on a file system that stalls",),
        "the new workers are ready before the old ones leave",
        (EARLY_END,),
    ),
    Mutant(
        "--parts stalled",
        ("listeners on a file system that stalls",),
        "what served before it died is back soon",
        ((FLEET, "LONGEST_SERVED_S = 0.5", "LONGEST_SERVED_S = 60.0"), (FLEET, "* 2, 0.1)", "* 2, 60.0)")),
    ),
    Mutant("--parts clock", ("a clock",), "signs of life are timed by a clock that does not jump", WALL_CLOCK),
    Mutant(
        "--parts clock",
        ("a clock",),
        "deadlines are on a clock that does not jump",
        ((INTERCEPTORS, "time.monotonic()", "time.time()"),),
    ),
    Mutant(
        "--parts idle",
        ("2,000 idle",),
        "the server raises its limit of descriptors",
        ((SUPERVISOR, "        use_all_descriptors()\n", ""),),
    ),
    Mutant("--parts idle", ("out of descriptors",), "a connection that says nothing is ended", IDLE_FOR_EVER),
    Mutant(
        "--parts pings",
        ("floods of pings",),
        "the limit on pings (gRPC's own)",
        ((APP, PINGS, PINGS + '                ("grpc.http2.max_ping_strikes", 0),\n'),),
    ),
    Mutant(
        "--parts noise",
        ("10,000 messages",),
        "bytes that are no request are INVALID_ARGUMENT",
        ((INTERCEPTORS, "    except DecodeError:\n", "    except ZeroDivisionError:\n"),),
    ),
    Mutant(
        "--parts fuzz",
        ("120 s of a fuzzer",),
        "a profile that is none is damage",
        (("lhydra/users/packed.py", "except (ValueError, RecursionError)", "except ZeroDivisionError"),),
    ),
    Mutant(
        "--parts fuzz",
        ("120 s of a fuzzer",),
        "control characters in a message are escaped",
        (ESCAPED,),
    ),
    Mutant(
        SOAK, ("soak: no call", "soak, callers"), "workers drain, after the new ones are ready", (NO_DRAIN, EARLY_END)
    ),
    Mutant(
        SOAK,
        ("soak: memory", "soak: descriptors"),
        "workers on the bundle before end",
        ((SUPERVISOR, "            worker.stop()\n        self._leaving += workers\n", "            pass\n"),),
    ),
    Mutant(SOAK, ("soak: descriptors",), "the pipes to a worker that has ended are closed", (OPEN_PIPES,)),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs each drill on its mutants, prints a table and writes it.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 where a drill did not notice.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument(
        "--only", default="", help="those whose promise, flags or mend has this text; others stay in FILE"
    )
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    work = args.work.resolve()
    world.make(work)  # by a build that is whole
    chosen = [one for one in MUTANTS if any(args.only in text for text in (*one.promises, one.taken_out, one.flags))]
    rows = []
    for mutant in chosen:
        for row in drilled(mutant, work):
            rows.append(row)
            word = "noticed" if row["noticed"] else "NOT NOTICED"
            say(f"{word:12} {row['promise']} | {row['taken_out']} | {row['said']}")
    if args.out:
        before = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
        order = [(one.flags, one.taken_out) for one in MUTANTS]
        again = {(one.flags, one.taken_out) for one in chosen}
        rows += [row for row in before if (row["flags"], row["taken_out"]) not in again]
        rows.sort(key=lambda row: order.index((row["flags"], row["taken_out"])))
        document = {
            "benchmark": "drill mutants",
            "command": "python -m benchmarks.drills.mutants WORK --out FILE.json",
            "machine": machine(),
            "versions": versions(),
            "rows": rows,
        }
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    return 0 if all(row["noticed"] for row in rows) else 1


def drilled(mutant: Mutant, work: Path) -> list[dict[str, Any]]:
    """Runs a drill on a build that breaks its promise.

    Args:
        mutant: what is broken.
        work: of the drills.

    Returns:
        For each promise what the drill said, and whether it noticed.

    Raises:
        ValueError: the text to be taken out is not there.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch)
        for name in FOLDERS:
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        break_it(copy, mutant)
        out = copy / "drills.json"
        path = os.pathsep.join(str(copy / name) for name in (".", *FOLDERS[1:5]))
        command = [sys.executable, "-m", "benchmarks.drills", str(work), *mutant.flags.split(), "--out", str(out)]
        ended = subprocess.run(
            command, cwd=copy, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=MOST_S
        )
        if not out.exists():
            raise RuntimeError(ended.stderr[-2000:])
        found = json.loads(out.read_text().replace(str(work), "WORK"))["rows"]
    return [_row(mutant, promise, found) for promise in mutant.promises]


def _row(mutant: Mutant, promise: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    of_part = [row for row in found if row["target"] == "it ends"]  # it was not, and no row of its own was left
    row = next((row for row in found if row["promise"].startswith(promise)), None)
    if row is None:
        row = of_part[0] | {"promise": promise}
    said = f"{row['measured']} ({row['target']})"
    return {
        "flags": mutant.flags,
        "promise": row["promise"],
        "taken_out": mutant.taken_out,
        "said": said,
        "noticed": row["met"] is False,
    }


def break_it(checkout: Path, mutant: Mutant) -> None:
    """Takes out of a checkout what keeps a promise.

    Args:
        checkout: its folder; changed.
        mutant: what is taken out.

    Raises:
        ValueError: a text of it is not there, or more than once.
    """
    for name, text, instead in mutant.edits:
        source = (checkout / name).read_text(encoding="utf-8")
        if text not in source:
            raise ValueError(f"{name}: found no {text!r}")
        (checkout / name).write_text(source.replace(text, instead), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
