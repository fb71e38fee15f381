"""`--trace-endpoint` before a real collector: spans that join the trace of their caller, and cost nobody a call."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from lhydra.domain import STAGES
from lhydra.errors import ConfigError
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.tracing import check_endpoint
from tests.fake_serve import write_bundle
from tests.harness import free_port
from tests.test_supervisor import B1, TRACKS_OF, Server, fake, open_stub, publish, running, whole

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """Takes OTLP over HTTP; its address, and the spans that came."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", spans
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tmp_path / "store"
    write_bundle(store, B1, n=TRACKS_OF[B1])
    publish(store, B1)
    return store


def ended(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)  # a worker that ends sends what waits
    assert server.process.wait(60) == 0


def test_a_call_joins_the_trace_of_its_caller(store: Path) -> None:
    with (
        collector() as (endpoint, spans),
        running(fake(store, trace_endpoint=endpoint, workers=1), store.parent / "log") as server,
    ):
        with open_stub(server.address) as stub:
            asked = pb.RecommendRequest(user_id="someone-in-particular", k=10)
            known = (("traceparent", f"00-{TRACE}-{SPAN}-01"), ("x-request-id", "r-7"))
            assert whole(stub.Recommend(asked, metadata=known))
            with pytest.raises(grpc.RpcError):
                stub.Recommend(pb.RecommendRequest(user_id="someone-in-particular", k=0), metadata=known)
            left_out = ("traceparent", f"00-{TRACE[::-1]}-{SPAN}-00")  # its caller does not sample it
            assert whole(stub.Recommend(asked, metadata=(left_out,)))
        ended(server)
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    good, bad = sorted((span for span in spans if span.parent_span_id.hex() == SPAN), key=lambda one: one.status.code)
    assert good.name == bad.name == "lhydra.v1.Recommender/Recommend"
    told = {pair.key: pair.value.string_value for pair in good.attributes}
    assert (told["lhydra.request_id"], told["rpc.response.status_code"], told["lhydra.bundle"]) == ("r-7", "OK", B1)
    assert (bad.status.code, bad.status.message) == (2, "INVALID_ARGUMENT")
    stages = [span for span in spans if span.parent_span_id == good.span_id]
    assert {span.name for span in stages} == set(STAGES)
    for span in stages:
        assert good.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= good.end_time_unix_nano
    assert "someone-in-particular" not in str(spans)


def test_a_collector_that_is_not_there_costs_no_call_and_no_stop(store: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    with running(fake(store, trace_endpoint=endpoint, workers=1), store.parent / "log") as server:
        with open_stub(server.address) as stub:
            for _ in range(50):
                assert whole(stub.Recommend(pb.RecommendRequest(user_id="ann", k=10)))
        ended(server)


def test_nothing_of_it_is_loaded_unless_asked_for() -> None:
    code = "import sys, lhydra_server.worker; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    path = ":".join(entry for entry in sys.path if entry)
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}).returncode == 0


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "localhost:4318",
        "grpc://localhost:4317",
        "file:///etc",
        "http://",
        "https:///v1/traces",
        "http://[",
        "http://h:x",
    ],
)
def test_an_endpoint_that_is_none_is_one_line(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"^--trace-endpoint: found .*, expected http://HOST:4318"):
        check_endpoint(endpoint)
