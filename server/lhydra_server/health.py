"""Health (grpc.health.v1) that tells the truth: NOT_SERVING before the start, in a drain, and while calls hang.

The servicer of grpcio-health-checking sends to watchers while it holds the lock that `Check` needs, and a watcher that
does not read holds the sender. Here every watcher has a thread of its own and no lock is held while it sends.
"""

from collections.abc import Callable, Collection, Iterator
from threading import Condition
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from lhydra_server.admission import CallPool, DirectPool

LOOK_S = 0.5  # how often a watcher looks whether calls hang
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
_REQUEST = health_pb2.HealthCheckRequest.DESCRIPTOR.full_name


class Health:
    """Answers Check and Watch; safe to use from any thread.

    Args:
        names: of the services that have a health, all the same one; "" is the server.
        stuck_s: returns for how many seconds calls have hung, 0 if none does.
    """

    def __init__(self, names: Collection[str], stuck_s: Callable[[], float]) -> None:
        self._names, self._stuck_s = frozenset(names), stuck_s
        self._changed = Condition()
        self._serving = self._ended = False

    def serve(self) -> None:
        """Says SERVING from now on, unless calls hang."""
        self._set(serving=True)

    def leave(self) -> None:
        """Says NOT_SERVING from now on."""
        self._set(serving=False)

    def end(self) -> None:
        """Ends every watch, after it has told the last status."""
        self._set(serving=False, ended=True)

    def handler(self, check: DirectPool, watch: CallPool) -> grpc.GenericRpcHandler:
        """Makes the handler of both methods.

        Args:
            check: where `Check` is answered.
            watch: where each watcher has a thread.

        Returns:
            For a server.
        """

        def check_now(data: bytes, context: grpc.ServicerContext) -> bytes:
            status = self._status(_service(data, context))
            if status == _UNKNOWN:
                context.abort(grpc.StatusCode.NOT_FOUND, "service: found one without a health, expected the server's")
            return _reply(status)

        def watch_on(data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            return self._watch(_service(data, context), context)

        check_now.experimental_thread_pool = check  # type: ignore[attr-defined]
        watch_on.experimental_thread_pool = watch  # type: ignore[attr-defined]
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Check": grpc.unary_unary_rpc_method_handler(check_now),
            "Watch": grpc.unary_stream_rpc_method_handler(watch_on),
        }
        return grpc.method_handlers_generic_handler(health.SERVICE_NAME, methods)

    def _watch(self, name: str, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(self._wake)
        told = None
        while context.is_active():
            ended, status = self._ended, self._status(name)
            if status != told:
                told = status
                yield _reply(status)
            elif ended:
                return
            else:
                with self._changed:
                    if not self._ended and self._status(name) == told and context.is_active():
                        self._changed.wait(LOOK_S)

    def _status(self, name: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if name not in self._names:
            return _UNKNOWN
        return _SERVING if self._serving and not self._stuck_s() else _NOT_SERVING

    def _set(self, *, serving: bool, ended: bool = False) -> None:
        with self._changed:
            self._serving, self._ended = serving, self._ended or ended
            self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


def _service(data: bytes, context: grpc.ServicerContext) -> str:
    try:
        name: str = health_pb2.HealthCheckRequest.FromString(data).service
        return name
    except DecodeError:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"request: found {len(data)} bytes, expected a {_REQUEST}")


def _reply(status: health_pb2.HealthCheckResponse.ServingStatus) -> bytes:
    reply: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
    return reply
