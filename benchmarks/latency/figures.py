"""From runs to figures: one number per repeat, what is quoted and compared; and the tables that people read."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from benchmarks.latency.results import Document, Figure, Figures, Run, ServerCost
from benchmarks.latency.servers import OURS
from benchmarks.latency.summary import merged, report
from benchmarks.latency.traffic import UNFILTERED
from lhydra_client.table import table


def figures_of(runs: Iterable[Run]) -> Figures:
    """Returns the figures of one server.

    Args:
        runs: all its runs, of all repeats.

    Returns:
        Figures by name.
    """
    values: dict[str, list[float]] = {}
    higher: set[str] = set()

    def note(name: str, value: float | None, *, more_is_better: bool = False) -> None:
        if value is not None:
            values.setdefault(name, []).append(round(value, 4))
            if more_is_better:
                higher.add(name)

    for run in runs:
        mode, latency = run["mode"], run["latency_ms"]
        cost: ServerCost = run.get("server_cost", {})
        if mode == "closed":
            note(f"{run['name']}: per s", run["throughput_per_s"], more_is_better=True)
        if mode in ("closed", "open", "soak"):
            for name in ("p50", "p99"):
                note(f"{run['name']}: {name} ms", latency[name])
            note(f"{run['name']}: cpu us", cost.get("cpu_us_per_request"))
        if mode == "closed":
            note(f"{run['name']}: pss MiB", cost.get("pss_mib"))
            note(f"{run['name']}: private MiB of a process", cost.get("private_mib_largest"))
        if mode == "knee":
            note("knee: per s", run["throughput_per_s"], more_is_better=True)
        if mode == "overload":
            note("overload: goodput of peak", run["goodput_of_peak"], more_is_better=True)
            note("overload: accepted p99 ms", latency["p99"])
            note("overload: refused p99 ms", run["refused_ms"]["p99"])
        if mode == "mixed":
            for kind, numbers in run["kinds"].items():
                for name in ("p50", "p99"):
                    note(f"mixed, {kind}: {name} ms", numbers["latency_ms"][name])
        if mode == "cases":
            for kind, numbers in run["kinds"].items():
                note(f"case, {kind}: p50 ms", numbers["latency_ms"]["p50"])
        if mode == "in-process":
            for name in ("p50", "p99"):
                note(f"in-process: {name} ms", latency[name])
            note("in-process: cpu us", run["cpu_us_per_request"])
    return {
        name: {
            "values": numbers,
            "median": float(np.median(numbers)),
            "min": min(numbers),
            "max": max(numbers),
            "better": "higher" if name in higher else "lower",
        }
        for name, numbers in values.items()
    }


def tables(document: Document, concurrency: Sequence[int]) -> str:
    """Returns the tables of a result that people read.

    Args:
        document: the result.
        concurrency: callers of the closed loop.

    Returns:
        Some paragraphs.
    """
    runs = document["runs"]
    ours = merged([run for run in runs if run["server"] == OURS and run["mode"] not in ("ramp", "cases", "in-process")])
    parts = [report(ours), costs_table(ours)]
    if steps := [run for run in runs if run["mode"] == "ramp"]:
        parts.append(ramp_table(steps))
    parts += [cases_table(run, UNFILTERED) for run in merged([run for run in runs if run["mode"] == "cases"])]
    if document["peers"]:
        parts.append(peers_table({OURS: document["figures"], **document["peers"]}, concurrency, OURS))
    found = document["figures"]
    if alone := found.get("in-process: cpu us"):
        times = ", ".join(f"{name} {spelled(found[f'in-process: {name} ms'])} ms" for name in ("p50", "p99"))
        parts.append(f"in-process: {times}, {spelled(alone)} us of CPU a request")
        for n in concurrency:
            if served := found.get(f"closed, {n}: cpu us"):
                ratio = served["median"] / alone["median"]
                parts.append(f"served at {n}: {spelled(served)} us of CPU a request, x{ratio:.2f} of in-process")
    lines = [f"{name}: {spelled(figure)}" for name, figure in found.items() if len(figure["values"]) > 1]
    if lines:
        parts.append("figures, median (min..max) of the repeats:\n" + "\n".join(lines))
    return "\n\n".join([*parts, *document["faults"]])


def spelled(figure: Figure | None) -> str:
    """Returns median and spread for people.

    Args:
        figure: None for one that there is not.

    Returns:
        A word or two.
    """
    if figure is None:
        return "-"
    median, low, high = (_short(value) for value in (figure["median"], figure["min"], figure["max"]))
    return median if len(figure["values"]) == 1 else f"{median} ({low}..{high})"


def peers_table(by_server: Mapping[str, Figures], concurrency: Sequence[int], ours: str) -> str:
    """Returns the table of all servers, with ratios (x) of theirs to ours.

    Args:
        by_server: figures by the server's name.
        concurrency: callers of the closed loop.
        ours: the name of our server.

    Returns:
        Some lines.
    """
    low, *_, high = concurrency[0], *concurrency
    middle = concurrency[len(concurrency) // 2]
    wanted = dict.fromkeys(
        [
            f"closed, {middle}: per s",
            f"closed, {high}: per s",
            f"closed, {low}: p50 ms",
            f"closed, {middle}: p99 ms",
            f"closed, {middle}: cpu us",
            f"closed, {middle}: pss MiB",
        ]
    )
    rows = []
    for name, figures in by_server.items():
        cells = [name]
        for wish in wanted:
            figure, own = figures.get(wish), by_server[ours].get(wish)
            ratio = "-" if figure is None or own is None else f"{figure['median'] / own['median']:.2f}"
            cells += [spelled(figure), ratio]
        rows.append(cells)
    header = ["closed loop", *(cell for wish in wanted for cell in (wish.removeprefix("closed, "), "x"))]
    return table(header, rows, right=range(1, len(header)))


def cases_table(run: Run, plain: str) -> str:
    """Returns the latencies of every case, with the ratio (x) of its median to that of one case.

    Args:
        run: of the mode `cases`, its repeats merged.
        plain: the case to compare with.

    Returns:
        Some lines.
    """
    base = run["kinds"][plain]["latency_ms"]["p50"]
    rows = []
    for kind, numbers in sorted(run["kinds"].items(), key=lambda item: item[0] != plain):
        p50, p99 = (numbers["latency_ms"][name] for name in ("p50", "p99"))
        ratio = f"{p50 / base:.2f}" if p50 and base else "-"
        times = ("-", "-") if p50 is None else (f"{p50:.2f}", f"{p99:.2f}")
        rows.append((kind, f"{numbers['answered']:.0f}", *times, ratio))
    return table(("one caller, case by case", "answered", "p50 ms", "p99 ms", "x"), rows, right=range(1, 5))


def ramp_table(runs: Sequence[Run]) -> str:
    """Returns the steps of all ramps by rate.

    Args:
        runs: of the mode `ramp`.

    Returns:
        Some lines.
    """
    rows = [
        (
            f"{run['offered_per_s']:.0f}",
            f"{100 * run['answered'] / max(1, run['requests']):.1f} %",
            f"{run['latency_ms']['p50']:.2f}" if run["answered"] else "-",
            f"{run['latency_ms']['p99']:.2f}" if run["answered"] else "-",
            f"{100 * run['generator']['cpu_share']:.0f} %",
            "yes" if run["sustained"] else "no",
        )
        for run in sorted(runs, key=lambda run: float(run["offered_per_s"]))
    ]
    return table(("offered/s", "answered", "p50 ms", "p99 ms", "generator", "sustained"), rows, right=range(5))


def costs_table(runs: Sequence[Run]) -> str:
    """Returns what each kind of run cost the server and the generator.

    Args:
        runs: one per name.

    Returns:
        Some lines.
    """
    rows = []
    for run in runs:
        made = run["generator"]
        cost: ServerCost = run.get("server_cost", {})
        rows.append(
            (
                run["name"],
                _number(cost.get("cpu_us_per_request")),
                _number(cost.get("pss_mib")),
                _number(cost.get("private_mib")),
                _number(cost.get("private_mib_largest")),
                _number(made.get("cpu_us_per_request")),
                f"{100 * made['cpu_share']:.0f} %",
            )
        )
    header = (
        *("from the kernel", "server cpu us/request", "PSS MiB", "private", "of the largest process"),
        *("generator us/request", "of a core"),
    )
    return table(header, rows, right=range(1, 7))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
