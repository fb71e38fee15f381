"""Three lists from one scoring: of all tracks, of those heard before, and of those that would be new.

What has no score stands behind what has one, the tracks with the most listeners first; so do equal scores.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt

from lhydra.domain import I64
from lhydra.evaluation.rolling.own import Scored
from lhydra.evaluation.rolling.past import F64, Known, Past

Figure = Literal["all", "repeat", "discovery"]
FIGURES: tuple[Figure, ...] = ("all", "repeat", "discovery")
K = 100  # places of a list


def belongs(figure: Figure, heard: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Tells which tracks a figure is about.

    Args:
        figure: all, those heard before, or those new.
        heard: (n,) bool by track.

    Returns:
        (n,) bool.
    """
    return np.ones(len(heard), np.bool_) if figure == "all" else heard if figure == "repeat" else ~heard


class Lister:
    """Makes lists for one moment after the other."""

    def __init__(self, past: Past, k: int = K) -> None:
        """Prepares the order of what has no score.

        Args:
            past: what is fitted on.
            k: places of a list.
        """
        self._k, self._favourites = k, past.favourites
        self._rank = np.empty(past.n_tracks, np.int64)
        self._rank[past.favourites] = np.arange(past.n_tracks)
        self._heard = np.zeros(past.n_tracks, np.bool_)

    def lists(self, known: Known, scored: Scored, figures: Iterable[Figure]) -> dict[Figure, I64]:
        """Makes the lists of a moment.

        Args:
            known: of the moment.
            scored: distinct tracks and their scores, above 0.
            figures: which lists.

        Returns:
            By figure, at most k distinct tracks, best first; fewer only where there are no more.
        """
        tracks, scores = scored
        self._heard[known.tracks] = True
        heard, found = self._heard[tracks], {}
        for figure in figures:
            fits = belongs(figure, heard)
            listed = self._best(tracks[fits], scores[fits])
            found[figure] = self._filled(listed, known, figure) if len(listed) < self._k else listed
        self._heard[known.tracks] = False
        return found

    def _best(self, tracks: I64, scores: F64) -> I64:
        """The k highest scores, ties by rank."""
        if len(scores) > 4 * self._k:
            threshold = np.partition(scores, len(scores) - self._k)[-self._k]
            tracks, scores = tracks[scores >= threshold], scores[scores >= threshold]
        return tracks[np.lexsort((self._rank[tracks], -scores))[: self._k]]

    def _filled(self, listed: I64, known: Known, figure: Figure) -> I64:
        """A short list and, behind it, the favourites that the figure is about."""
        if figure == "repeat":
            rest = np.unique(known.tracks)
            rest = rest[np.argsort(self._rank[rest])]
        else:
            enough = self._k + len(listed) + (len(known.tracks) if figure == "discovery" else 0)
            rest = self._favourites[:enough]
            rest = rest[belongs(figure, self._heard[rest])]
        return np.concatenate([listed, rest[~np.isin(rest, listed)]])[: self._k]
