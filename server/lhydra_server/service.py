"""The methods of the API: translate, call the core, translate back."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np

from lhydra import __version__
from lhydra.domain import Query, Recommendation, Repeat, UserState, track_hashes
from lhydra.errors import FeatureError, InvalidRequest, Unsupported, UserStoreError
from lhydra.lists.file import RuleSets
from lhydra.queries import Request, to_query
from lhydra.recommender import LEARNT_AS_DECAY, MAX_BATCH
from lhydra.similar import SimilarQuery
from lhydra.timing import timed
from lhydra.users.store import UserStore
from lhydra.users.tag import user_tag
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.answers import AnswerSampler, Asked, Seen, rules_of
from lhydra_server.batcher import Batcher
from lhydra_server.config import FleetStatus
from lhydra_server.explain import asked_request, explain
from lhydra_server.filters import to_conditions
from lhydra_server.interceptors import Call
from lhydra_server.lookups import Lookups
from lhydra_server.metrics.counted import NOTHING_COUNTED, Counts
from lhydra_server.metrics.worker import Metrics, NoMetrics
from lhydra_server.replies import reply, unknown_values, unused_columns
from lhydra_server.rules import NO_SETS
from lhydra_server.served import QueryAndCheck, Served
from lhydra_server.translate import to_plays, to_request, to_similar

NO_METRICS = NoMetrics()
Answer = TypeVar("Answer")


def _tried(method: Callable[..., Answer], *args: object) -> Answer | Exception:
    """What a method returns, or its error as a value."""
    try:
        return method(*args)
    except Exception as error:
        return error


class RecommenderService:
    """Answers the calls of one worker; safe to call from several threads.

    Args:
        served: the opened bundle.
        users: the user store.
        max_k: the largest k that a request may ask for.
        fleet: returns what only the supervisor knows; called for every GetStatus.
        event_log: returns how the event log is; called for every GetStatus, which must not wait.
        metrics: what batches, plays and errors of the store are counted in.
        counted: returns what all workers have counted; called for every GetStatus, which must not wait.
        store: where bundles lie, for ListBundles; None where nobody can tell.
        answers: takes the sample of answers that are logged; None for none.
        clock: Unix seconds, from which ages count.
    """

    def __init__(
        self,
        served: Served,
        users: UserStore,
        *,
        max_k: int,
        fleet: Callable[[], FleetStatus] = FleetStatus,
        event_log: Callable[[], pb.EventLogStatus] = pb.EventLogStatus,
        metrics: Metrics = NO_METRICS,
        counted: Callable[[], Counts] = lambda: NOTHING_COUNTED,
        store: Path | None = None,
        answers: AnswerSampler | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._answers, self._clock = answers, clock
        self._served, self._users, self._max_k, self._fleet, self._metrics = served, users, max_k, fleet, metrics
        self._event_log, self._counted = event_log, counted
        self._batcher: Batcher[QueryAndCheck, Recommendation | Exception] = Batcher(
            self._recommend_many, MAX_BATCH, self._count_batch
        )
        self.rule_sets = NO_SETS  # replaced whole when the file of rules changes
        self._started_s = time.monotonic()
        self._count = itertools.count(1)
        self._answered = 0
        self._turn, self._alone, self._of_streams = Lock(), Lock(), 0
        self.lookups = Lookups(
            served, users, max_k=max_k, store=store, metrics=metrics, answered=self._count_answer, clock=clock
        )

    def Recommend(self, request: pb.RecommendRequest, call: Call) -> bytes:
        """Answers with the best tracks for a user.

        Args:
            request: as it came.
            call: the call in progress.

        Returns:
            A RecommendResponse as protobuf.

        Raises:
            InvalidRequest: the request can never be answered; names the field.
            Unsupported: the request asks for what this version does not answer.
            DeadlineExceeded: the caller left before the answer was computed.
        """
        query = self._query(request, call)
        return self._reply(request, call, *self._batcher.answer((query, call.check)))

    def recommend_many(self, asked: Sequence[tuple[pb.RecommendRequest, Call]]) -> Iterator[bytes | Exception]:
        """Answers requests of a stream, each as `Recommend` does; those of one stream at a time are queued.

        Args:
            asked: at most MAX_BATCH requests, each with its call.

        Yields:
            To each what `Recommend` returns or raises.
        """
        queries = [_tried(self._query, request, call) for request, call in asked]
        ready = [
            (query, call.check) for query, (_, call) in zip(queries, asked, strict=True) if isinstance(query, Query)
        ]
        with self._turn:  # others wait behind no more of streams than one batch
            self._of_streams = len(ready)
            found = iter(self._batcher.answer_many(ready))
            self._of_streams = 0
        for query, (request, call) in zip(queries, asked, strict=True):
            answer = next(found) if isinstance(query, Query) else query
            yield answer if isinstance(answer, Exception) else _tried(self._reply, request, call, *answer)

    def _query(self, request: pb.RecommendRequest, call: Call) -> Query:
        served, stage_us = self._served, call.stage_us
        call.notes |= {"bundle": served.bundle_id, "user": user_tag(request.user_id), "stage_us": stage_us}
        now, sets, began_ns = int(self._clock()), self.rule_sets, time.monotonic_ns()
        parsed = self._parsed(request, call, now, sets)
        with timed("lookup", stage_us):
            state = self._look_up(request.user_id, call)
            query = to_query(parsed, state, now)
        if self._answers is not None and self._answers.wants(call.request_id):
            call.seen = Seen(now, began_ns, state, rules_of(request, sets))
        self._note_degraded(parsed, call)
        call.check()
        return query

    def _reply(
        self, request: pb.RecommendRequest, call: Call, found: Recommendation | Exception, took_us: int
    ) -> bytes:
        if isinstance(found, FeatureError) and request.profile.columns:
            raise InvalidRequest("profile", str(found), "values that fit the features") from None
        if isinstance(found, Exception):
            raise found
        call.stage_us["queue"] = max(0, took_us - sum(found.stage_us.values()))
        return self._told(request, call, found)

    def _told(self, request: Asked, call: Call, found: Recommendation) -> bytes:
        served, stage_us, k = self._served, call.stage_us, request.k
        stage_us |= found.stage_us
        call.tier, call.short = found.tier.label, len(found.rows) < k
        call.notes |= {"tier": call.tier, "k": k}
        if call.short and request.HasField("filter"):
            conditions = to_conditions(request.filter, served.filters.names, served.genre)
            if reason := unknown_values(served.filters, conditions):
                call.degraded.append(reason)
        self._answered = next(self._count)
        said = reply(
            found,
            served.replies,
            stage_us,
            bundle_id=served.bundle_id,
            degraded=call.degraded,
            request_id=call.request_id,
        )
        if self._answers is not None and call.seen is not None:
            self._answers.add(request, call.request_id, call.seen, said)
        return said

    def RecordPlays(self, request: pb.RecordPlaysRequest, call: Call) -> pb.RecordPlaysResponse:
        """Appends plays to users' histories.

        Args:
            request: as it came.
            call: the call in progress.

        Returns:
            The numbers of plays that were new, seen before, and new but of tracks that the bundle does not hold.

        Raises:
            InvalidRequest: a play passes a limit; nothing is recorded.
            UserStoreError: the store does not answer.
            DeadlineExceeded: the deadline passed; the plays may or may not be recorded.
        """
        plays = to_plays(request)
        try:
            fresh = self._users.record(plays, call.deadline_s)
        except UserStoreError:
            self._metrics.user_store_error()
            raise
        tracks = track_hashes(play.track_id for play, new in zip(plays, fresh, strict=True) if new)
        recorded = sum(fresh)
        self._metrics.plays(recorded)
        call.notes |= {"recorded": recorded, "duplicates": len(plays) - recorded}
        self._answered = next(self._count)
        return pb.RecordPlaysResponse(
            recorded=recorded,
            duplicates=len(plays) - recorded,
            unknown_tracks=int(np.count_nonzero(self._served.catalog.rows(tracks) < 0)),
        )

    def GetStatus(self, request: pb.GetStatusRequest, call: Call) -> pb.GetStatusResponse:
        """Answers what is being served, and how the server is.

        Args:
            request: empty.
            call: the call in progress.

        Returns:
            The bundle, the limits, the counters of this worker, and what all have counted.
        """
        served, fleet, counted = self._served, self._fleet(), self._counted()
        self._answered = next(self._count)
        return pb.GetStatusResponse(
            bundle_id=served.bundle_id,
            model_id=served.model_id,
            lhydra_version=__version__,
            tracks=len(served.catalog),
            dim=served.dim,
            index_recipe=served.index_recipe,
            default_depth=served.recommender.depth,
            max_k=self._max_k,
            workers=fleet.workers,
            uptime_s=time.monotonic() - self._started_s,
            current_bundle_id=fleet.current_bundle_id,
            swap_error=fleet.swap_error,
            requests=self._answered,
            rules_error=fleet.rules_error,
            access_error=fleet.access_error,
            event_log=self._event_log(),
            rule_sets=list(self.rule_sets.sets),
            stages=counted.stages,
            methods=counted.methods,
            tiers=counted.tiers,
            refusals=counted.refusals,
            degraded=counted.degraded,
        )

    def SimilarTracks(self, request: pb.SimilarTracksRequest, call: Call) -> bytes:
        """Answers with the tracks most like some others.

        Args:
            request: as it came.
            call: the call in progress.

        Returns:
            A RecommendResponse as protobuf.

        Raises:
            InvalidRequest: the request can never be answered, or the bundle holds none of its seeds.
            Unsupported: this server's bundle cannot tell.
            DeadlineExceeded: the caller left before the answer was computed.
        """
        served, stage_us = self._served, call.stage_us
        if served.similar is None:
            raise Unsupported("SimilarTracks: this version does not answer it")
        call.notes |= {"bundle": served.bundle_id, "seeds": len(request.track_ids), "stage_us": stage_us}
        now, sets, began_ns = int(self._clock()), self.rule_sets, time.monotonic_ns()
        parsed = to_similar(request, self._max_k, served.filters.names, served.genre, now, sets, call.request_id)
        with timed("lookup", stage_us):
            state = self._look_up(request.user_id, call) if request.user_id else None
            query = to_query(parsed, state, now)
        if self._answers is not None and self._answers.wants(call.request_id):
            call.seen = Seen(now, began_ns, state, rules_of(request, sets))
        seeds, dislikes = track_hashes(request.track_ids), track_hashes(request.dislike_track_ids)
        if unknown := int(np.count_nonzero(served.catalog.rows(seeds) < 0)):
            call.degraded.append(f"unknown_tracks: this bundle does not hold {unknown} of {len(seeds)} seeds")
        call.check()
        personal = state is not None and len(state.history) > 0
        with self._alone:
            found = served.similar.find(SimilarQuery(seeds, query, dislikes, personal), call.check)
        return self._told(request, call, found)

    def Explain(self, request: pb.ExplainRequest, call: Call) -> pb.ExplainResponse:
        """Follows one track through all stages of a request, which is served for it.

        Args:
            request: as it came.
            call: the call in progress.

        Returns:
            Where the track got to, and why.

        Raises:
            InvalidRequest: the request can never be answered; names the field.
            Unsupported: what is served has nothing to explain.
            DeadlineExceeded: the caller left before it was done.
        """
        served = self._served
        if served.explainer is None:
            raise Unsupported("Explain: this version does not answer it")
        asked = asked_request(request, call.request_id)
        call.notes |= {"bundle": served.bundle_id, "user": user_tag(asked.user_id)}
        now, sets = int(self._clock()), self.rule_sets
        parsed = self._parsed(asked, call, now, sets)
        stored = self._look_up(asked.user_id, call)
        self._note_degraded(parsed, call)
        known = to_query(replace(parsed, session=()), stored, asked.now_s)

        def query_of(one: pb.RecommendRequest) -> Query:  # with what is known of the user merged once, not for each try
            lean = pb.RecommendRequest()
            lean.CopyFrom(one)
            lean.ClearField("history")
            lean.ClearField("profile")
            return replace(to_query(self._parsed(lean, call, now, sets), known.state, one.now_s), known=known.known)

        found = explain(served.explainer, asked, request.track_id, self._max_k, query_of, call.check)
        found.bundle_id, found.request_id = served.bundle_id, call.request_id
        found.degraded.extend(call.degraded)
        self._answered = next(self._count)
        return found

    def count_calls(self, in_flight: Callable[[], int]) -> None:
        """Tells the batcher how many calls are in flight, so that it yields the processor to those not queued yet.

        Args:
            in_flight: returns the calls that run or wait for a thread.
        """
        self._batcher.in_flight = lambda: in_flight() + self._of_streams

    def retry_after_ms(self, in_flight: int) -> int:
        """Estimates when the calls in flight will have been answered.

        Args:
            in_flight: how many calls.

        Returns:
            Milliseconds, at least 1.
        """
        return max(1, round((in_flight + self._of_streams) * self._batcher.mean_us / 1000))

    def _recommend_many(self, queries: Sequence[QueryAndCheck]) -> list[Recommendation | Exception]:
        recommender = self._served.recommender
        before, known = recommender.fallbacks, recommender.known_users.hits
        explained = self._served.explainer if any(query.explain for query, _ in queries) else None
        answers = recommender.recommend_many(queries) if explained is None else explained.recommend_many(queries)
        self._metrics.exact_fallback(recommender.fallbacks - before)
        self._metrics.known_users(recommender.known_users.hits - known)
        return answers

    def _count_answer(self) -> None:
        self._answered = next(self._count)

    def _count_batch(self, size: int, still_queued: int) -> None:
        self._metrics.batch(size)
        self._metrics.queue(still_queued)

    def _parsed(self, request: pb.RecommendRequest, call: Call, now: int, sets: RuleSets) -> Request:
        served = self._served
        if request.explain and served.explainer is None:
            raise Unsupported("explain: this version does not answer it")
        return to_request(request, self._max_k, served.filters.names, served.genre, now, sets, call.request_id)

    def _note_degraded(self, parsed: Request, call: Call) -> None:
        served = self._served
        if served.profile is not None and (reason := unused_columns(parsed.profile, served.profile)):
            call.degraded.append(reason)
        if parsed.repeat is Repeat.LEARNT and not served.recommender.knows_repeats:
            call.degraded.append(LEARNT_AS_DECAY)
        for name, plays in (("history", parsed.history), ("session", parsed.session)):
            ids = (play.track_id for play in plays)
            if plays and all(row < 0 for one in ids for row in served.catalog.rows(track_hashes([one]))):
                call.degraded.append(f"unknown_tracks: this bundle holds none of the {len(plays)} tracks of {name}")

    def _look_up(self, user_id: str, call: Call) -> UserState | None:
        """Returns the stored state, None for an unknown user; without a store the answer only loses in tier."""
        try:
            return self._users.get(user_id, call.deadline_s)
        except UserStoreError as error:
            self._metrics.user_store_error()
            call.outages.write("answered without the user store", error, call.request_id)
            call.degraded.append("user_store")
            return None
