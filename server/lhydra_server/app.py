"""The gRPC side of a worker: one server with the API, health and reflection, bound to a shared port."""

import time

import grpc
from grpc_health.v1 import health

from lhydra.logs import AccessLog
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server import reflection, streams
from lhydra_server.access import Access
from lhydra_server.address import count_connections, stop_listening
from lhydra_server.admission import CallPool, DirectPool, ReadAheadPool, StreamPool
from lhydra_server.config import longest_drain_s
from lhydra_server.credentials import Certificates
from lhydra_server.health import Health
from lhydra_server.interceptors import AccessInterceptor, HandlerFactory
from lhydra_server.metrics.worker import Metrics, NoMetrics
from lhydra_server.service import RecommenderService
from lhydra_server.socket_file import path_of
from lhydra_server.tracing import Tracing
from lhydra_server.unread import UnreadReplies

SERVICE = pb.DESCRIPTOR.services_by_name["Recommender"].full_name
CALL_THREADS = 64  # of calls that are queued for a batch, or wait for the user store; they sleep
WATCHES, REFLECTIONS, STREAMS = 64, 8, 8  # at a time
MAX_REQUEST_BYTES = 2**20
MAX_STREAMS = 1_000  # calls on one connection
MAX_PENDING = 500  # calls of one moment, 15 kB each, that gRPC keeps until this process takes them, .3 ms each
CONNECTION_GRACE_S = 5.0  # for the calls of a connection that has reached its age: no wait for a caller is longer
HANDSHAKE_S = 10.0  # for a connection to say that it speaks HTTP/2
NO_METRICS, ACCESS_LOG = NoMetrics(), AccessLog(name="lhydra_server.calls")


class Listener:
    """A bound gRPC server. NOT_SERVING until `start`, and again from `drain` on.

    Args:
        service: answers the calls of the API.
        address: HOST:PORT or unix:PATH.
        max_in_flight: calls of the API, running or waiting for a thread; more get RESOURCE_EXHAUSTED at once.
        connection_age_s: how long a client keeps a connection (± 10 %); at its end gRPC opens another one, to any of
            the workers, without a call noticing.
        metrics: what calls are counted in.
        access_log: where each call has its line.
        access: checks the callers' tokens.
        certificates: of TLS; None for none.
        reflected: whether the API describes itself.
        tracing: is told of each call; None for none.

    Raises:
        RuntimeError: the address cannot be bound.
    """

    def __init__(
        self,
        service: RecommenderService,
        address: str,
        *,
        max_in_flight: int,
        connection_age_s: float = 5.0,
        metrics: Metrics = NO_METRICS,
        access_log: AccessLog = ACCESS_LOG,
        access: Access | None = None,
        certificates: Certificates | None = None,
        reflected: bool = True,
        tracing: Tracing | None = None,
    ) -> None:
        self._connection_age_s = connection_age_s
        self._unread = UnreadReplies(lambda: metrics.refused("unread"))
        handlers = HandlerFactory(metrics, access_log, self._unread, tracing)
        refusal = handlers.overloaded(lambda: service.retry_after_ms(self._calls.in_flight))
        threads = min(max_in_flight, CALL_THREADS)
        self._calls = CallPool("call", threads, max_in_flight, refusal, self._count)
        self._writes = CallPool("write", threads, max_in_flight, refusal, self._count)  # they wait for each other
        self._watches = CallPool("watch", WATCHES, WATCHES, refusal)
        self._reflections = StreamPool("reflection", REFLECTIONS, REFLECTIONS, refusal)
        self._streams = ReadAheadPool("stream", STREAMS, STREAMS, refusal, self._count)
        self._direct = DirectPool(refusal)
        self._metrics = metrics
        service.count_calls(lambda: self._calls.in_flight)
        self._health = Health(("", SERVICE), self.stuck_s)
        look = service.lookups
        by_name = {
            "Recommend": handlers.unary("Recommend", pb.RecommendRequest, service.Recommend, self._calls),
            "SimilarTracks": handlers.unary(
                "SimilarTracks", pb.SimilarTracksRequest, service.SimilarTracks, self._calls
            ),
            "RecordPlays": handlers.unary("RecordPlays", pb.RecordPlaysRequest, service.RecordPlays, self._writes),
            "Explain": handlers.unary("Explain", pb.ExplainRequest, service.Explain, self._calls),
            "GetTracks": handlers.unary("GetTracks", pb.GetTracksRequest, look.GetTracks, self._calls),
            "SearchTracks": handlers.unary("SearchTracks", pb.SearchTracksRequest, look.SearchTracks, self._calls),
            "GetMap": handlers.unary("GetMap", pb.GetMapRequest, look.GetMap, self._calls),
            "GetUser": handlers.unary("GetUser", pb.GetUserRequest, look.GetUser, self._calls),
            "SearchUsers": handlers.unary("SearchUsers", pb.SearchUsersRequest, look.SearchUsers, self._calls),
            "ListBundles": handlers.unary("ListBundles", pb.ListBundlesRequest, look.ListBundles, self._calls),
            "RecommendMany": handlers.stream(
                streams.behavior(handlers, service.recommend_many, access or Access()), self._streams
            ),
            "GetStatus": handlers.unary("GetStatus", pb.GetStatusRequest, service.GetStatus, self._direct),
        }
        pending = max(MAX_PENDING, 2 * max_in_flight)
        self._server = grpc.server(
            self._direct,
            handlers=[
                grpc.method_handlers_generic_handler(SERVICE, by_name),
                self._health.handler(self._direct, self._watches),
                *(reflection.handlers((SERVICE, health.SERVICE_NAME), self._reflections) if reflected else ()),
            ],
            interceptors=[AccessInterceptor(access, handlers)] if access is not None and access.closed else None,
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
                ("grpc.max_connection_age_ms", int(connection_age_s * 1000)),
                ("grpc.max_connection_age_grace_ms", int(CONNECTION_GRACE_S * 1000)),
                ("grpc.max_concurrent_streams", MAX_STREAMS),
                ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_S * 1000)),
                ("grpc.server.max_pending_requests", pending),  # beyond it gRPC itself ends calls: CANCELLED
                ("grpc.server.max_pending_requests_hard_limit", pending),
            ],
        )
        if certificates is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, certificates.credentials())
        self._bound = path_of(address) or self.port

    def start(self) -> None:
        """Begins to answer, and says so."""
        self._server.start()
        self._health.serve()

    def drain(self, notice_s: float = 0.0) -> None:
        """Leaves without failing a call; returns when no client is connected any more, or when all had to go.

        Health says NOT_SERVING at once. After the notice, new connections go to other workers. Those that are here
        end by age; until then they are answered as before.

        Args:
            notice_s: seconds that clients which watch health have to leave by themselves.
        """
        self._health.leave()
        time.sleep(notice_s)
        stop_listening(self._bound)
        self._health.end()  # whoever waits for us only would keep us
        self._reflections.cancel()
        last_s = time.monotonic() + longest_drain_s(self._connection_age_s)
        while count_connections(self._bound) and time.monotonic() < last_s:
            time.sleep(0.05)

    def stop(self, grace_s: float) -> None:
        """Takes no more calls and returns when those in progress are answered.

        Args:
            grace_s: seconds after which they are cancelled.
        """
        self._health.end()
        self._reflections.cancel()
        stopped = self._server.stop(grace_s)
        while not stopped.wait(0.05):
            for pool in (self._calls, self._writes, self._streams, self._direct, self._watches):
                pool.end_awaited()

    def stuck_s(self) -> float:
        """Returns for how many seconds a call has been running past every limit; 0 while none is."""
        return self._calls.stuck_s()

    def _count(self) -> None:
        self._metrics.in_flight(self._calls.in_flight + self._writes.in_flight + self._streams.in_flight)
