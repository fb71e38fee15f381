"""The latency benchmark of `Recommend`: `python -m benchmarks.latency --store STORE | --address H:P`.

Closed loop, open loop, ramp to the saturation knee, soak, overload and mixed traffic, against a server of its own or a
running one, and against peers on the same bundle. Prints tables, writes JSON and a plot; ends with exit code 1 when
any request failed that should not have, or when a figure is worse than the baseline's beyond noise. See README.md.
"""

import argparse
import csv
import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency import figures, h2load, traffic, verdict
from benchmarks.latency.load import FEEDBACK, Request
from benchmarks.latency.measure import Check, Measured, Run
from benchmarks.latency.own_server import Started, child_environment, serve_command, started, started_web
from benchmarks.latency.peers.settings import PeerSettings
from benchmarks.latency.summary import REFUSED, merged, report
from benchmarks.machine import FREE, machine, noise_line, spinning, versions
from lhydra.bundle.manifest import current_bundle_id
from lhydra.errors import ConfigError, DataError, LhydraError, complain
from lhydra_client import Client, ClientError
from lhydra_client.results import Status

RESULTS = Path(__file__).resolve().parents[1] / "results" / "latency.json"
FORMAT = 2
MOST_USERS = 10_000
OURS = "lhydra"
MODES = ("closed", "open", "ramp", "soak", "overload", "mixed", "cases", "in-process")
SATURATING = ("ramp", "knee", "overload")  # up to one in a hundred is refused at the knee by its definition
UVICORN = ("uvicorn", "--log-level", "warning", "--no-access-log")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
TUTORIAL = (*UVICORN, "benchmarks.latency.peers.tutorial:app")


@dataclass(frozen=True)
class Peer:
    """A server of somebody else: the module that runs it with its arguments, its environment, the package it needs."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: str = "fastapi"


PEERS = {
    "tutorial": Peer(TUTORIAL),
    "tutorial-1-thread": Peer(TUTORIAL, ONE_THREAD),
    "tuned": Peer((*UVICORN, "benchmarks.latency.peers.tuned:app"), ONE_THREAD),
    "litserve": Peer(("benchmarks.latency.peers.litserve_app",), ONE_THREAD, needs="litserve"),
}


@dataclass(frozen=True)
class Contestant:
    """A server that can be started, again for every repeat."""

    name: str
    start: Callable[[], AbstractContextManager[Started]]
    http1: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        check_settings(args)
        baseline = _baseline(args.compare)
        users, origin = user_ids(args)
        with ExitStack() as stack:
            contestants = list(_contestants(args, stack))
            machine_before = machine()
            spun = spinning(args.spin_s) if args.spin_s else 0.0
            with contestants[0].start() as first, Client(first.address, timeout_s=10.0) as client:
                status = client.status()
            _introduce(args, status, machine_before, origin)
            runs, faults, rates = measure(contestants, users, status, args, baseline)
            spinners = {"before": spun, "after": spinning(args.spin_s) if args.spin_s else 0.0}
    except (LhydraError, ClientError, OSError, subprocess.SubprocessError) as error:
        print(f"latency: {error}", file=sys.stderr)
        return 1
    by_server = {one.name: figures.figures_of(run for run in runs if run["server"] == one.name) for one in contestants}
    document = {
        "format": FORMAT,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", "-m", "benchmarks.latency", *argv],
        "settings": {name: _plain(value) for name, value in sorted(vars(args).items())},
        "users": {"count": len(users), "origin": origin},
        "bundle_id": status.bundle_id,
        "server": dataclasses.asdict(status),
        "versions": versions(),
        "machine": machine_before,
        "spinning": spinners | {"free": not args.spin_s or min(spinners.values()) >= FREE},
        "rates": rates,
        "faults": faults,
        "figures": by_server[OURS],
        "peers": {name: found for name, found in by_server.items() if name != OURS},
        "runs": runs,
    }
    print("\n" + tell(document, args.concurrency))
    if args.spin_s:
        print(noise_line(spinners["before"], spinners["after"]))
    write_json(args.json, document)
    print(f"\nwritten: {args.json}")
    if args.plot:
        from benchmarks.latency.plot import write_plot

        write_plot(args.plot, document)
        print(f"written: {args.plot}")
    worse = False
    if baseline is not None:
        verdicts = verdict.compare(baseline, document)
        print(f"\n{verdict.report(verdicts, baseline, document)}")
        print("\n".join(verdict.differences(baseline, document)))
        worse = any(found.word == verdict.WORSE for found in verdicts.values())
    failed = bool(faults) or any(failures(run) for run in runs)
    answered = sum(run["answered"] for run in runs)
    return 1 if worse or not answered or (failed and not args.allow_errors) else 0


def failures(run: Run) -> int:
    """Returns how many requests failed that should not have: to refuse what is too much is right."""
    allowed = {REFUSED} if run["mode"] in SATURATING else set()
    return sum(count for code, count in run["errors"].items() if code not in allowed)


def measure(
    contestants: Sequence[Contestant],
    users: Sequence[str],
    status: Status,
    args: argparse.Namespace,
    baseline: Mapping[str, Any] | None,
) -> tuple[list[Run], list[str], dict[str, float]]:
    """Returns all runs, what was wrong with checked replies, and the rates that the modes went by.

    Every repeat starts every server again, one after the other.
    """
    order = np.random.default_rng(args.seed).permutation(len(users))[:MOST_USERS]
    users = [users[i] for i in order]
    rates = dict(baseline["rates"]) if baseline else {}
    if args.soak_rate:
        rates["soak"] = args.soak_rate
    runs: list[Run] = []
    faults: list[str] = []
    for repeat in range(args.repeats):
        for contestant in contestants:
            with contestant.start() as server:
                measured = Measured(
                    server,
                    contestant.name,
                    contestant.http1,
                    repeat,
                    users,
                    traffic.warm(users, args.k),
                    args.k,
                    args.seconds,
                    args.timeout_s,
                    args.channels,
                    args.seed,
                    args.arrivals,
                )
                wanted = args.k if status.tracks >= 20 * args.k else 0  # of few tracks, a user may have heard most
                measured.warm_up(args.warmup_s, max(args.concurrency, default=8))
                before = measured.check(wanted)
                if "closed" in args.modes:
                    for concurrency in args.concurrency:
                        measured.closed(
                            concurrency, by_h2load=args.closed_by == "h2load", reply_bytes=before.reply_bytes
                        )
                if contestant.name == OURS:
                    _open_modes(measured, before, args, rates, faults)
                faults += [*before.faults, *measured.check(wanted).faults]
                runs += measured.runs
        if "in-process" in args.modes:
            runs.append(_in_process(args, repeat))
    return runs, faults, rates


def _open_modes(
    measured: Measured, check: Check, args: argparse.Namespace, rates: dict[str, float], faults: list[str]
) -> None:
    """The open loop's modes; `rates` is filled by the first repeat, so that all of them go by the same."""
    if "open" in args.modes:
        for rate in args.rates:
            measured.open("open", rate)
    peak = max((run["throughput_per_s"] for run in measured.runs if run["mode"] == "closed"), default=0.0)
    if "ramp" in args.modes:
        first = args.ramp_from or 0.8 * rates.get("knee", 0.6 * peak) or 100.0
        if knee := measured.ramp(first, args.p99_ms):
            measured.runs.append(_knee_run(measured, knee))
            rates.setdefault("knee", knee)
        else:
            faults.append(
                f"NO KNEE in repeat {measured.repeat + 1}: no rate was sustained; look at --p99-ms, --ramp-from"
            )
    knee = rates.get("knee", 0.0)
    rates.setdefault("soak", args.soak_share * knee or max(args.rates, default=100.0))
    rates.setdefault("overload", 2 * knee)
    rates.setdefault("mixed", 0.5 * knee or max(args.rates, default=100.0))
    if "soak" in args.modes:
        run = measured.open("soak", rates["soak"], seconds=args.soak_s)
        run["name"] = f"soak, {rates['soak']:.0f}/s"
    if "overload" in args.modes and rates["overload"]:
        run = measured.open("overload", rates["overload"])
        best = max((one["goodput_per_s"] for one in measured.runs if one["mode"] == "ramp"), default=knee)
        run |= {"name": f"overload, {rates['overload']:.0f}/s", "goodput_of_peak": run["goodput_per_s"] / best}
    if "mixed" in args.modes:
        kinds = dict(traffic.MIX)
        if not (args.store or args.feedback):
            del kinds[FEEDBACK]  # it writes: not into somebody else's user store
        filters = [case.filter for case in _filters(args)]
        n = int(1.2 * rates["mixed"] * args.seconds) + 10
        sent = traffic.mixed(n, measured.users, check.tracks, filters, k=args.k, seed=args.seed, mix=kinds)
        sent = _answered_kinds(measured, sent)
        run = measured.open("mixed", rates["mixed"], requests=sent)
        run["name"] = f"mixed, {rates['mixed']:.0f}/s"
    if "cases" in args.modes:
        tracks = _tracks(args) or check.tracks
        heavy = ""
        if args.store or args.feedback:
            heavy = f"bench-heavy-{measured.repeat}"
            codes = {measured.code_of(request) for request in traffic.heavy_plays(heavy, tracks)}
            if codes != {"OK"}:
                faults.append(f"NO USER WITH {traffic.HEAVY:,} PLAYS: RecordPlays said {', '.join(sorted(codes))}")
        asked = traffic.cases(measured.users, tracks, _filters(args), heavy=heavy, k=args.k, seed=args.seed)
        measured.cases(_answered_kinds(measured, asked))


def _knee_run(measured: Measured, knee: float) -> Run:
    """The knee as a run: the last step that was sustained at that rate, under a mode of its own."""
    at = [run for run in measured.runs if run["mode"] == "ramp" and run["sustained"] and run["offered_per_s"] == knee]
    return {**at[-1], "mode": "knee", "name": f"knee, {knee:.0f}/s", "throughput_per_s": knee}


def _answered_kinds(measured: Measured, sent: Sequence[Request]) -> list[Request]:
    """Leaves out kinds that this server says it does not answer, and says so."""
    kinds = dict.fromkeys(request.kind for request in sent)
    for kind in list(kinds):
        one = next(request for request in sent if request.kind == kind)
        if measured.code_of(one) == "UNIMPLEMENTED":
            measured.say(f"  {kind}: not answered by this server, left out of the mixture")
            del kinds[kind]
    return [request for request in sent if request.kind in kinds]


def _filters(args: argparse.Namespace) -> list[traffic.Filtered]:
    if args.filter:
        return [traffic.Filtered(text, 0.0, traffic.parse_filter(text)) for text in args.filter]
    return traffic.filters_of(_catalog(args)) if args.store else []


def _tracks(args: argparse.Namespace) -> list[str]:
    """Ids of tracks of the catalogue, enough for the largest history."""
    if args.store is None:
        return []
    import pyarrow.parquet as pq

    ids = pq.read_table(_catalog(args), columns=["track_id"])["track_id"]
    return [str(one) for one in ids[: 2 * traffic.HEAVY].to_pylist()]


def _catalog(args: argparse.Namespace) -> Path:
    store: Path = args.store
    return store / current_bundle_id(store) / "catalog.parquet"


def _in_process(args: argparse.Namespace, repeat: int) -> Run:
    """The same requests without a server, by `benchmarks.stages` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "stages.json")
        command = [sys.executable, "-m", "benchmarks.stages", str(args.dataset), str(args.store), "--out", str(out)]
        command += ["--k", str(args.k), "--depth", str(args.depth), "--seed", str(args.seed + repeat)]
        command += ["--requests", str(max(50, int(500 * args.seconds)))]
        done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
        if done.returncode:
            raise LhydraError(f"benchmarks.stages: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
        found = json.loads(out.read_text(encoding="utf-8"))
    total = found["stages_us"]["total"]
    return {
        "name": "in-process",
        "server": OURS,
        "repeat": repeat,
        "mode": "in-process",
        "errors": {},
        "answered": found["requests"],
        "latency_ms": {name: value / 1e3 for name, value in total.items()},
        "cpu_us_per_request": found["cpu_us_per_request"],
        "stages_us": found["stages_us"],
        "tiers": found["tiers"],
    }


# -- who is measured ------------------------------------------------------------------------------------------


def _contestants(args: argparse.Namespace, stack: ExitStack) -> Iterator[Contestant]:
    if args.store is None:
        yield Contestant(OURS, lambda: nullcontext(Started(args.address)))
        return
    users = None
    if {"mixed", "cases"} & set(args.modes):  # what they record goes to a copy
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        users = _copied(args.store / "users.lmdb", folder / "users.lmdb")
    command = serve_command(args.store, args.workers, depth=args.depth, users=users, flags=args.serve_flag)
    yield Contestant(OURS, lambda: started(command))
    for text in args.variant:
        name, _, flags = text.partition("=")
        other = [*command, *shlex.split(flags)]
        yield Contestant(name, partial(started, other))
    for name in args.peers:
        if find_spec(PEERS[name].needs):
            yield Contestant(name, _peer(PEERS[name], args), http1=True)
        else:
            print(f"{name}: left out, {PEERS[name].needs} is not installed", flush=True)


def _peer(peer: Peer, args: argparse.Namespace) -> Callable[[], AbstractContextManager[Started]]:
    told = PeerSettings(args.store, args.model, args.depth).environment() | dict(peer.environment)
    command = [sys.executable, "-m", *peer.arguments, "--workers", str(args.workers)]
    return lambda: started_web(command, args.workers, environment=child_environment() | told)


def _copied(source: Path, to: Path) -> str | None:
    if not source.is_dir():
        return None
    to.mkdir()
    shutil.copyfile(source / "data.mdb", to / "data.mdb")
    return f"lmdb:{to}"


def user_ids(args: argparse.Namespace) -> tuple[list[str], str]:
    """Returns the ids to ask for and where they come from. Raises DataError for a file without any."""
    if args.dataset is not None:
        from lhydra.data.dataset import Dataset

        ids, origin = Dataset.open(args.dataset).user_ids, f"the users of {args.dataset}"
    elif args.user_ids is not None:
        ids, origin = _read_ids(args.user_ids), f"the ids in {args.user_ids}"
    else:
        ids, origin = [f"bench-{n}" for n in range(1000)], "made-up ids, so the server knows nobody"
    if not ids:
        raise DataError(complain(args.dataset or args.user_ids, "no user id", "at least one"))
    return ids, f"{len(ids)}, {origin}"


def _read_ids(path: Path) -> list[str]:
    """Returns the distinct ids of a CSV with a column user_id, or of a file with one id a line."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if "user_id" in header:
                column = header.index("user_id")
                ids = [row[column] for row in rows if len(row) > column]
            else:
                file.seek(0)
                ids = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(complain(path, str(error), "ids, one a line, or a CSV with user_id")) from None
    return list(dict.fromkeys(name for name in ids if name))


# -- what is told ----------------------------------------------------------------------------------------------


def _introduce(args: argparse.Namespace, status: Status, machine: Mapping[str, Any], origin: str) -> None:
    print(
        f"Recommend(k={args.k}) · bundle {status.bundle_id} · {status.tracks} tracks, {status.workers} workers, depth"
        f" {status.default_depth} · closed loop by {args.closed_by} · {args.repeats} repeats\n{machine['cores']} cores,"
        f" {machine['processor']}, {machine['memory_gib']} GiB, load {machine['load_before']} before\n"
        f"users: {origin}\n",
        flush=True,
    )


def tell(document: Mapping[str, Any], concurrency: Sequence[int]) -> str:
    """Returns the tables that people read."""
    ours = [
        run for run in document["runs"] if run["server"] == OURS and run["mode"] not in ("ramp", "cases", "in-process")
    ]
    parts = [report(merged(ours)), figures.costs_table(merged(ours))]
    if steps := [run for run in document["runs"] if run["mode"] == "ramp"]:
        parts.append(figures.ramp_table(steps))
    for run in merged([run for run in document["runs"] if run["mode"] == "cases"]):
        parts.append(figures.cases_table(run, traffic.UNFILTERED))
    if document["peers"]:
        everybody = {OURS: document["figures"], **document["peers"]}
        parts.append(figures.peers_table(everybody, concurrency, OURS))
    found = document["figures"]
    if alone := found.get("in-process: cpu us"):
        times = ", ".join(f"{name} {figures.spelled(found[f'in-process: {name} ms'])} ms" for name in ("p50", "p99"))
        parts.append(f"in-process: {times}, {figures.spelled(alone)} us of CPU a request")
        for n in concurrency:
            if served := found.get(f"closed, {n}: cpu us"):
                ratio = served["median"] / alone["median"]
                parts.append(
                    f"served at {n}: {figures.spelled(served)} us of CPU a request, x{ratio:.2f} of in-process"
                )
    lines = [f"{name}: {figures.spelled(figure)}" for name, figure in found.items() if len(figure["values"]) > 1]
    if lines:
        parts.append("figures, median (min..max) of the repeats:\n" + "\n".join(lines))
    parts += document["faults"]
    return "\n\n".join(parts)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes `document` to `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    staged.replace(path)


# -- settings ----------------------------------------------------------------------------------------------------


def check_settings(args: argparse.Namespace) -> None:
    """Fills in what follows from other settings. Raises ConfigError for settings that do not go together."""
    args.closed_by = args.closed_by or ("h2load" if h2load.installed() else "python")
    if args.closed_by == "h2load" and not h2load.installed():
        raise ConfigError(complain("--closed-by", "h2load, which is not installed", "it (nghttp2-client), or python"))
    if unknown := (set(args.modes) - set(MODES)) | (set(args.peers) - set(PEERS)):
        raise ConfigError(complain("--modes or --peers", sorted(unknown)[0], ", ".join((*MODES, *PEERS))))
    if args.peers and not (args.store and args.model and args.workers and args.depth):
        raise ConfigError(complain("--peers", "too little", "--store, --model, --workers and --depth with it"))
    if args.peers and args.closed_by != "h2load":
        raise ConfigError(complain("--peers", "no h2load", "h2load, the load that speaks to all servers alike"))
    if "in-process" in args.modes and not (args.store and args.dataset):
        raise ConfigError(complain("--modes in-process", "too little", "--store and --dataset with it"))
    if "overload" in args.modes and "ramp" not in args.modes and args.compare is None:
        raise ConfigError(complain("--modes overload", "no ramp", "ramp before it, to know what is too much"))
    if args.address and args.depth:
        raise ConfigError(complain("--depth", "--address", "a server of its own (--store)"))


def _baseline(path: Path | None) -> Mapping[str, Any] | None:
    if path is None:
        return None
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(complain(path, str(error), "what an earlier run wrote")) from None
    if document.get("format") != FORMAT:
        raise DataError(complain(path, f"format {document.get('format')}", f"format {FORMAT}"))
    return document


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency", description="Latency of Recommend: closed and open loop."
    )
    server = parser.add_mutually_exclusive_group(required=True)
    server.add_argument("--store", type=Path, help="start a server of its own on this store")
    server.add_argument("--address", metavar="H:P", help="measure a server that runs already")
    users = parser.add_mutually_exclusive_group()
    users.add_argument("--dataset", type=Path, help="ask for the users of this dataset")
    users.add_argument("--user-ids", type=Path, metavar="FILE", help="ids, one a line, or a CSV with user_id")
    add = parser.add_argument
    add("--modes", type=_words, default=["closed", "open"], help=f"of {', '.join(MODES)} (default: closed,open)")
    add("--peers", type=_words, default=[], help=f"of {', '.join(PEERS)}: measured beside ours, closed loop")
    add("--model", type=Path, help="the model behind the bundle, for peers in torch")
    add("--workers", type=_positive(int), help="workers of the own server (default: the server's)")
    add("--depth", type=int, default=0, help="candidates to rerank (default: the server's)")
    add("--serve-flag", action="append", default=[], metavar="FLAG", help="another flag for the own server; repeatable")
    add(
        "--variant", action="append", default=[], metavar="NAME=FLAGS", help="ours with other flags, beside; repeatable"
    )
    add("--k", type=_positive(int), default=20, help="tracks per answer (default: 20)")
    add("--repeats", type=_positive(int), default=1, help="each with a new start of every server (default: 1)")
    add("--concurrency", type=_many(int), default=[1, 8], metavar="N,...", help="closed loop (default: 1,8)")
    add("--closed-by", choices=("h2load", "python"), help="default: h2load where it is installed")
    add("--rates", type=_many(float), default=[200.0], metavar="N,...", help="open loop, a second (default: 200)")
    add("--arrivals", choices=("poisson", "fixed"), default="poisson", help="default: poisson")
    add("--ramp-from", type=_positive(float), help="first rate of the ramp (default: from the closed loop)")
    add("--p99-ms", type=_positive(float), default=50.0, help="bound of a sustained rate (default: 50)")
    add("--soak-s", type=_positive(float), default=30.0, help="seconds of the soak (default: 30)")
    add("--soak-share", type=_positive(float), default=0.6, help="of the knee (default: 0.6)")
    add("--soak-rate", type=_positive(float), help="a second, rather than a share of the knee")
    add("--filter", action="append", default=[], metavar="K=V,...", help="filtered requests; default: by the catalogue")
    add("--feedback", action="store_true", help="record plays at --address too: it changes the users there")
    add("--seconds", type=_positive(float), default=8.0, help="per run (default: 8)")
    add("--warmup-s", type=_positive(float), default=2.0, help="default: 2")
    add("--timeout-s", type=_positive(float), default=5.0, help="deadline (default: 5)")
    add("--channels", type=_positive(int), default=8, help="connections of the open loop (default: 8)")
    add("--seed", type=int, default=0, help="order of users, arrivals (default: 0)")
    add("--spin-s", type=float, default=0.5, help="of the check whether both cores are free; 0 leaves it out")
    add("--allow-errors", action="store_true", help="exit 0 though requests failed")
    add("--compare", type=Path, metavar="JSON", help="a baseline: its rates are used, exit 1 when worse beyond noise")
    add("--json", type=Path, default=RESULTS, metavar="FILE", help="default: results/latency.json")
    add("--plot", type=Path, metavar="FILE", help="one HTML page")
    return parser


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    number.__name__ = f"positive {kind.__name__}"  # argparse names it in its message
    return number


def _many(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    one = _positive(kind)

    def numbers(text: str) -> list[Any]:
        return [one(part) for part in text.split(",") if part]

    numbers.__name__ = f"list of {one.__name__}"
    return numbers


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


if __name__ == "__main__":
    sys.exit(main())
