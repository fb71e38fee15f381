"""Binary classification metrics of predicted probabilities, their curves and calibration, numpy only."""

from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from lhydra.evaluation.document import CalibrationBin, ClassificationPart

F64 = npt.NDArray[np.float64]
THRESHOLD = 0.5
BINS = 15  # of the calibration table, of equal numbers of examples; equal probabilities stay together
_CURVE_POINTS = 200


@dataclass(frozen=True)
class Classification:
    """Measured on `pairs` examples, `positives` of them positive; a metric that is undefined there is None."""

    pairs: int
    positives: int
    accuracy: float | None
    precision: float  # 0 when nothing is predicted positive
    recall: float
    f1: float
    auc: float | None  # area under the ROC curve; None unless both classes are present
    pr_auc: float | None  # average precision; None without a positive
    log_loss: float | None
    ece: float | None  # expected calibration error: mean |observed - predicted| over the bins, by examples


def classify(labels: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.floating]) -> Classification:
    """Computes the metrics; positive is predicted from THRESHOLD up.

    Args:
        labels: (n,) bool.
        probabilities: (n,) float, 0 to 1.

    Returns:
        The metrics.
    """
    labels, p = np.asarray(labels, bool), np.asarray(probabilities, np.float64)
    predicted = p >= THRESHOLD
    true_positives = int((predicted & labels).sum())
    precision = true_positives / max(1, int(predicted.sum()))
    recall = true_positives / max(1, int(labels.sum()))
    smallest = np.finfo(np.float64).eps  # keeps a confident mistake finite
    likelihood = np.clip(np.where(labels, p, 1 - p), smallest, 1 - smallest)
    bins = calibration(labels, p)
    return Classification(
        pairs=len(labels),
        positives=int(labels.sum()),
        accuracy=float((predicted == labels).mean()) if len(labels) else None,
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if true_positives else 0.0,
        auc=roc_auc(labels, p),
        pr_auc=average_precision(labels, p),
        log_loss=float(-np.log(likelihood).mean()) if len(labels) else None,
        ece=sum(row["n"] * abs(row["observed"] - row["predicted"]) for row in bins) / len(labels) if bins else None,
    )


def describe(
    labels: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.floating], negatives: str
) -> ClassificationPart:
    """Computes `classification` of the document.

    Args:
        labels: (n,) bool.
        probabilities: (n,) float, 0 to 1.
        negatives: where the negatives come from, in words.

    Returns:
        The metrics, curves and tables.
    """
    labels, p = np.asarray(labels, bool), np.asarray(probabilities, np.float64)
    predicted = p >= THRESHOLD
    confusion = np.bincount(2 * labels + predicted, minlength=4).reshape(2, 2)
    found = asdict(classify(labels, p)) | {
        "negatives": negatives,
        "roc": roc_curve(labels, p),
        "pr": pr_curve(labels, p),
        "confusion": confusion.tolist(),  # [[true negatives, false positives], [false negatives, true positives]]
        "calibration": calibration(labels, p),
    }
    return cast(ClassificationPart, found)  # Classification has the names of the part


def roc_auc(labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> float | None:
    """Computes the area under the ROC curve: P(positive scores above negative), a tie counting half.

    Args:
        labels: (n,) bool.
        scores: (n,) float.

    Returns:
        0 to 1; None when a class is missing.
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2  # 1-based, averaged over ties
    above = mean_rank[inverse][labels].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def average_precision(labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> float | None:
    """Computes the sum of precision times the step in recall over the distinct scores.

    Args:
        labels: (n,) bool.
        scores: (n,) float.

    Returns:
        0 to 1; None without a positive.
    """
    true, false = _cumulated(labels, scores)
    if not len(true) or not true[-1]:
        return None
    return float((np.diff(true, prepend=0) / true[-1] * true / (true + false)).sum())


def roc_curve(labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> list[list[float]]:
    """Computes the ROC curve.

    Args:
        labels: (n,) bool.
        scores: (n,) float.

    Returns:
        [false positive rate, true positive rate] from (0, 0) to (1, 1); [] when a class is missing.
    """
    true, false = _cumulated(labels, scores)
    if not len(true) or not true[-1] or not false[-1]:
        return []
    points = np.stack([false / false[-1], true / true[-1]], axis=1)
    return _thinned(np.concatenate([np.zeros((1, 2)), points]))


def pr_curve(labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> list[list[float]]:
    """Computes the precision-recall curve.

    Args:
        labels: (n,) bool.
        scores: (n,) float.

    Returns:
        [recall, precision] as the threshold falls; [] without a positive.
    """
    true, false = _cumulated(labels, scores)
    if not len(true) or not true[-1]:
        return []
    return _thinned(np.stack([true / true[-1], true / (true + false)], axis=1))


def calibration(
    labels: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.floating], bins: int = BINS
) -> list[CalibrationBin]:
    """Computes the calibration table.

    Args:
        labels: (n,) bool.
        probabilities: (n,) float, 0 to 1.
        bins: of equal numbers of examples; equal probabilities stay together, so there may be fewer.

    Returns:
        Per bin: low, high (its least and largest probability), n, predicted (mean), observed (share).
    """
    if not len(labels):
        return []
    p = np.asarray(probabilities, np.float64)
    edges = np.quantile(p, np.linspace(0, 1, bins + 1)[1:-1])
    place = np.searchsorted(edges, p)
    rows: list[CalibrationBin] = []
    for own in (place == number for number in np.unique(place)):
        rows.append(
            {
                "low": float(p[own].min()),
                "high": float(p[own].max()),
                "n": int(own.sum()),
                "predicted": float(p[own].mean()),
                "observed": float(labels[own].mean()),
            }
        )
    return rows


def _cumulated(labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> tuple[F64, F64]:
    """(positives, negatives) at or above each distinct score, highest score first."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)[: len(labels)]
    true = np.cumsum(labels[order], dtype=np.float64)[last]
    return true, np.arange(1, len(labels) + 1)[last] - true


def _thinned(points: F64) -> list[list[float]]:
    """At most _CURVE_POINTS of `points`, first and last among them."""
    chosen = np.unique(np.linspace(0, len(points) - 1, _CURVE_POINTS).round().astype(np.int64))
    kept: list[list[float]] = points[chosen].round(6).tolist()
    return kept
