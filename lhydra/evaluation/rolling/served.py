"""What a model or a store answers at a moment: the request carries the plays up to then, as a client would send."""

from dataclasses import dataclass

import numpy as np

from lhydra.data.dataset import Dataset
from lhydra.domain import F32, I64, Query, Recommendation, Repeat
from lhydra.errors import DataError, complain
from lhydra.evaluation.lists import Recommends
from lhydra.evaluation.rolling.lists import Figure, K
from lhydra.evaluation.rolling.past import Known
from lhydra.queries import Request, to_query

SERVED, PICKED = "served", "served-allow"  # PICKED: the new tracks of the list where repeats are allowed


@dataclass(frozen=True)
class _Entry:
    """An entry of a request's history."""

    track_id: str
    count: float
    timestamp_s: int


class Served:
    """Asks a recommender for one moment after the other."""

    def __init__(self, recommender: Recommends, dataset: Dataset) -> None:
        """Brings catalog and tracks table together.

        Args:
            recommender: what is asked.
            dataset: whose tracks and users it is asked for.

        Raises:
            DataError: none of the dataset's tracks is in the catalog.
        """
        self._recommender, self._dataset = recommender, dataset
        self._rows = recommender.catalog.rows(dataset.hashes)
        if not (self._rows >= 0).any():
            raise DataError(complain(dataset.path, "no track of the catalogue", "the dataset that was trained on"))
        known = np.flatnonzero(self._rows >= 0)
        self._position = np.arange(len(recommender.catalog)) + dataset.n_tracks  # beyond the table: a sure miss
        self._position[self._rows[known]] = known
        self._profiles = list(dataset.profiles())

    def lists(self, known: Known, counts: F32) -> dict[tuple[Figure, str], I64]:
        """Makes the lists of a moment.

        Args:
            known: of the moment.
            counts: (n,) plays of each of its rows.

        Returns:
            By figure and name at most K positions in the tracks table, best first: with repeats allowed; the tracks
            heard, as the head orders them; without repeats; the new tracks of a longer list with repeats allowed.
        """
        heard = np.unique(known.tracks)
        everything = self._ask(known, counts, Repeat.ALLOW, K)
        longer = self._ask(known, counts, Repeat.ALLOW, K + len(heard))
        query = self._query(known, counts, Repeat.ALLOW, K)
        rows = self._rows[heard]
        rows = rows[rows >= 0]
        repeats = rows[np.lexsort((rows, -self._recommender.score(query.state, rows)[0]))] if len(rows) else rows
        return {
            ("all", SERVED): everything,
            ("repeat", SERVED): self._position[repeats][:K],
            ("discovery", SERVED): self._ask(known, counts, Repeat.EXCLUDE, K),
            ("discovery", PICKED): longer[~np.isin(longer, heard)][:K],
        }

    def _ask(self, known: Known, counts: F32, repeat: Repeat, k: int) -> I64:
        answer: Recommendation = self._recommender.recommend(self._query(known, counts, repeat, k))
        return self._position[answer.rows]

    def _query(self, known: Known, counts: F32, repeat: Repeat, k: int) -> Query:
        """The query of a request that says all that is known."""
        backwards = known.tracks[::-1]
        tracks, at = np.unique(backwards, return_index=True)
        total = np.bincount(np.searchsorted(tracks, known.tracks), counts, len(tracks))
        latest = known.times[::-1][at]
        ids = self._dataset.track_ids
        history = [
            _Entry(ids[tracks[n]], float(total[n]), int(latest[n])) for n in np.argsort(-at, kind="stable").tolist()
        ]
        request = Request("u", k, history=history, profile=self._profiles[known.user], repeat=repeat)
        return to_query(request, None, known.now)
