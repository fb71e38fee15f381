"""A small catalogue and a recommender without a model: the server's laws are tested against it exactly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lhydra.bundle.strings import StringColumn
from lhydra.domain import (
    F32,
    I64,
    STAGES,
    Hashes,
    Query,
    Recommendation,
    Repeat,
    Tier,
    UserState,
    track_hashes,
)
from lhydra_protos.v1.wire import track_part
from lhydra_server.served import QueryAndCheck, Served

HALF = np.float32(0.5)


class FakeCatalog:
    """n tracks `t000`, `t001`, …; every third has no title and no artist."""

    def __init__(self, n: int) -> None:
        self.ids = [f"t{i:03}" for i in range(n)]
        self._row_of = {track: row for row, track in enumerate(track_hashes(self.ids).tolist())}

    def __len__(self) -> int:
        return len(self.ids)

    def title(self, row: int) -> str:
        return f"Title {row}" if row % 3 else ""

    def artist(self, row: int) -> str:
        return f"Artist {row % 7}" if row % 3 else ""

    def replies(self) -> StringColumn:
        parts = [
            track_part(name.encode(), self.title(row).encode(), self.artist(row).encode())
            for row, name in enumerate(self.ids)
        ]
        return StringColumn(np.frombuffer(b"".join(parts), np.uint8), np.cumsum([0, *map(len, parts)]))

    def rows(self, hashes: Hashes) -> I64:
        return np.array([self._row_of.get(track, -1) for track in hashes.tolist()], np.int64)


@dataclass
class FakeKnownUsers:
    """Nobody is known."""

    hits: int = 0


@dataclass
class FakeRecommender:
    """Scores by (7 · row) mod 10, so that many tie; remembers queries it began; `between` runs between stages."""

    catalog: FakeCatalog
    depth: int = 300
    fallbacks: int = 0
    known_users: FakeKnownUsers = field(default_factory=FakeKnownUsers)
    knows_repeats: bool = False
    queries: list[Query] = field(default_factory=list)
    between: Callable[[Callable[[], None]], None] = lambda check: None

    def recommend_many(self, asked: Sequence[QueryAndCheck]) -> list[Recommendation | Exception]:
        answers: list[Recommendation | Exception] = []
        for query, check in asked:
            try:
                answers.append(self.recommend(query, check))
            except Exception as error:
                answers.append(error)
        return answers

    def recommend(self, query: Query, check: Callable[[], None] = lambda: None) -> Recommendation:
        check()  # whoever has left by now is not begun
        self.queries.append(query)
        self.between(check)
        check()
        rows = np.arange(len(self.catalog))
        out = query.exclude if query.repeat is Repeat.ALLOW else np.union1d(query.exclude, query.state.heard)
        rows = rows[~np.isin(track_hashes(self.catalog.ids), out)]
        scores: F32 = ((7 * rows) % 10 / 10).astype(np.float32)
        best = rows[np.lexsort((rows, -scores))][: query.k]  # row order is id order here
        chosen = scores[np.searchsorted(rows, best)]
        stage_us = {stage: 10 for stage in STAGES if stage not in ("queue", "lookup")}
        return Recommendation(
            best, chosen, chosen + chosen, chosen * HALF, best, chosen * HALF, tier_of(query), stage_us
        )


def tier_of(query: Query) -> Tier:
    """Returns the tier that the design gives to such a query."""
    state: UserState = query.state
    if query.known:
        return Tier.PERSONAL
    if len(state.history):
        return Tier.HISTORY
    return Tier.SEGMENT if state.profile else Tier.POPULAR


def served(bundle_id: str = "b-1", n: int = 100) -> Served:
    """Returns a fake bundle in the form the service takes."""
    catalog = FakeCatalog(n)
    return Served(bundle_id, "m-1", 8, "Flat", FakeRecommender(catalog), catalog, catalog.replies())


def expected_ids(n: int, k: int, without: set[str] | frozenset[str] = frozenset()) -> list[str]:
    """Returns what the fake recommends, worked out in plain Python."""
    ids = [i for i in range(n) if f"t{i:03}" not in without]
    return [f"t{i:03}" for i in sorted(ids, key=lambda i: (-((7 * i) % 10), i))][:k]
