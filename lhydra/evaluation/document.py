"""The evaluation document: what `lhydra evaluate --json` writes, and what the report and `lhydra compare` read.

It holds JSON values only; a number that is undefined is null. Its parts are made by the other modules here. A key as
`ndcg@10` is a metric at a list length; of a dict[str, Interval], which ones there are is told by `protocol.ks`.
"""

from pathlib import Path
from typing import Any, Final, Literal, NotRequired, TypedDict

from lhydra.errors import DataError, complain
from lhydra.files import read_json
from lhydra.typed import checked

FORMAT = 1
NDCG: Final = "ndcg@10"  # always measured, as is recall: what differences and cohorts are told in
RECALL: Final = "recall@20"
Verdict = Literal["ok", "warning", "leak"]
WRITTEN_BY = "what `lhydra evaluate --json` wrote"


class Interval(TypedDict):
    """A mean over users and its 95 % interval, null with fewer than two users; without any the mean is too."""

    mean: float | None
    low: float | None
    high: float | None


class Difference(TypedDict):
    """The mean over users of one thing less another, and its 95 % interval; null as those of `Interval`."""

    difference: float | None
    low: float | None
    high: float | None


class Source(TypedDict):
    """What was evaluated: the current bundle of a store, or a model."""

    store: NotRequired[str]
    model: NotRequired[str]
    bundle_id: NotRequired[str | None]
    model_id: NotRequired[str | None]
    fitted_on: NotRequired[str | None]


class Seen(TypedDict):
    """Of so many targets, how many the model may have learned from, and why; 0 and "" where surely none."""

    targets: int
    of: int
    why: str


class TieRange(TypedDict):
    """The share of the lists with equal scores at place k and k + 1; NDCG@k by the order of equal scores."""

    k: int
    lists: float
    lowest: float
    highest: float


class Protocol(Source):
    """What was measured and how; two documents with the same `hash` can be compared."""

    dataset: NotRequired[str]
    split: dict[str, Any]
    as_of: str
    ks: list[int]
    mrr_depth: int
    users: int | str  # `all`, or how many were drawn
    seed: int
    ranked: str
    targets: str
    negatives: str
    seen: NotRequired[Seen]
    lhydra_version: str
    hash: str


class Counts(TypedDict):
    """How many of what."""

    users: int
    users_without_list: int
    users_of_head_alone: int
    targets: int
    targets_not_in_catalogue: int
    heard_before: int
    catalogue: int
    reranked: int


BaselineFacts = TypedDict(
    "BaselineFacts",
    {
        "chosen": dict[str, Any],
        "tried": int,
        "took_s": float | None,
        "cached": bool,
        "skipped": str | None,
        "valid_ndcg@10": float | None,
    },
)
"""How a baseline was chosen, or why it was skipped."""

Paired = TypedDict("Paired", {"ndcg@10": Difference, "recall@20": Difference})
"""The cascade less a baseline, over the same users."""


class DepthLoss(TypedDict):
    """The head on the nearest `depth` tracks alone, beside the head on all."""

    depth: int
    overlap: float | None
    ndcg: float
    ndcg_difference: float


class CascadeLoss(TypedDict):
    """What retrieval hides from the head, by depth."""

    k: int
    full: dict[str, float]
    curve: list[DepthLoss]
    users: int


class SourceShare(TypedDict):
    """What a source of candidates brings: a share of them, targets found by it and only by it, and those listed."""

    source: str
    candidates: float
    found: int
    found_alone: int
    listed: int
    listed_alone: int


class Sources(TypedDict):
    """Of so many targets, how many are candidates and among the first `k` of the list; then by source."""

    k: int
    targets: int
    found: int
    listed: int
    by_source: list[SourceShare]


class CalibrationBin(TypedDict):
    """Examples of near probability: how likely they were said to be, and how many were played."""

    low: float
    high: float
    n: int
    predicted: float
    observed: float


class ClassificationPart(TypedDict):
    """The head as a classifier of single pairs."""

    pairs: int
    positives: int
    accuracy: float | None
    precision: float
    recall: float
    f1: float
    auc: float | None
    pr_auc: float | None
    log_loss: float | None
    ece: float | None
    negatives: str
    roc: list[list[float]]
    pr: list[list[float]]
    confusion: list[list[int]]
    calibration: list[CalibrationBin]


Cohort = TypedDict("Cohort", {"by": str, "name": str, "users": int, "ndcg@10": Interval, "recall@20": Interval})
"""A group of users, and how the cascade serves it."""

Slice = TypedDict(
    "Slice",
    {
        "at_most": NotRequired[int],
        "targets": int,
        "users": int,
        "ndcg@10": float | None,
        "recall@20": float | None,
        "intervals": dict[str, Interval],
    },
)
"""The cascade judged on some of the targets."""


class Slices(TypedDict):
    """Where there is little to learn from."""

    few_play_tracks: Slice
    new_tracks: Slice
    new_users: Slice
    cold_users: Slice


BeyondAccuracy = TypedDict(
    "BeyondAccuracy",
    {
        "coverage@10": float,
        "popularity_lift": float | None,
        "inter_user_overlap": float | None,
        "intra_list_diversity": float | None,
        "novelty": float | None,
        "genre_calibration": float | None,
        "alarms": list[str],
    },
)
"""What the served lists are like, whoever is right; defined in `beyond`."""


class Finding(TypedDict):
    """What a leak check found; `figure` is a share, a count or a correlation, as `found` says."""

    check: str
    verdict: Verdict
    found: str
    figure: float | None


class Reached(TypedDict):
    """How many targets were listed, and where the others were lost."""

    targets: int
    hit: int
    lost_in_retrieval: int
    lost_in_rerank: int


class ReachedBin(Reached):
    """The same of targets with near numbers of train listeners; `bin` says which."""

    bin: str


class MissedTrack(TypedDict):
    """A track that many wanted and few were recommended."""

    track_id: str
    title: str
    targets: int
    found: int
    listeners: int


ServedUser = TypedDict(
    "ServedUser", {"user_id": str, "ndcg@10": float, "history": list[str], "list": list[str], "missed": list[str]}
)
"""A user served badly; tracks by title."""


class Mistakes(TypedDict):
    """Single mistakes for people to look at."""

    users: list[ServedUser]
    tracks: list[MissedTrack]
    by_popularity: list[ReachedBin]
    by_stage: Reached


class Drop(TypedDict):
    """What a stage loses when an input is shuffled: mean over users, and its 95 % interval."""

    stage: str
    drop: float | None
    low: float | None
    high: float | None


class GroupDrop(Drop):
    """Of a group of inputs, shuffled as one."""

    group: str


class FeatureDrop(Drop):
    """Of a single input."""

    feature: str


class Importance(TypedDict):
    """Permutation importance."""

    metric: str
    users: int
    repeats: int
    base: float | None
    groups: list[GroupDrop]
    features: list[FeatureDrop]
    notes: list[str]


class PerUser(TypedDict):
    """Metrics by user: stages[stage][metric] in the order of `users`, null where a stage was not asked."""

    users: list[str]
    stages: dict[str, dict[str, list[float | None]]]


class RuleGains(TypedDict):
    """What a rule set does to the served top 10 beyond accuracy; null where the dataset cannot tell."""

    distance_by_tags: float | None
    distance_by_co_listening: float | None
    calibration_error: float | None
    novelty: float | None


RuleFigures = TypedDict(
    "RuleFigures",
    {"name": str, "ndcg@10": float, "paired": Difference, "coverage@10": float, "gains": RuleGains},
)


class Document(TypedDict):
    """An evaluation; `ranking` and `per_user.stages` go by stage or baseline, `baselines` and `paired` by baseline."""

    format: int
    protocol: Protocol
    summary: list[str]
    counts: Counts
    ties: NotRequired[TieRange]
    ranking: dict[str, dict[str, Interval]]
    baselines: dict[str, BaselineFacts]
    paired: dict[str, Paired]
    cascade_loss: CascadeLoss
    sources: NotRequired[Sources]
    classification: ClassificationPart
    cohorts: list[Cohort]
    slices: Slices
    beyond_accuracy: BeyondAccuracy
    leaks: list[Finding]
    mistakes: Mistakes | None
    importance: Importance | None
    training: list[dict[str, Any]]  # the lines of the model's metrics.jsonl
    per_user: PerUser
    rules: NotRequired[list[RuleFigures]]  # no rules first, then the sets of a file


def read_document(path: Path) -> Document:
    """Reads an evaluation document.

    Args:
        path: a JSON file.

    Returns:
        The document, every part of it checked.

    Raises:
        DataError: no such file, no JSON, another format, or a part that is missing or of another type.
    """
    document = read_json(path, DataError, WRITTEN_BY)
    if document.get("format") != FORMAT:
        raise DataError(complain(path, "another document", WRITTEN_BY))
    return checked(document, Document, path, DataError, "write it again with `lhydra evaluate --json`")
