"""The result of a benchmark, as it is written and read: its JSON has these keys."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from lhydra.errors import DataError, complain
from lhydra.files import read_json

FORMAT = 2
Percentiles = Mapping[str, float | None]  # p50, p90, p99, p99_9, mean, max; None where nothing was measured


class KindNumbers(TypedDict):
    """One kind of traffic within a run."""

    requests: int
    answered: int
    errors: Mapping[str, int]
    latency_ms: Percentiles


class GeneratorCost(TypedDict, total=False):
    """What the load generator took: `late_*` in the open loop only, `by` where it was h2load."""

    by: str
    cpu_share: float
    cpu_us_per_request: float
    late_share: float | None
    late_p99_ms: float | None
    late_max_ms: float | None


class ServerCost(TypedDict, total=False):
    """What all processes of the server took during a run, from the kernel."""

    cpu_s: float
    cpu_us_per_request: float
    cpu_by_process_s: Sequence[float]
    processes: int
    pss_mib: float
    private_mib: float
    rss_mib: float
    private_mib_largest: float


class Run(TypedDict, total=False):
    """One run. Every mode has the first block; what else there is depends on the mode."""

    server: str
    repeat: int
    mode: str
    name: str
    answered: int
    errors: Mapping[str, int]
    latency_ms: Percentiles
    stages_us: Mapping[str, Percentiles]
    tiers: Mapping[str, int]

    loop: str
    requests: int
    seconds: float
    throughput_per_s: float
    generator: GeneratorCost
    server_cost: ServerCost

    replies_read: int
    refused_ms: Percentiles
    kinds: Mapping[str, KindNumbers]
    bundles: Mapping[str, int]
    degraded: int
    tracks_min: int | None
    out_of_order: int

    offered_per_s: float
    goodput_per_s: float
    sustained: bool
    goodput_of_peak: float
    reply_bytes: Mapping[str, float]
    cpu_us_per_request: float


class Figure(TypedDict):
    """One number per repeat, and how to read it; better: "higher" or "lower"."""

    values: list[float]
    median: float
    min: float
    max: float
    better: str


Figures = Mapping[str, Figure]


class Document(TypedDict):
    """The whole result."""

    format: int
    measured: str
    command: Sequence[str]
    settings: Mapping[str, Any]
    users: Mapping[str, Any]
    bundle_id: str
    server: Mapping[str, Any]
    versions: Mapping[str, str | None]
    machine: Mapping[str, Any]
    spinning: Mapping[str, Any]
    rates: Mapping[str, float]
    faults: Sequence[str]
    figures: Figures
    peers: Mapping[str, Figures]
    runs: Sequence[Run]


COMPARED = ("settings", "server", "machine", "spinning", "rates", "figures")  # what a comparison reads


def read_document(path: Path) -> Document:
    """Returns what an earlier run wrote.

    Args:
        path: the JSON file.

    Returns:
        The document; the parts that a comparison reads are there and are mappings.

    Raises:
        DataError: the file cannot be read, has another format, or lacks one of those parts.
    """
    document: Any = read_json(path, DataError, "what an earlier run wrote")
    if document.get("format") != FORMAT:
        raise DataError(complain(path, f"format {document.get('format')}", f"format {FORMAT}: measure it again"))
    if missing := [name for name in COMPARED if not isinstance(document.get(name), dict)]:
        raise DataError(complain(path, f"no {missing[0]}", "a whole result: measure it again"))
    checked: Document = document
    return checked
