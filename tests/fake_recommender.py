"""A real gRPC server whose answers the tests set: for the client and for the benchmark."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_protos.v1.recommender_pb2_grpc import RecommenderServicer, add_RecommenderServicer_to_server

Before = Callable[[Any, grpc.ServicerContext], None]

STAGES = {"lookup": 40, "encode": 15, "embed": 120, "retrieve": 300, "exclude": 5, "rerank": 400, "select": 20}
TRACKS = (
    pb.ScoredTrack(track_id="t1", score=0.75, retrieval_score=0.5, title="Blue Hour", artist="Ana Sol"),
    pb.ScoredTrack(track_id="t2", score=0.5, retrieval_score=-0.25, title="雨の夜", artist="東京\x1b[2J"),
    pb.ScoredTrack(track_id="t3", score=0.25, retrieval_score=0.125),
)

CATALOG = (
    pb.CatalogTrack(track_id="t1", title="Blue Hour", artist="Ana Sol", share=0.25),
    pb.CatalogTrack(track_id="t2", title="雨の夜", artist="東京\x1b[2J", removed=True),
)


def reply() -> pb.RecommendResponse:
    """Returns what the fake answers to Recommend and SimilarTracks."""
    return pb.RecommendResponse(
        tracks=TRACKS,
        bundle_id="b-1",
        tier=pb.TIER_HISTORY,
        degraded=["slow store"],
        stages=[pb.Stage(name=name, took_us=took_us) for name, took_us in STAGES.items()],
        request_id="r-7",
    )


class FakeRecommender(RecommenderServicer):
    """Keeps every request in `seen` and answers with `reply` and the like, after `before(request, context)`."""

    def __init__(self, before: Before = lambda request, context: None) -> None:
        self.before = before
        self.seen: list[Any] = []
        self.reply = reply()

    def _take(self, request: Any, context: grpc.ServicerContext) -> None:
        self.seen.append(request)
        self.before(request, context)

    def Recommend(self, request: pb.RecommendRequest, context: Any) -> pb.RecommendResponse:
        self._take(request, context)
        return self.reply

    def SimilarTracks(self, request: pb.SimilarTracksRequest, context: Any) -> pb.RecommendResponse:
        self._take(request, context)
        return self.reply

    def RecordPlays(self, request: pb.RecordPlaysRequest, context: Any) -> pb.RecordPlaysResponse:
        self._take(request, context)
        return pb.RecordPlaysResponse(recorded=len(request.plays), duplicates=0, unknown_tracks=1)

    def Explain(self, request: pb.ExplainRequest, context: Any) -> pb.ExplainResponse:
        self._take(request, context)
        return pb.ExplainResponse(bundle_id="b-1", tier=pb.TIER_PERSONAL, stopped_at="exclude", reasons=["heard"])

    def GetTracks(self, request: pb.GetTracksRequest, context: Any) -> pb.GetTracksResponse:
        self._take(request, context)
        return pb.GetTracksResponse(tracks=CATALOG, unknown_ids=["t9"], bundle_id="b-1", request_id="r-7")

    def SearchTracks(self, request: pb.SearchTracksRequest, context: Any) -> pb.SearchTracksResponse:
        self._take(request, context)
        return pb.SearchTracksResponse(tracks=CATALOG, found=1234, bundle_id="b-1", request_id="r-7")

    def GetUser(self, request: pb.GetUserRequest, context: Any) -> pb.GetUserResponse:
        self._take(request, context)
        if request.user_id == "nobody":
            return pb.GetUserResponse(bundle_id="b-1")
        return pb.GetUserResponse(
            known=True,
            profile=pb.Profile(columns={"country": pb.Value(text="Chile")}),
            history=[pb.HeardTrack(track_id="t1", title="Blue Hour", artist="Ana Sol", count=3, last_s=1_700_000_000)],
            history_tracks=7,
            heard_tracks=1234,
            plays=[pb.RecentPlay(timestamp_s=1_700_000_000, skipped=True)],
            session=1,
            bundle_id="b-1",
        )

    def SearchUsers(self, request: pb.SearchUsersRequest, context: Any) -> pb.SearchUsersResponse:
        self._take(request, context)
        return pb.SearchUsersResponse(user_ids=["ana", "an\x1b[2J"], more=True)

    def ListBundles(self, request: pb.ListBundlesRequest, context: Any) -> pb.ListBundlesResponse:
        self._take(request, context)
        gate = pb.GateVerdict(name="overlap", verdict="refused", found=0.5, limit=0.7)
        return pb.ListBundlesResponse(
            bundles=[
                pb.BundleInfo(bundle_id="b-2", current=True, created_s=1_700_000_000, tracks=1234, gates=[gate]),
                pb.BundleInfo(bundle_id="b-1", serving=True, error="no manifest"),
            ]
        )

    def GetMap(self, request: pb.GetMapRequest, context: Any) -> pb.GetMapResponse:
        self._take(request, context)
        return pb.GetMapResponse(
            track_ids=["t1", "t2"],
            places=b"\x01\x00\x00\x01\xff\xff\x00\x00",
            column="genre",
            values=["Jazz"],
            value_of=b"\x00\xff",
            projection="pca",
            bundle_id="b-1",
        )

    def RecommendMany(self, request_iterator: Any, context: Any) -> Iterator[pb.RecommendResponse]:
        for request in request_iterator:
            self._take(request, context)
            if request.k:
                yield self.reply
            else:
                yield pb.RecommendResponse(request_id="r-8", error=pb.Error(code=3, message="k: found 0, expected 1"))

    def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        self._take(request, context)
        return pb.GetStatusResponse(
            bundle_id="b-1", model_id="m-1", lhydra_version="0.1.0", tracks=3, dim=8, index_recipe="flat",
            default_depth=200, max_k=1000, workers=1, uptime_s=1.5, current_bundle_id="b-2",
            swap_error="b-2: vectors.npy: found 1, expected 2", requests=9,
            stages=[pb.Percentiles(name="embed", count=1234, p50_us=90, p90_us=180, p99_us=300)],
            tiers=[pb.Counted(name="personal", count=7)],
        )  # fmt: skip


@contextmanager
def serving(
    servicer: RecommenderServicer,
    *,
    workers: int = 8,
    options: tuple[tuple[str, Any], ...] = (),
    host: str = "127.0.0.1",
) -> Iterator[str]:
    """Serves `servicer` on a free port of `host`, or at unix:PATH, with `workers` threads; yields the address."""
    with ThreadPoolExecutor(workers) as pool:
        server = grpc.server(pool, options=options)
        add_RecommenderServicer_to_server(servicer, server)
        at_path = host.startswith("unix:")
        port = server.add_insecure_port(host if at_path else f"{host}:0")
        server.start()
        try:
            yield host if at_path else f"{host}:{port}"
        finally:
            server.stop(grace=None).wait()
