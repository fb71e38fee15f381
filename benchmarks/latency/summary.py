"""The numbers of a run, from its calls; and how people read them."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from benchmarks.latency.load import F64, FEEDBACK, Call, Load, latencies_ms
from benchmarks.latency.results import GeneratorCost, KindNumbers, Percentiles, Run
from lhydra_client.results import tier_name
from lhydra_client.table import table
from lhydra_protos.v1 import recommender_pb2 as pb

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9}
LAST_BIT = 1e-6
REFUSED = "RESOURCE_EXHAUSTED"
OUTSIDE = "outside"  # latency minus the server's stages: gRPC, queues, the network, this client


def summarise(load: Load) -> Run:
    """Returns the numbers of one run; errors are counted and left out of latencies, stages and throughput.

    Args:
        load: what the run saw.

    Returns:
        The numbers; server, repeat and mode are added by who made the run.
    """
    answered = [call for call in load.calls if call.code == "OK"]
    read = [call for call in answered if call.reply is not None and call.kind != FEEDBACK]
    replies = [pb.RecommendResponse.FromString(call.reply or b"") for call in read]
    generator: GeneratorCost = {
        "cpu_share": load.cpu_s / load.wall_s,
        "cpu_us_per_request": 1e6 * load.cpu_s / max(1, len(load.calls)),
        "late_share": None,
        "late_p99_ms": None,
        "late_max_ms": None,
    }
    if load.is_open and load.calls:
        late_ms = load.late_ms
        generator["late_share"] = float(np.mean(late_ms > 1.0))
        generator["late_p99_ms"] = float(np.percentile(late_ms, 99))
        generator["late_max_ms"] = float(late_ms.max())
    return {
        "name": load.name,
        "loop": "open" if load.is_open else "closed",
        "requests": len(load.calls),
        "answered": len(answered),
        "errors": _errors(load.calls),
        "replies_read": len(replies),
        "seconds": load.wall_s,
        "throughput_per_s": len(answered) / load.wall_s,
        "latency_ms": percentiles(load.latency_ms, PERCENTILES),
        "refused_ms": percentiles(latencies_ms(load.calls, REFUSED), PERCENTILES),
        "kinds": {kind: _kind([call for call in load.calls if call.kind == kind]) for kind in _kinds(load.calls)},
        "stages_us": _stages(latencies_ms(read), replies),
        "tiers": dict(Counter(tier_name(reply.tier) for reply in replies)),
        "bundles": dict(Counter(reply.bundle_id for reply in replies)),
        "degraded": sum(bool(reply.degraded) for reply in replies),
        "tracks_min": min((len(reply.tracks) for reply in replies), default=None),
        "out_of_order": sum(not in_order(reply) for reply in replies),
        "generator": generator,
    }


def in_order(reply: pb.RecommendResponse) -> bool:
    """Whether the tracks are distinct and their scores never rise, but for the last bit of a sigmoid.

    Args:
        reply: of `Recommend`.

    Returns:
        Whether it is so.
    """
    scores = [track.score for track in reply.tracks]
    distinct = len({track.track_id for track in reply.tracks}) == len(scores)
    return distinct and all(a >= b - LAST_BIT for a, b in itertools.pairwise(scores))


def _errors(calls: Sequence[Call]) -> dict[str, int]:
    return dict(Counter(call.code for call in calls if call.code != "OK"))


def _kinds(calls: Sequence[Call]) -> list[str]:
    return sorted({call.kind for call in calls})


def _kind(calls: Sequence[Call]) -> KindNumbers:
    latency_ms, errors = latencies_ms(calls), _errors(calls)
    return {
        "requests": len(calls),
        "answered": len(latency_ms),
        "errors": errors,
        "latency_ms": percentiles(latency_ms, PERCENTILES),
    }


def percentiles(sample: F64, wanted: Mapping[str, float]) -> dict[str, float | None]:
    """Returns percentiles, mean and max of a sample.

    Args:
        sample: (n,) numbers.
        wanted: percentiles (linear, as numpy's) by the name that each gets.

    Returns:
        The numbers by name, `mean` and `max` among them; all None for an empty sample.
    """
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


def merged(runs: Sequence[Run]) -> list[Run]:
    """Merges the repeats of every run.

    Args:
        runs: of one server.

    Returns:
        One run per name: medians of the numbers, sums of what is counted.
    """
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run["name"] if run["mode"] != "knee" else "knee", []).append(run)
    return [_merge(name, repeats) for name, repeats in by_name.items()]


def _merge(name: str, runs: Sequence[Run]) -> Run:
    whole = _medians(runs) | {"name": name}
    for key in ("errors", "tiers", "bundles"):
        whole[key] = dict(sum((Counter(cast(Mapping[str, int], run.get(key, {}))) for run in runs), Counter[str]()))
    for key in ("requests", "answered", "degraded", "out_of_order"):
        whole[key] = sum(run.get(key, 0) for run in runs)
    whole["tracks_min"] = min((least for run in runs if (least := run.get("tracks_min")) is not None), default=None)
    return cast(Run, whole)


def _medians(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of numbers, key by key, mappings within mappings; the first of anything else."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values = [part[key] for part in parts if part.get(key) is not None]
        if values and all(isinstance(value, Mapping) for value in values):
            found[key] = _medians(values)
        elif values and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            found[key] = float(np.median(values))
        else:
            found[key] = values[0] if values else None
    return found


def report(runs: Sequence[Run]) -> str:
    """Returns the tables of runs that people read: latencies, stages, notes.

    Args:
        runs: one per name.

    Returns:
        Some lines.
    """
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
    told = [run for run in runs if run["stages_us"]]
    stages = [
        (name, *(_stage(run["stages_us"].get(name, {})) for run in told)) for name in sorted(names, key=OUTSIDE.__eq__)
    ]
    return "\n\n".join(
        [
            table(header, rows, right=range(1, 8)),
            table(("stage µs, p50 / p99", *(run["name"] for run in told)), stages, right=range(1, len(told) + 1)),
            "\n".join(_notes(runs)),
        ]
    )


def _notes(runs: Sequence[Run]) -> Iterable[str]:
    tiers: Counter[str] = sum((Counter(run.get("tiers", {})) for run in runs), Counter())
    answered = max(1, sum(tiers.values()))
    mix = ", ".join(f"{tier} {100 * count / answered:.1f} %" for tier, count in tiers.most_common())
    yield f"tiers: {mix or 'no answer'}"
    if set(tiers) == {"popular"}:
        yield "ALL ANSWERS WERE POPULAR TRACKS: nothing personal was measured; give --dataset or --user-ids"
    shortest = min((least for run in runs if (least := run.get("tracks_min")) is not None), default=0)
    degraded, wrong = sum(run.get("degraded", 0) for run in runs), sum(run.get("out_of_order", 0) for run in runs)
    yield f"of the replies read: shortest {shortest} tracks, {degraded} degraded, {wrong} OUT OF ORDER"
    bundles = {bundle for run in runs for bundle in run.get("bundles", ())}
    if len(bundles) > 1:
        yield f"the bundle changed meanwhile: {', '.join(sorted(bundles))}"
    for run in runs:
        made = run["generator"]
        text = f"generator, {run['name']}: {100 * made['cpu_share']:.0f} % of one core"
        if (late := made.get("late_share")) is not None:
            text += f"; {100 * late:.1f} % sent more than 1 ms late (p99 {made['late_p99_ms']:.2f} ms)"
        if made.get("by"):
            text += f" ({made['by']}; statuses of gRPC not read)"
        yield text
    errors: Counter[str] = sum((Counter(run["errors"]) for run in runs), Counter())
    if errors:
        found = ", ".join(f"{count} {code}" for code, count in errors.items())
        yield f"ERRORS, not in the latencies above: {found}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _stage(numbers: Percentiles) -> str:
    p50, p99 = numbers.get("p50"), numbers.get("p99")
    return "-" if p50 is None or p99 is None else f"{p50:.0f} / {p99:.0f}"
