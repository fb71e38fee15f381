"""Equal scores: which of the tracks that share a score a list shows is decided by their order, and not by the model.

The order is that of the served lists, by row, and so by track id, everywhere: it favours nobody. What a figure owes to
it is told by the worst and the best that other orders of the same scores would give.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lhydra.domain import I64, Recommendation, Tier, UserState
from lhydra.evaluation.lists import Recommends
from lhydra.evaluation.metrics import rank_metrics
from lhydra.queries import known_user

K = 10  # the list length that verdicts are about


@dataclass(frozen=True)
class Ties:
    """at_cut: (n,) bool by user, whether the places K and K + 1 share a score. worst, best: (n, K) rows, -1 padded."""

    at_cut: npt.NDArray[np.bool_]
    worst: I64
    best: I64

    def ndcg(self, offsets: I64, wanted: I64, catalogue_size: int) -> tuple[float, float]:
        """Computes the mean NDCG@K of the worst and the best order.

        Args:
            offsets: (n + 1,) where the targets of each user are.
            wanted: catalog rows of the targets, ascending within a user.
            catalogue_size: how many tracks there are.

        Returns:
            The lowest and the highest figure that the order of equal scores can give.
        """
        lowest, highest = (
            rank_metrics(lists, offsets, wanted, catalogue_size, (K,)).means()[f"ndcg@{K}"]
            for lists in (self.worst, self.best)
        )
        return lowest, highest


def none_yet(n: int) -> Ties:
    """Makes room for users.

    Args:
        n: how many.

    Returns:
        Ties without lists, to be filled in.
    """
    return Ties(np.zeros(n, np.bool_), np.full((n, K), -1, np.int64), np.full((n, K), -1, np.int64))


def note(
    ties: Ties, place: int, recommender: Recommends, state: UserState, answer: Recommendation, wanted: I64
) -> None:
    """Notes what the order of equal scores makes of one user's list.

    Args:
        ties: filled in.
        place: of the user.
        recommender: who answered.
        state: of the user.
        answer: of more than K tracks where there are so many.
        wanted: rows of the user's targets, in any order.
    """
    top = answer.logits[: K + 1]
    ties.at_cut[place] = len(top) > K and top[K - 1] == top[K]
    rows, logits = answer.rows, answer.logits
    if (top[1:] == top[:-1]).any():
        if ties.at_cut[place]:
            rows, logits = _whole(recommender, state, answer)
        hit = np.isin(rows, wanted)
        worst, best = (rows[np.lexsort((rows, last, -logits))[:K]] for last in (hit, ~hit))
    else:
        worst = best = rows[:K]
    ties.worst[place, : len(worst)], ties.best[place, : len(best)] = worst, best


def _whole(recommender: Recommends, state: UserState, answer: Recommendation) -> tuple[I64, "npt.NDArray[np.float32]"]:
    """Rows and logits of a list that is long enough to hold all tracks that share the score of place K."""
    tied, most = answer.logits[K - 1], len(recommender.catalog)
    if answer.tier is not Tier.POPULAR:
        most = len(answer.candidates)  # all that was scored
    while answer.logits[-1] == tied and len(answer.rows) < most:
        longer = recommender.recommend(known_user(state, min(most, 4 * len(answer.rows))))
        if len(longer.rows) <= len(answer.rows):
            break
        answer = longer
    return answer.rows, answer.logits
