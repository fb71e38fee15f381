"""Answers on their way to the answer log: which belong to the sample, and what it takes to answer them again."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lhydra.answers.entry import LoggedAnswer
from lhydra.answers.writer import AnswerLog
from lhydra.domain import Tier, UserState
from lhydra.lists.file import RuleSets
from lhydra.rules import Rules
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.config import WorkerSettings
from lhydra_server.metrics.worker import Metrics
from lhydra_server.served import Served

Asked = pb.RecommendRequest | pb.SimilarTracksRequest


@dataclass(frozen=True, slots=True)
class Seen:
    """What a request found when it began: the clock, the user's state, the rule set that it starts from.

    now: Unix seconds. at_ns: before the lookup, on the clock of `time.monotonic_ns`.
    """

    now: int
    at_ns: int
    state: UserState | None
    rules: Rules | None


class AnswerSampler:
    """Hands answers of the sample to the log.

    Args:
        log: of this worker.
        served: what answers.
        max_k: the largest k that a request may ask for.
    """

    def __init__(self, log: AnswerLog, served: Served, max_k: int) -> None:
        self.wants, self.close, self._put = log.wants, log.close, log.put
        self._place = served.bundle_id, served.recommender.depth, max_k

    def add(self, request: Asked, request_id: str, seen: Seen, reply: bytes) -> None:
        """Queues an answer; the entry is made by the thread that writes it.

        Args:
            request: as it came.
            request_id: of the call.
            seen: what it found.
            reply: a RecommendResponse as protobuf, as it is sent.
        """
        n_bytes = len(reply) + request.ByteSize() + _size(seen.state)
        self._put(partial(entry_of, request, request_id, seen, reply, *self._place), seen.at_ns, n_bytes)


def open_sampler(settings: WorkerSettings, served: Served, metrics: Metrics) -> AnswerSampler | None:
    """Begins the log of a worker.

    Args:
        settings: of the worker.
        served: what answers.
        metrics: what entries are counted in.

    Returns:
        What hands answers to the log; None where nothing is logged.
    """
    if not settings.log_answers:
        return None
    log = AnswerLog(
        Path(settings.answers),
        settings.log_answers,
        settings.answers_bytes,
        logged=metrics.answers_logged,
        dropped=metrics.answers_dropped,
    )
    return AnswerSampler(log, served, settings.max_k)


def rules_of(request: Asked, sets: RuleSets) -> Rules | None:
    """Returns the rule set that a request starts from.

    Args:
        request: as it came.
        sets: of the server.

    Returns:
        The set that it names, or the server's default; None for none.
    """
    return sets.sets.get(request.rules.set) if request.rules.set else None if request.rules.off else sets.default


def entry_of(
    request: Asked, request_id: str, seen: Seen, reply: bytes, bundle_id: str, depth: int, max_k: int
) -> LoggedAnswer:
    """Returns an answer as the log keeps it.

    Args:
        request: as it came.
        request_id: of the call.
        seen: what it found.
        reply: a RecommendResponse as protobuf.
        bundle_id: of the bundle that answered.
        depth: of the server.
        max_k: of the server.

    Returns:
        The entry.
    """
    said = pb.RecommendResponse.FromString(reply)
    chances = tuple(track.propensity for track in said.tracks)
    return LoggedAnswer(
        request_id,
        "Recommend" if isinstance(request, pb.RecommendRequest) else "SimilarTracks",
        request.user_id,
        seen.now,
        bundle_id,
        depth,
        max_k,
        request.SerializeToString(deterministic=True),
        seen.state,
        seen.rules,
        Tier(said.tier).label,
        tuple(said.degraded),
        tuple(track.track_id for track in said.tracks),
        tuple(track.score for track in said.tracks),
        chances if any(chances) else (),
    )


def _size(state: UserState | None) -> int:
    if state is None:
        return 0
    arrays = (state.history, state.heard, state.skipped, state.repeats, state.recent)
    return sum(array.nbytes for array in arrays)
