"""Whom a build asks, and what they went on to play: held-out plays that a model has certainly not learned from."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from lhydra.bundle.model import REFITTED
from lhydra.data.dataset import VALID, AsOf, Dataset, user_states
from lhydra.domain import Hashes, UserState
from lhydra.errors import DataError
from lhydra.evaluation.run import Targets, find_targets
from lhydra.evaluation.unseen import unseen

MIN_USERS = 10  # with plays to judge by: of fewer, chance decides


@dataclass(frozen=True)
class HeldOut:
    """What users went on to play: `targets` counts in the tracks of a dataset, whose `hashes` are (tracks,)."""

    targets: Targets
    hashes: Hashes


@dataclass(frozen=True)
class UserSample:
    """Users whose lists the gate asks for, with what they went on to play, or why there is nothing to judge by."""

    states: Sequence[UserState]
    held_out: HeldOut | None = None
    why_none: str = "no plays held out"


def draw_users(
    dataset: Dataset, as_of: AsOf, targets: Targets | None, n: int, seed: int, why_none: str = ""
) -> UserSample:
    """Returns users of a dataset drawn at random, those with targets where there are any.

    Args:
        dataset: whose users.
        as_of: how much of their plays they have played.
        targets: what was held out, None where nothing was.
        n: users at most.
        seed: of the drawing.
        why_none: why there are no targets.

    Returns:
        The users, in the dataset's order.
    """
    if targets is not None:
        targets = targets.sample(n, seed)
        users = targets.users
    else:
        users = np.sort(np.random.default_rng(seed).permutation(len(dataset.user_ids))[:n])
    held_out = HeldOut(targets, dataset.hashes) if targets is not None else None
    return UserSample([state for _, state in user_states(dataset, as_of, positions=users)], held_out, why_none)


def for_depth(dataset: Dataset, fitted_on: str) -> tuple[AsOf, Targets | None]:
    """Returns as of when users are asked, and the validation plays, from which the towers have not learned.

    Args:
        dataset: whose users.
        fitted_on: what model.json says of the plays that the towers were fitted on.

    Returns:
        The time, and the held-out plays, None where there are none.
    """
    if fitted_on == REFITTED:
        return "refit", None
    targets = None
    if (dataset.plays.fold == VALID).any():
        with suppress(DataError):  # nobody played anything new
            targets = find_targets(dataset, "valid")
    return "valid", targets


def for_gate(dataset: Dataset, fitted: Mapping[str, Mapping[str, Any]]) -> tuple[Targets | None, str]:
    """Returns the test plays that no model has learned from: two models are judged by what is new to both.

    Args:
        dataset: whose users.
        fitted: by name of each model, the split that it was fitted under.

    Returns:
        The plays, None where there are too few of them, and why.
    """
    try:
        targets = find_targets(dataset, "test")
    except DataError:
        return None, "the test fold holds nothing that is new to its users"
    found = {name: unseen(dataset, targets, split, "test") for name, split in fitted.items()}
    left = targets.only(np.logical_and.reduce([one.mask for one in found.values()]))
    if len(left) >= MIN_USERS:
        return left, ""
    whys = "; ".join(f"{name}: {one.why}" for name, one in found.items() if one.why)
    return None, f"{len(left)} users with test plays that neither model has learned from, of {MIN_USERS} needed. {whys}"
