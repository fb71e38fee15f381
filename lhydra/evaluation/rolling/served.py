"""What a model or a store answers at a moment to a user whose plays up to then are in the user store."""

import numpy as np

from lhydra.data.clock import play_times
from lhydra.data.dataset import Dataset
from lhydra.data.plays import flags_of, state_of
from lhydra.domain import I64, Query, Repeat, UserState
from lhydra.errors import DataError, complain
from lhydra.evaluation.lists import Recommends
from lhydra.evaluation.rolling.lists import Figure, K
from lhydra.evaluation.rolling.past import Known

SERVED, PICKED = "served", "served-allow"  # PICKED: the new tracks of the list where repeats are allowed


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
        self._times, self._flags = play_times(dataset.events), flags_of(dataset.events)

    def lists(self, known: Known) -> dict[tuple[Figure, str], I64]:
        """Makes the lists of a moment.

        Args:
            known: of the moment.

        Returns:
            By figure and name at most K positions in the tracks table, best first: with repeats allowed; the tracks
            heard, as the head orders them; without repeats; the new tracks of a longer list with repeats allowed.
        """
        state, heard = self.state(known), np.unique(known.tracks)
        now = known.now or int(self._times[known.cut])

        def ask(repeat: Repeat, k: int) -> I64:
            query = Query(k, state, known=True, repeat=repeat, now=now)
            return self._position[self._recommender.recommend(query).rows]

        longer = ask(Repeat.ALLOW, K + len(heard))
        rows = self._rows[heard]
        rows = rows[rows >= 0]
        repeats = rows[np.lexsort((rows, -self._recommender.score(state, rows, now)[0]))] if len(rows) else rows
        return {
            ("all", SERVED): ask(Repeat.ALLOW, K),
            ("repeat", SERVED): self._position[repeats][:K],
            ("discovery", SERVED): ask(Repeat.EXCLUDE, K),
            ("discovery", PICKED): longer[~np.isin(longer, heard)][:K],
        }

    def state(self, known: Known) -> UserState:
        """Returns what the user store holds at a moment.

        Args:
            known: of the moment.

        Returns:
            The state after the plays that are known.
        """
        own = slice(known.cut - len(known.tracks), known.cut)
        hashes, counts = self._dataset.hashes[known.tracks], self._dataset.events.count[own]
        return state_of(self._profiles[known.user], hashes, counts, self._times[own], self._flags[own])
