"""The modes of the benchmark: which runs each makes, and at which rates."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.latency import traffic
from benchmarks.latency.load import FEEDBACK, Request
from benchmarks.latency.measure import Check, LoadTest
from benchmarks.latency.own_server import child_environment
from benchmarks.latency.results import Run
from benchmarks.latency.servers import OURS, Contestant
from benchmarks.latency.settings import Settings
from benchmarks.latency.summary import REFUSED
from lhydra.bundle.manifest import current_bundle_id
from lhydra.errors import LhydraError
from lhydra_client.results import Status

MAX_USERS = 10_000
SATURATING = ("ramp", "knee", "overload")  # up to one in a hundred is refused at the knee by its definition


@dataclass
class Outcome:
    """What was measured; it grows. rates: requests a second by mode. faults: wrong replies and the like, in words."""

    rates: dict[str, float]
    runs: list[Run] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def failures(run: Run) -> int:
    """Counts the requests that failed and should not have: a refusal is right where too much is asked for.

    Args:
        run: one run, with its mode and errors.

    Returns:
        How many.
    """
    allowed = {REFUSED} if run["mode"] in SATURATING else set()
    return sum(count for code, count in run["errors"].items() if code not in allowed)


def measure(
    contestants: Sequence[Contestant],
    users: Sequence[str],
    status: Status,
    settings: Settings,
    rates: Mapping[str, float],
) -> Outcome:
    """Measures every server in every repeat; each repeat starts every server again, one after the other.

    Args:
        contestants: the servers, ours among them.
        users: ids to ask for.
        status: of our server.
        settings: the command line.
        rates: requests a second by mode, of a baseline; empty without one.

    Returns:
        All runs, the faults, and the rates.
    """
    order = np.random.default_rng(settings.seed).permutation(len(users))[:MAX_USERS]
    users = [users[i] for i in order]
    outcome = Outcome(dict(rates))
    if settings.soak_rate:
        outcome.rates["soak"] = settings.soak_rate
    wanted = settings.k if status.tracks >= 20 * settings.k else 0  # of few tracks, a user may have heard most
    for repeat in range(settings.repeats):
        for contestant in contestants:
            with contestant.start() as server:
                test = LoadTest(
                    server,
                    contestant.name,
                    contestant.http1,
                    repeat,
                    users,
                    traffic.known_users(users, settings.k),
                    settings.k,
                    settings.seconds,
                    settings.timeout_s,
                    settings.channels,
                    settings.seed,
                    settings.arrivals,
                )
                test.warm_up(settings.warmup_s, max(settings.concurrency, default=8))
                before = test.check(wanted)
                if "closed" in settings.modes:
                    for concurrency in settings.concurrency:
                        test.closed(
                            concurrency, by_h2load=settings.closed_by == "h2load", reply_bytes=before.reply_bytes
                        )
                if contestant.name == OURS:
                    _open_modes(test, before, settings, outcome)
                outcome.faults += [*before.faults, *test.check(wanted).faults]
                outcome.runs += test.runs
        if "in-process" in settings.modes:
            outcome.runs.append(_in_process(settings, repeat))
    return outcome


def _open_modes(test: LoadTest, check: Check, settings: Settings, outcome: Outcome) -> None:
    """The open loop's modes; the first repeat fills `outcome.rates`, so that all of them go by the same."""
    rates, modes = outcome.rates, settings.modes
    if "open" in modes:
        for rate in settings.rates:
            test.open("open", rate)
    if "ramp" in modes:
        _ramp(test, settings, outcome)
    knee = rates.get("knee", 0.0)
    rates.setdefault("soak", settings.soak_share * knee or max(settings.rates, default=100.0))
    rates.setdefault("overload", 2 * knee)
    rates.setdefault("mixed", 0.5 * knee or max(settings.rates, default=100.0))
    if "soak" in modes:
        run = test.open("soak", rates["soak"], seconds=settings.soak_s)
        run["name"] = f"soak, {rates['soak']:.0f}/s"
    if "overload" in modes and rates["overload"]:
        run = test.open("overload", rates["overload"])
        best = max((one["goodput_per_s"] for one in test.runs if one["mode"] == "ramp"), default=knee)
        run["name"] = f"overload, {rates['overload']:.0f}/s"
        run["goodput_of_peak"] = run["goodput_per_s"] / best
    if "mixed" in modes:
        _mixed(test, check, settings, rates["mixed"])
    if "cases" in modes:
        _cases(test, check, settings, outcome)


def _ramp(test: LoadTest, settings: Settings, outcome: Outcome) -> None:
    peak = max((run["throughput_per_s"] for run in test.runs if run["mode"] == "closed"), default=0.0)
    first = settings.ramp_from or 0.8 * outcome.rates.get("knee", 0.6 * peak) or 100.0
    knee = test.ramp(first, settings.p99_ms)
    if not knee:
        outcome.faults.append(
            f"NO KNEE in repeat {test.repeat + 1}: no rate was sustained; look at --p99-ms, --ramp-from"
        )
        return
    outcome.rates.setdefault("knee", knee)
    at = [run for run in test.runs if run["mode"] == "ramp" and run["sustained"] and run["offered_per_s"] == knee]
    # The knee is a run under a mode of its own: the last step that was sustained at that rate.
    test.runs.append({**at[-1], "mode": "knee", "name": f"knee, {knee:.0f}/s", "throughput_per_s": knee})


def _mixed(test: LoadTest, check: Check, settings: Settings, rate: float) -> None:
    mix = dict(traffic.MIX)
    if not (settings.store or settings.feedback):
        del mix[FEEDBACK]  # it writes: not into somebody else's user store
    filters = [case.filter for case in _filters(settings)]
    n = int(1.2 * rate * settings.seconds) + 10
    sent = traffic.mixed(n, test.users, check.tracks, filters, k=settings.k, seed=settings.seed, mix=mix)
    run = test.open("mixed", rate, requests=_answered_kinds(test, sent))
    run["name"] = f"mixed, {rate:.0f}/s"


def _cases(test: LoadTest, check: Check, settings: Settings, outcome: Outcome) -> None:
    tracks = _tracks(settings) or check.tracks
    heavy = ""
    if settings.store or settings.feedback:
        heavy = f"bench-heavy-{test.repeat}"
        codes = {test.code_of(request) for request in traffic.plays_of_heavy_user(heavy, tracks)}
        if codes != {"OK"}:
            outcome.faults.append(
                f"NO USER WITH {traffic.HEAVY_PLAYS:,} PLAYS: RecordPlays said {', '.join(sorted(codes))}"
            )
    asked = traffic.cases(test.users, tracks, _filters(settings), heavy=heavy, k=settings.k, seed=settings.seed)
    test.cases(_answered_kinds(test, asked))


def _answered_kinds(test: LoadTest, sent: Sequence[Request]) -> list[Request]:
    """Leaves out kinds that this server says it does not answer, and says so."""
    kinds = dict.fromkeys(request.kind for request in sent)
    for kind in list(kinds):
        one = next(request for request in sent if request.kind == kind)
        if test.code_of(one) == "UNIMPLEMENTED":
            test.log(f"  {kind}: not answered by this server, left out of the mixture")
            del kinds[kind]
    return [request for request in sent if request.kind in kinds]


def _filters(settings: Settings) -> list[traffic.NamedFilter]:
    if settings.filter:
        return [traffic.NamedFilter(text, 0.0, traffic.parse_filter(text)) for text in settings.filter]
    return traffic.filters_of(_catalog(settings.store)) if settings.store else []


def _tracks(settings: Settings) -> list[str]:
    """Ids of tracks of the catalogue, enough for the largest history."""
    if settings.store is None:
        return []
    import pyarrow.parquet as pq

    ids = pq.read_table(_catalog(settings.store), columns=["track_id"])["track_id"]
    return [str(one) for one in ids[: 2 * traffic.HEAVY_PLAYS].to_pylist()]


def _catalog(store: Path) -> Path:
    return store / current_bundle_id(store) / "catalog.parquet"


def _in_process(settings: Settings, repeat: int) -> Run:
    """The same requests without a server, by `benchmarks.stages` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "stages.json")
        command = [sys.executable, "-m", "benchmarks.stages", str(settings.dataset), str(settings.store)]
        command += ["--out", str(out), "--k", str(settings.k), "--depth", str(settings.depth)]
        command += ["--seed", str(settings.seed + repeat), "--requests", str(max(50, int(500 * settings.seconds)))]
        done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
        if done.returncode:
            raise LhydraError(f"benchmarks.stages: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
        found = json.loads(out.read_text(encoding="utf-8"))
    return {
        "name": "in-process",
        "server": OURS,
        "repeat": repeat,
        "mode": "in-process",
        "errors": {},
        "answered": found["requests"],
        "latency_ms": {name: value / 1e3 for name, value in found["stages_us"]["total"].items()},
        "cpu_us_per_request": found["cpu_us_per_request"],
        "stages_us": found["stages_us"],
        "tiers": found["tiers"],
    }
