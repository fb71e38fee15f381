"""The gRPC side of a worker: one server with the API, health and reflection, bound to a shared port."""

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lhydra.logs import AccessLog
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.address import count_connections, stop_listening
from lhydra_server.config import longest_drain_s
from lhydra_server.interceptors import AdmissionControl, CountingPool, HandlerFactory
from lhydra_server.metrics.worker import Metrics, NoMetrics
from lhydra_server.service import RecommenderService

SERVICE = pb.DESCRIPTOR.services_by_name["Recommender"].full_name
RECOMMENDER_THREADS = 64  # of calls that are queued for a batch, or wait for the user store; they sleep
HEALTH_THREADS = 4  # of health and reflection, which must answer while all of those are taken
MAX_REQUEST_BYTES = 2**20
NO_METRICS, ACCESS_LOG = NoMetrics(), AccessLog(name="lhydra_server.calls")


class Listener:
    """A bound gRPC server. NOT_SERVING until `start`, and again from `drain` on.

    Args:
        service: answers the calls of the API.
        address: HOST:PORT.
        max_in_flight: calls of the API, running or waiting for a thread; more get RESOURCE_EXHAUSTED at once.
        connection_age_s: how long a client keeps a connection (± 10 %); at its end gRPC opens another one, to any of
            the workers, without a call noticing.
        metrics: what calls are counted in.
        access_log: where each call has its line.

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
    ) -> None:
        self._connection_age_s = connection_age_s
        pool = CountingPool(min(max_in_flight, RECOMMENDER_THREADS), metrics.in_flight)
        handlers = HandlerFactory(metrics, access_log, pool)
        methods = {
            "Recommend": handlers.unary("Recommend", pb.RecommendRequest, service.Recommend),
            "SimilarTracks": handlers.unary("SimilarTracks", pb.SimilarTracksRequest, service.SimilarTracks),
            "RecordPlays": handlers.unary("RecordPlays", pb.RecordPlaysRequest, service.RecordPlays),
            "Explain": handlers.unary("Explain", pb.ExplainRequest, service.Explain),
            "RecommendMany": handlers.refused_stream("RecommendMany"),
            "GetStatus": handlers.unary("GetStatus", pb.GetStatusRequest, service.GetStatus),
        }
        service.count_calls(lambda: pool.in_flight)
        by_path = {f"/{SERVICE}/{name}": handler for name, handler in methods.items()}
        refusal = handlers.overloaded(lambda: service.retry_after_ms(pool.in_flight))
        self._server = grpc.server(
            ThreadPoolExecutor(HEALTH_THREADS, "other"),
            handlers=[AdmissionControl(by_path, pool, max_in_flight, refusal)],
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
                ("grpc.max_connection_age_ms", int(connection_age_s * 1000)),
            ],
        )
        self._health = health.HealthServicer()
        for name in ("", SERVICE):
            self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self.port = self._server.add_insecure_port(address)

    def start(self) -> None:
        """Begins to answer, and says so."""
        self._server.start()
        for name in ("", SERVICE):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def drain(self, notice_s: float = 0.0) -> None:
        """Leaves without failing a call; returns when no client is connected any more, or when all had to go.

        Health says NOT_SERVING at once. After the notice, new connections go to other workers. Those that are here
        end by age; until then they are answered as before.

        Args:
            notice_s: seconds that clients which watch health have to leave by themselves.
        """
        self._health.enter_graceful_shutdown()
        time.sleep(notice_s)
        stop_listening(self.port)
        last_s = time.monotonic() + longest_drain_s(self._connection_age_s)
        while count_connections(self.port) and time.monotonic() < last_s:
            time.sleep(0.05)

    def stop(self, grace_s: float) -> None:
        """Takes no more calls and returns when those in progress are answered.

        Args:
            grace_s: seconds after which they are cancelled.
        """
        self._server.stop(grace_s).wait()
