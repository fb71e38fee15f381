"""Explains answers of one bundle: the way of one track through a request that is served for it as any other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lhydra.domain import Query, Recommendation, Tier, track_hashes
from lhydra.explain.changes import Changes, Serve, bring_in
from lhydra.explain.path import Path, path_of
from lhydra.explain.pulls import SHOWN_PLAYS, Pull, groups_of, plays_of
from lhydra.explain.reasons import reasons_of
from lhydra.explain.sources import sources_of
from lhydra.recommender import Recommender
from lhydra.timing import timed
from lhydra.traced import Traced


@dataclass(frozen=True)
class Explained:
    """A track of a request, explained.

    Args:
        path: its way.
        title: "" where the catalog has none.
        artist: the same.
        pulls: plays that pulled it up, strongest first, at most SHOWN_PLAYS.
        groups: groups of features, strongest first.
        brings_in: changes of the request with which it was served, and its place then; see `lhydra.explain.changes`.
    """

    path: Path
    title: str = ""
    artist: str = ""
    pulls: tuple[Pull, ...] = ()
    groups: tuple[Pull, ...] = ()
    brings_in: tuple[tuple[Changes, int], ...] = ()


class Explainer:
    """Explains what a recommender answers; safe to use from several threads.

    Args:
        recommender: whose answers.
    """

    def __init__(self, recommender: Recommender) -> None:
        self.recommender = recommender

    def recommend_many(self, queries: Sequence[tuple[Query, Callable[[], None]]]) -> list[Recommendation | Exception]:
        """Answers queries as the recommender does, with sources and reasons for those that ask for them.

        Args:
            queries: at most MAX_BATCH, each with its check.

        Returns:
            An answer or an error for each.
        """
        answers: list[Recommendation | Exception] = []
        for traced in self.recommender.trace_many(queries):
            answer = traced.answer or traced.error
            if traced.query.explain and traced.answer is not None:
                try:
                    traced.check()
                    with timed("select", traced.stage_us):
                        sources = sources_of(self.recommender, traced, traced.answer.rows)
                        reasons = reasons_of(self.recommender, traced, sources)
                    answer = replace(traced.answer, sources=sources, reasons=reasons)
                except Exception as error:
                    answer = error
            answers.append(answer if answer is not None else AssertionError("neither answered nor refused"))
        return answers

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

    def explain(self, traced: Traced, track_id: str, max_k: int, serve: Serve) -> Explained:
        """Explains one track of an answer.

        Args:
            traced: the answer.
            track_id: of any track.
            max_k: the largest k that a request may ask for.
            serve: answers the request with changes.

        Returns:
            Its way, and what moved it.
        """
        catalog = self.recommender.catalog
        rows = catalog.rows(track_hashes([track_id]))
        path = path_of(self.recommender, traced, int(rows[0]))
        if path.row < 0:
            return Explained(path)
        pulls: list[Pull] = []
        groups: list[Pull] = []
        if path.tier is not Tier.POPULAR:
            pulls = [one for one in plays_of(self.recommender, traced, path.row)[:SHOWN_PLAYS] if one.logit > 0]
            names = catalog.track_ids(np.array([one.row for one in pulls], np.int64))
            pulls = [replace(one, name=name) for one, name in zip(pulls, names, strict=True)]
            groups = groups_of(self.recommender, traced, path.row)
        brings_in = bring_in(self.recommender, traced, path, max_k, serve)
        title, artist = catalog.titles(rows)[0], catalog.artists(rows)[0]
        return Explained(path, title, artist, tuple(pulls), tuple(groups), tuple(brings_in))
