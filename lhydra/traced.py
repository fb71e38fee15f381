"""One request on its way: what each stage has computed for it. `Explain` reads it, so it tells what really happened."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lhydra.bundle.candidates import NEAREST, StateRows
from lhydra.bundle.catalog import Catalog
from lhydra.bundle.eligible import EligibleSet
from lhydra.bundle.popular import most_played
from lhydra.domain import F32, I64, Query, Recommendation, Tier
from lhydra.features.histories import EncodedUsers
from lhydra.features.moment import Moment
from lhydra.ruled import Asked, Made, Prepared

NO_ROWS = np.empty(0, np.int64)
Nearest = tuple[int, I64, F32]  # how many were searched for, rows, inner products


def no_check() -> None:
    """Stops nothing."""


@dataclass(eq=False, slots=True)
class Traced:
    """One query and what the stages have computed for it so far; it ends with an answer or an error."""

    query: Query
    check: Callable[[], None]
    stage_us: dict[str, int] = field(default_factory=dict)
    tier: Tier = Tier.POPULAR
    state_rows: StateRows | None = None
    eligible: EligibleSet | None = None  # of the filter, None without one
    excluded: I64 = field(default_factory=lambda: NO_ROWS)  # rows that must not be returned
    prepared: Prepared | None = None  # of the rules, None without any
    barred: I64 = field(default_factory=lambda: NO_ROWS)  # that not even a pin may show
    known_by: bytes = b""  # of the user, see `lhydra.known_users`
    is_kept: bool = False  # by `lhydra.known_users`
    user: EncodedUsers | None = None
    vector: F32 | None = None  # (1, dim)
    depth: int = 0  # candidates that it takes
    nearest: tuple[Nearest, ...] = ()  # what the index found, now or before, newest first
    brought: dict[str, I64] = field(default_factory=dict)  # rows that each source found, where there are several
    candidates: tuple[I64, F32] | None = None  # rows and cosines
    moment: Moment | None = None  # where the head knows what comes next
    scored: tuple[F32, F32, F32] | None = None  # without rules: logits and scores of candidates, and what orders them
    made: Made | None = None  # by rules
    answer: Recommendation | None = None
    error: Exception | None = None

    @property
    def found_nearest(self) -> I64:
        """The rows that the index found."""
        assert self.candidates is not None
        return self.brought.get(NEAREST, self.candidates[0])

    def asked(self) -> Asked:
        """Returns what the rules of the request need to know of it."""
        assert self.prepared is not None
        assert self.user is not None
        return Asked(
            *(self.query, self.prepared, self.tier, self.user.histories.rows, self.eligible),
            *(self.barred, self.stage_us, self.check),
        )

    def most_played(self, catalog: Catalog, n: int, known: I64 = NO_ROWS) -> tuple[I64, F32]:
        """Finds the most played tracks that the request may return.

        Args:
            catalog: the tracks.
            n: how many.
            known: (m,) rows that are left out.

        Returns:
            (min(n, left),) rows, those of the listener's country first, and the share of listeners of each.
        """
        mask, country = self.eligible.mask if self.eligible else None, self.query.state.profile.get("country")
        return most_played(catalog, country, n, np.concatenate([self.excluded, known]), mask)


def unfinished(requests: list[Traced]) -> list[Traced]:
    """Returns the requests that have neither an answer nor an error.

    Args:
        requests: some.

    Returns:
        Those of them, in order.
    """
    return [request for request in requests if request.answer is None and request.error is None]


def run_stage(name: str, stage: Callable[[Traced], None], request: Traced) -> None:
    """Runs a stage for one request and adds up its time; after an error it runs none.

    Args:
        name: of the stage; empty for one that adds up its own times.
        stage: what to run.
        request: for which.
    """
    if request.error is not None:
        return
    started_ns = time.perf_counter_ns()
    try:
        request.check()
        stage(request)
    except Exception as error:
        request.error = error
    if name:
        took_us = (time.perf_counter_ns() - started_ns) // 1000
        request.stage_us[name] = request.stage_us.get(name, 0) + took_us


def share_time(stage: str, started_ns: int, requests: list[Traced]) -> None:
    """Adds an equal part of the time since `started_ns` to the stage of each request.

    Args:
        stage: its name.
        started_ns: of `time.perf_counter_ns`.
        requests: that shared the work.
    """
    took_us = (time.perf_counter_ns() - started_ns) // 1000 // len(requests)
    for request in requests:
        request.stage_us[stage] = request.stage_us.get(stage, 0) + took_us
