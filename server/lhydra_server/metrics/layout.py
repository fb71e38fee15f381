"""The layout of a worker's block of metrics: the families and where the numbers of each lie."""

import itertools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from lhydra.domain import STAGES, Tier

OTHER = "other"  # stands for every label value that is not listed here
METHODS = (
    *("Recommend", "SimilarTracks", "RecordPlays", "Explain", "RecommendMany"),
    *("GetTracks", "SearchTracks", "GetStatus", "GetUser", "SearchUsers", "ListBundles", "GetMap"),
)
CODES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE"),
    *("UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
TIERS = tuple(tier.label for tier in Tier)
DEGRADED = ("user_store", "unused_profile_columns", "repeat_policy learnt", "unknown_tracks", "unknown_values")
REFUSED = ("overload", "deadline", "unread", "unauthenticated", "permission", "rate")
LATENCY_US = (
    *(10, 25, 50, 100, 200, 300, 400, 600, 800, 1_000, 1_500, 2_000, 3_000, 5_000, 7_500),
    *(10_000, 20_000, 50_000, 100_000, 250_000, 1_000_000),
)
BATCH = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


@dataclass(frozen=True)
class Family:
    """One metric that workers count, and where in a block its numbers are.

    labels: the values of each. bounds: upper bounds of a histogram, in the unit that is counted, of which `per` make
    the unit that is shown. first: the place of its first child. Children lie in the order of the product of their
    labels: one number each, or of a histogram the sum and then the count of each bucket, +Inf last. shared: a gauge of
    what all workers see alike, so that they are not added up.
    """

    name: str
    kind: str  # counter, gauge or histogram
    text: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bounds: tuple[int, ...] = ()
    per: int = 1
    first: int = 0
    shared: bool = False

    @property
    def width(self) -> int:
        """Numbers per child."""
        return len(self.bounds) + 2 if self.bounds else 1

    @property
    def places(self) -> dict[tuple[str, ...], int]:
        """The place of each child, by its label values."""
        children = itertools.product(*self.labels.values())
        return {child: self.first + i * self.width for i, child in enumerate(children)}

    @property
    def end(self) -> int:
        """The place after its last child."""
        return self.first + len(self.places) * self.width


def _laid_out(*families: Family) -> dict[str, Family]:
    placed, first = {}, 1  # the first number is the mark of the layout
    for family in families:
        family = Family(**{**vars(family), "first": first})
        placed[family.name], first = family, family.end
    return placed


FAMILIES = _laid_out(
    Family(
        *("lhydra_requests_total", "counter", "Calls answered, by method and gRPC code."),
        {"method": (*METHODS, OTHER), "code": (*CODES, OTHER)},
    ),
    Family(
        *("lhydra_request_seconds", "histogram", "Time inside the handler."),
        {"method": (*METHODS, OTHER)},
        LATENCY_US,
        per=1_000_000,
    ),
    Family(
        *("lhydra_stage_seconds", "histogram", "Time of each stage of Recommend."),
        {"stage": (*STAGES, OTHER)},
        LATENCY_US,
        per=1_000_000,
    ),
    Family("lhydra_answers_total", "counter", "Lists returned, by tier and bundle.", {"tier": (*TIERS, OTHER)}),
    Family(
        *("lhydra_degraded_total", "counter", "Answers made with less than there is, by what was missing."),
        {"reason": (*DEGRADED, OTHER)},
    ),
    Family(
        *("lhydra_short_answers_total", "counter", "Lists shorter than k, because no more tracks were eligible."),
    ),
    Family(
        *(
            "lhydra_exact_fallbacks_total",
            "counter",
            "Searches done again, wider or exactly, because the index fell short.",
        ),
    ),
    Family("lhydra_known_users_total", "counter", "Users who were encoded for an earlier request already."),
    Family("lhydra_batch_size", "histogram", "Requests computed together.", {}, BATCH),
    Family("lhydra_queue_depth", "gauge", "Requests waiting for the compute turn now."),
    Family("lhydra_in_flight", "gauge", "Calls being answered now, those that wait included."),
    Family(
        *("lhydra_refused_total", "counter", "Calls given up before the work was done, by reason."),
        {"reason": (*REFUSED, OTHER)},
    ),
    Family("lhydra_plays_recorded_total", "counter", "Plays recorded, without those that were known."),
    Family("lhydra_log_lines_lost_total", "counter", "Log lines left out, because nobody read the log or it was full."),
    Family("lhydra_answers_logged_total", "counter", "Answers written to the answer log."),
    Family("lhydra_answers_logged_bytes_total", "counter", "Bytes written to the answer log, before compression."),
    Family(
        *("lhydra_answers_dropped_total", "counter", "Answers of the sample not logged: no room, or an error."),
    ),
    *(
        Family(name, "gauge", text, shared=True)
        for name, text in (
            ("lhydra_event_log_entries", "Plays in the event log."),
            ("lhydra_event_log_bytes", "What the event log takes, of memory or disk."),
            ("lhydra_event_log_oldest_seconds", "Unix time at which its oldest entry was recorded, 0 without one."),
            ("lhydra_event_log_free_bytes", "Room in the LMDB file of the user store for what is recorded next."),
        )
    ),
    Family("lhydra_user_store_errors_total", "counter", "Reads and writes of the user store that failed."),
)
CELLS = max(family.end for family in FAMILIES.values())
BLOCK_BYTES = 8 * CELLS
LAYOUT_MARK = zlib.crc32(repr(FAMILIES).encode())
