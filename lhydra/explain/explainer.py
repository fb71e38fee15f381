"""Explains answers of one bundle: the way of one track through a request that is served for it as any other."""

from collections.abc import Callable
from dataclasses import dataclass

from lhydra.domain import Query, track_hashes
from lhydra.explain.path import Path, path_of
from lhydra.recommender import Recommender
from lhydra.traced import Traced


@dataclass(frozen=True)
class Explained:
    """A track of a request, explained.

    Args:
        path: its way.
        title: "" where the catalog has none.
        artist: the same.
    """

    path: Path
    title: str = ""
    artist: str = ""


class Explainer:
    """Explains what a recommender answers; safe to use from several threads.

    Args:
        recommender: whose answers.
    """

    def __init__(self, recommender: Recommender) -> None:
        self.recommender = recommender

    def trace(self, query: Query, check: Callable[[], None]) -> Traced:
        """Answers a query as it would be served.

        Args:
            query: any.
            check: called between stages; what it raises stops the work.

        Returns:
            The answer and how it came about.

        Raises:
            FeatureError: the profile does not fit the features.
        """
        traced = self.recommender.trace_many([(query, check)])[0]
        if traced.error is not None:
            raise traced.error
        return traced

    def explain(self, traced: Traced, track_id: str) -> Explained:
        """Explains one track of an answer.

        Args:
            traced: the answer.
            track_id: of any track.

        Returns:
            Its way, and what moved it.
        """
        catalog = self.recommender.catalog
        rows = catalog.rows(track_hashes([track_id]))
        path = path_of(self.recommender, traced, int(rows[0]))
        if path.row < 0:
            return Explained(path)
        return Explained(path, catalog.titles(rows)[0], catalog.artists(rows)[0])
