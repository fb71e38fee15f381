"""Binary classification metrics of predicted probabilities, numpy only."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

THRESHOLD = 0.5


@dataclass(frozen=True)
class Classification:
    """Measured on `pairs` examples, `positives` of them positive; a metric that is undefined there is None."""

    pairs: int
    positives: int
    accuracy: float | None
    precision: float  # 0 when nothing is predicted positive
    recall: float
    f1: float
    auc: float | None  # None unless both classes are present
    log_loss: float | None


def classify(labels: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.floating]) -> Classification:
    """Returns the metrics of `probabilities` (n,) for `labels` (n,) bool; positive is predicted at THRESHOLD."""
    labels, p = np.asarray(labels, bool), np.asarray(probabilities, np.float64)
    predicted = p >= THRESHOLD
    true_positives = int((predicted & labels).sum())
    precision = true_positives / max(1, int(predicted.sum()))
    recall = true_positives / max(1, int(labels.sum()))
    smallest = np.finfo(np.float64).eps  # keeps a confident mistake finite
    likelihood = np.clip(np.where(labels, p, 1 - p), smallest, 1 - smallest)
    return Classification(
        pairs=len(labels),
        positives=int(labels.sum()),
        accuracy=float((predicted == labels).mean()) if len(labels) else None,
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if true_positives else 0.0,
        auc=roc_auc(labels, p),
        log_loss=float(-np.log(likelihood).mean()) if len(labels) else None,
    )


def roc_auc(labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]) -> float | None:
    """Returns P(positive scores above negative), a tie counting half; None when a class is missing."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2  # 1-based, averaged over ties
    above = mean_rank[inverse][labels].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))
