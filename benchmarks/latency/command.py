"""The latency benchmark of `Recommend`: `python -m benchmarks.latency --store STORE | --address H:P`.

Closed loop, open loop, ramp to the saturation knee, soak, overload and mixed traffic, against a server of its own or a
running one, and against peers on the same bundle. Prints tables, writes JSON and a plot; ends with exit code 1 when
any request failed that should not have, or when a figure is worse than the baseline's beyond noise. See README.md.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.latency import modes, traffic, verdict
from benchmarks.latency.figures import figures_of, tables
from benchmarks.latency.results import COMPARED, FORMAT, Document, read_document
from benchmarks.latency.servers import OURS, contestants
from benchmarks.latency.settings import Settings, parse_settings
from benchmarks.machine import MIN_CORE_SCALING, core_scaling, machine, noise_line, versions
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.errors import ConfigError, LhydraError, complain
from lhydra.files import write_text
from lhydra.lines import say
from lhydra_client import Client, ClientError
from lhydra_client.results import Status


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 where the benchmark could not be made, a request failed, or a figure is worse than the baseline's.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        settings = parse_settings(argv)
        _check_outputs(settings)
        baseline = read_document(settings.compare) if settings.compare else None
        document = _measured(settings, argv, baseline)
    except (LhydraError, ClientError, OSError, subprocess.SubprocessError) as error:
        print(f"latency: {error}", file=sys.stderr)
        return 1
    write_text(settings.json, json.dumps(document, indent=2) + "\n")  # before whoever reads the tables may stop reading
    if settings.plot:
        from benchmarks.latency.plot import write_plot

        write_plot(settings.plot, document)
    say("\n" + tables(document, settings.concurrency))
    if settings.spin_s:
        say(noise_line(document["spinning"]["before"], document["spinning"]["after"]))
    say(f"\nwritten: {settings.json}")
    if settings.plot:
        say(f"written: {settings.plot}")
    worse = False
    if baseline is not None:
        verdicts = verdict.compare(baseline["figures"], document["figures"])
        say(f"\n{verdict.report(verdicts, baseline['figures'], document['figures'])}")
        say("\n".join(verdict.differences(baseline, document)))
        worse = any(found.word == verdict.WORSE for found in verdicts.values())
    runs = document["runs"]
    failed = bool(document["faults"]) or any(modes.failures(run) for run in runs)
    answered = sum(run["answered"] for run in runs)
    return 1 if worse or not answered or (failed and not settings.allow_errors) else 0


def _check_outputs(settings: Settings) -> None:
    """Refuses, before anything is measured, files that hold something else."""
    settings.json.parent.mkdir(parents=True, exist_ok=True)
    check_output("--json", settings.json, is_json_with(*COMPARED))
    if settings.plot:
        settings.plot.parent.mkdir(parents=True, exist_ok=True)
    check_output("--plot", settings.plot, lambda page: b"plotly" in page and b"Recommend, k " in page)
    if settings.plot and settings.plot.resolve() == settings.json.resolve():
        raise ConfigError(complain("--json, --plot", f"{settings.json} for both", "two files"))


def _measured(settings: Settings, argv: Sequence[str], baseline: Document | None) -> Document:
    users, origin = traffic.user_ids(settings.dataset, settings.user_ids)
    with ExitStack() as stack:
        servers = list(contestants(settings, stack))
        machine_before = machine()
        before = core_scaling(settings.spin_s) if settings.spin_s else 0.0
        with servers[0].start() as first, Client(first.address, timeout_s=10.0) as client:
            status = client.status()
        _introduce(settings, status, machine_before, origin)
        outcome = modes.measure(servers, users, status, settings, baseline["rates"] if baseline else {})
        after = core_scaling(settings.spin_s) if settings.spin_s else 0.0
    by_server = {one.name: figures_of(run for run in outcome.runs if run["server"] == one.name) for one in servers}
    return {
        "format": FORMAT,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", "-m", "benchmarks.latency", *argv],
        "settings": {name: _plain(value) for name, value in sorted(vars(settings).items())},
        "users": {"count": len(users), "origin": origin},
        "bundle_id": status.bundle_id,
        "server": dataclasses.asdict(status),
        "versions": versions(),
        "machine": machine_before,
        "spinning": {
            "before": before,
            "after": after,
            "free": not settings.spin_s or min(before, after) >= MIN_CORE_SCALING,
        },
        "rates": outcome.rates,
        "faults": outcome.faults,
        "figures": by_server[OURS],
        "peers": {name: found for name, found in by_server.items() if name != OURS},
        "runs": outcome.runs,
    }


def _introduce(settings: Settings, status: Status, machine: Mapping[str, Any], origin: str) -> None:
    say(
        f"Recommend(k={settings.k}) · bundle {status.bundle_id} · {status.tracks} tracks, {status.workers} workers,"
        f" depth {status.default_depth} · closed loop by {settings.closed_by} · {settings.repeats} repeats\n"
        f"{machine['cores']} cores, {machine['processor']}, {machine['memory_gib']} GiB,"
        f" load {machine['load_before']} before\nusers: {origin}\n"
    )


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
