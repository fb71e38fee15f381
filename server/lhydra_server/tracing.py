"""Spans of calls for OpenTelemetry. They are made when a call has ended: nothing of it runs while one is answered."""

import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lhydra.errors import ConfigError, MissingExtra, complain

if TYPE_CHECKING:
    from lhydra_server.interceptors import Call

PATH = "/v1/traces"  # of the address, below that of the collector
STOP_MS = 1_000  # for the spans that wait when a worker ends
_PARENTS = ("traceparent", "tracestate")  # metadata keys: W3C Trace Context
_NOTES = ("bundle", "k", "recorded")  # of the log line; ids of listeners and tracks stay out of spans


def check_endpoint(endpoint: str | None) -> None:
    """Checks what `--trace-endpoint` names.

    Args:
        endpoint: of a collector; None for none.

    Raises:
        ConfigError: not an address that spans can be sent to.
        MissingExtra: OpenTelemetry is not installed.
    """
    if endpoint is None:
        return
    try:
        parts = urlsplit(endpoint)
        named = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half an IPv6 address, or a port that is none
        named = False
    if not named:
        raise ConfigError(complain("--trace-endpoint", endpoint, "http://HOST:4318 of an OpenTelemetry collector"))
    for module in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        try:
            missing = find_spec(module) is None
        except ModuleNotFoundError:
            missing = True
        if missing:
            raise MissingExtra("otel", module)


class Tracing:
    """Sends a span for each call, and one below it for each stage, from a thread of its own.

    What is sampled, and how much waits, is told by the variables of OpenTelemetry (OTEL_TRACES_SAMPLER, OTEL_BSP_…);
    by default every call that is not part of a trace that was left out. Spans that find no room are lost.

    Args:
        endpoint: http://HOST:PORT of a collector that takes OTLP over HTTP.
    """

    def __init__(self, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/').removesuffix(PATH)}{PATH}", timeout=5)
        self._provider = TracerProvider(resource=Resource.create({"service.name": "lhydra"}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("lhydra_server")
        self._parent = TraceContextTextMapPropagator().extract
        self._server, self._error, self._below = SpanKind.SERVER, StatusCode.ERROR, set_span_in_context

    def ended(self, name: str, code: str, call: "Call", took_us: int) -> None:
        """Makes the spans of a call.

        Args:
            name: of the method.
            code: what it ended with.
            call: with what the method left.
            took_us: microseconds that it took until now.
        """
        end = time.time_ns()
        at = end - 1_000 * took_us
        attributes: dict[str, Any] = {
            "rpc.system": "grpc",
            "rpc.service": "lhydra.v1.Recommender",
            "rpc.method": name,
            "rpc.response.status_code": code,
            "lhydra.request_id": call.request_id,
            "lhydra.tier": call.tier,
            "lhydra.degraded": call.degraded,
            **{f"lhydra.{key}": call.notes[key] for key in _NOTES if key in call.notes},
        }
        span = self._tracer.start_span(
            f"lhydra.v1.Recommender/{name}",
            context=self._parent(_parents(call.metadata())),
            kind=self._server,
            attributes=attributes,
            start_time=at,
        )
        below = self._below(span)
        for stage, stage_us in call.stage_us.items():  # in the order in which they began, one after the other
            child = self._tracer.start_span(stage, context=below, start_time=at)
            at = min(at + 1_000 * stage_us, end)
            child.end(at)
        if code not in ("OK", "CANCELLED"):
            span.set_status(self._error, code)
        span.end(end)

    def stop(self) -> None:
        """Sends what waits, for a moment, and ends the thread."""
        self._provider.force_flush(STOP_MS)
        self._provider.shutdown()


def _parents(metadata: Any) -> Mapping[str, str]:
    return {key: value for key, value in metadata or () if key in _PARENTS and isinstance(value, str)}
