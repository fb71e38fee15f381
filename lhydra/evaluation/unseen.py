"""Which targets a model has certainly not learned from: told by the split that it was fitted under."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.data.dataset import VALID, Dataset
from lhydra.domain import I64
from lhydra.evaluation.run import Moment, Targets

_DRAWN_PER_PAIR = 2  # the first rule by which a random split draws the fold of a pair, whatever else is in the log


@dataclass(frozen=True)
class Unseen:
    """mask: (m,) bool by target, True where the model has certainly not learned from it; why: what of the others."""

    mask: npt.NDArray[np.bool_]
    why: str


def unseen(dataset: Dataset, targets: Targets, fitted: Mapping[str, Any], as_of: Moment) -> Unseen:
    """Finds the targets that a model has certainly not learned from.

    A model fitted under the split of the dataset has seen none of them, and neither has one whose random split drew
    them for test too. Of any other model only the time of its newest play is known: it has not seen pairs of user and
    track that were played later alone.

    Args:
        dataset: whose plays the targets are.
        targets: of the fold `as_of`.
        fitted: `split` of the dataset that the model was fitted on, as model.json and manifest.json keep it.
        as_of: `test`: what towers and head may not have learned from; `valid`: what the towers may not.

    Returns:
        The targets; why is "" where all are unseen.
    """
    ours = dataset.info.split
    if ("hash" in fitted and fitted["hash"] == ours["hash"]) or drawn_apart(ours, fitted, as_of):
        learned = _in_valid(dataset, targets) if as_of == "test" else np.zeros(len(targets.tracks), np.bool_)
        why = (
            "the head was fitted on valid plays of them; with --mask seen they are no targets" if learned.any() else ""
        )
        return Unseen(~learned, why)
    nothing = np.zeros(len(targets.tracks), np.bool_)
    if not fitted:
        return Unseen(nothing, "the model does not say what it was fitted on; train it again")
    why = f"the model was fitted under another split ({describe(fitted)}; this dataset: {describe(ours)})"
    if "newest" not in fitted:
        return Unseen(nothing, f"{why}, which does not say how far it goes; prepare and train again")
    newest = max(fitted["newest"]["train"], fitted["newest"]["valid"] if as_of == "test" else 0)
    if not newest:
        return Unseen(nothing, f"{why}, whose plays have no times; train a model on this dataset")
    later = first_played(dataset, targets, as_of) > newest
    if later.all():
        return Unseen(later, "")
    date = datetime.fromtimestamp(newest, UTC).isoformat(timespec="seconds").removesuffix("+00:00")
    return Unseen(later, f"{why}, on plays up to {date}; train a model on this dataset, or evaluate on later plays")


def _in_valid(dataset: Dataset, targets: Targets) -> npt.NDArray[np.bool_]:
    """Which pairs the valid fold holds too: none but with the mask `train`."""
    plays = dataset.plays.where(dataset.plays.fold == VALID)
    keys = plays.user.astype(np.int64) * dataset.n_tracks + plays.track
    return np.isin(np.repeat(targets.users, np.diff(targets.offsets)) * dataset.n_tracks + targets.tracks, keys)


def drawn_apart(ours: Mapping[str, Any], fitted: Mapping[str, Any], as_of: Moment) -> bool:
    """Tells whether two random splits draw every pair alike, and the model's holds out at least what ours does.

    Args:
        ours: the `split` of a dataset.
        fitted: the one that a model was fitted under.
        as_of: the fold that counts as held out: `test`, or `valid` and test.

    Returns:
        Whether it is so; False of splits that are not random.
    """
    if any(split.get("protocol") != "random" or split.get("rule", 0) < _DRAWN_PER_PAIR for split in (ours, fitted)):
        return False
    if any(ours[name] != fitted[name] for name in ("rule", "seed")):
        return False
    held_out = [split["test"] + (split["valid"] if as_of == "valid" else 0) for split in (ours, fitted)]
    return bool(held_out[0] <= held_out[1])


def first_played(dataset: Dataset, targets: Targets, as_of: Moment) -> I64:
    """Finds before when no target was played.

    Args:
        dataset: whose plays the targets are. One of format 1 has kept the last time of a pair alone.
        targets: pairs of user and track.
        as_of: the fold of the targets.

    Returns:
        (m,) Unix seconds of the first play; of format 1 that of the only play, or where there are several the beginning
        of the fold, where it has one. 0 where nothing is known.
    """
    n_tracks, plays = dataset.n_tracks, dataset.events if dataset.has_events else dataset.plays
    wanted = np.repeat(targets.users, np.diff(targets.offsets)) * n_tracks + targets.tracks  # ascending
    keys = plays.user.astype(np.int64) * n_tracks + plays.track
    place = np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)
    of_target = wanted[place] == keys
    times = plays.time
    if not dataset.has_events:
        cuts = dataset.info.split.get("cuts")
        start = cuts["valid" if as_of == "test" else "train"] + 1 if cuts else 0
        times = np.where(plays.count <= 1, times, start)
    first = np.full(len(wanted), np.iinfo(np.int64).max)
    np.minimum.at(first, place[of_target], times[of_target])
    return first


def describe(split: Mapping[str, Any]) -> str:
    """Names a split in a few words.

    Args:
        split: of dataset.json.

    Returns:
        Its protocol, the seed of a random one, and the first digits of its hash.
    """
    seed = f", seed {split.get('seed')}" if split.get("protocol") == "random" else ""
    return f"{split.get('protocol')}{seed}, {str(split.get('hash'))[:8]}"
