"""The numbers of a run, from its calls; and how people read them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.load import F64, Load
from lhydra_client.results import tier_name
from lhydra_client.table import table
from lhydra_protos.v1 import recommender_pb2 as pb

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}
OUTSIDE = "outside"  # latency minus the server's stages: gRPC, queues, the network, this client


def summarise(load: Load) -> dict[str, Any]:
    """Returns the numbers of one run; errors are counted and left out of latencies, stages and throughput."""
    replies = [pb.RecommendResponse.FromString(call.reply) for call in load.calls if call.code == "OK"]
    errors = Counter(call.code for call in load.calls if call.code != "OK")
    generator: dict[str, float | None] = {
        "cpu_share": load.cpu_s / load.wall_s,
        "late_share": None,
        "late_p99_ms": None,
        "late_max_ms": None,
    }
    if load.is_open and load.calls:
        late_ms = load.late_ms
        generator |= {
            "late_share": float(np.mean(late_ms > 1.0)),
            "late_p99_ms": float(np.percentile(late_ms, 99)),
            "late_max_ms": float(late_ms.max()),
        }
    return {
        "name": load.name,
        "loop": "open" if load.is_open else "closed",
        "requests": len(load.calls),
        "answered": len(replies),
        "errors": dict(errors),
        "seconds": load.wall_s,
        "throughput_per_s": len(replies) / load.wall_s,
        "latency_ms": percentiles(load.latency_ms, PERCENTILES),
        "stages_us": _stages(load.latency_ms, replies),
        "tiers": dict(Counter(tier_name(reply.tier) for reply in replies)),
        "bundles": dict(Counter(reply.bundle_id for reply in replies)),
        "degraded": sum(bool(reply.degraded) for reply in replies),
        "tracks_min": min((len(reply.tracks) for reply in replies), default=None),
        "generator": generator,
    }


def percentiles(sample: F64, wanted: Mapping[str, float]) -> dict[str, float | None]:
    """Returns the `wanted` percentiles (linear, as numpy's), mean and max of `sample`, (n,); None when empty."""
    if len(sample) == 0:
        return dict.fromkeys([*wanted, "mean", "max"])
    values = np.percentile(sample, list(wanted.values()))
    named: dict[str, float | None] = {name: float(value) for name, value in zip(wanted, values, strict=True)}
    return named | {"mean": float(sample.mean()), "max": float(sample.max())}


def _stages(latency_ms: F64, replies: Sequence[pb.RecommendResponse]) -> dict[str, dict[str, float | None]]:
    took_us: dict[str, list[int]] = {}
    for reply in replies:
        for stage in reply.stages:
            took_us.setdefault(stage.name, []).append(stage.took_us)
    inside = np.array([sum(stage.took_us for stage in reply.stages) for reply in replies])
    samples = {name: np.array(values, np.float64) for name, values in took_us.items()}
    samples[OUTSIDE] = latency_ms * 1e3 - inside if len(replies) else np.empty(0)
    return {name: percentiles(sample, {"p50": 50.0, "p99": 99.0}) for name, sample in samples.items()}


def report(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns the tables that people read."""
    header = ("ms from due to done", "p50", "p90", "p99", "p99.9", "max", "per s", "answered", "ERRORS")
    rows = [
        (
            run["name"],
            *(_ms(run["latency_ms"][name]) for name in (*PERCENTILES, "max")),
            f"{run['throughput_per_s']:.1f}",
            str(run["answered"]),
            ", ".join(f"{count} {code}" for code, count in run["errors"].items()) or "0",
        )
        for run in runs
    ]
    names = dict.fromkeys(name for run in runs for name in run["stages_us"])
    stages = [
        (name, *(_stage(run["stages_us"].get(name, {})) for run in runs)) for name in sorted(names, key=OUTSIDE.__eq__)
    ]
    return "\n\n".join(
        [
            table(header, rows, right=range(1, 8)),
            table(("stage µs, p50 / p99", *(run["name"] for run in runs)), stages, right=range(1, len(runs) + 1)),
            "\n".join(_notes(runs)),
        ]
    )


def _notes(runs: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    tiers: Counter[str] = sum((Counter(run["tiers"]) for run in runs), Counter())
    answered = max(1, sum(tiers.values()))
    mix = ", ".join(f"{tier} {100 * count / answered:.1f} %" for tier, count in tiers.most_common())
    yield f"tiers: {mix or 'no answer'}"
    if set(tiers) == {"popular"}:
        yield "ALL ANSWERS WERE POPULAR TRACKS: nothing personal was measured; give --dataset or --user-ids"
    shortest = min((run["tracks_min"] for run in runs if run["tracks_min"] is not None), default=0)
    yield f"shortest answer: {shortest} tracks; degraded answers: {sum(run['degraded'] for run in runs)}"
    bundles = {bundle for run in runs for bundle in run["bundles"]}
    if len(bundles) > 1:
        yield f"the bundle changed meanwhile: {', '.join(sorted(bundles))}"
    for run in runs:
        made = run["generator"]
        text = f"generator, {run['name']}: {100 * made['cpu_share']:.0f} % of one core"
        if made["late_share"] is not None:
            text += f"; {100 * made['late_share']:.1f} % sent more than 1 ms late (p99 {made['late_p99_ms']:.2f} ms)"
        yield text
    errors: Counter[str] = sum((Counter(run["errors"]) for run in runs), Counter())
    if errors:
        found = ", ".join(f"{count} {code}" for code, count in errors.items())
        yield f"ERRORS, not in the latencies above: {found}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _stage(numbers: Mapping[str, float | None]) -> str:
    p50, p99 = numbers.get("p50"), numbers.get("p99")
    return "-" if p50 is None or p99 is None else f"{p50:.0f} / {p99:.0f}"
