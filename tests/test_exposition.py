"""The metrics port as strangers use it: every request has its answer, and no number of them stops a server."""

import gc
import gzip
import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lhydra_server.metrics import exposition
from lhydra_server.metrics.counts import Counts
from lhydra_server.metrics.exposition import MAX_CONNECTIONS, answer, exposed
from lhydra_server.metrics.totals import Totals
from tests.fake_serve import write_bundle
from tests.harness import free_port, until
from tests.test_server_metrics import Scraped, samples, shown
from tests.test_supervisor import B1, fake, publish, running

TOTALS = Totals(Counts())


def asked(request: str, *headers: str) -> tuple[int, dict[str, str], bytes]:
    """(code, headers, body) of the answer to a request line and headers."""
    head, _, body = answer(TOTALS, [line.encode("latin-1") for line in (request, *headers)]).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in lines), body


def test_a_plain_scrape_is_what_prometheus_client_writes() -> None:
    code, headers, body = asked("GET /metrics HTTP/1.1")
    assert code == 200
    assert int(headers["Content-Length"]) == len(body)
    assert samples(body.decode()) == shown(TOTALS)


@pytest.mark.parametrize("query", ["?name[]=", "?name%5B%5D=", "?", "?name[]=&name[]=", "?other=1"])
def test_no_name_is_every_name(query: str) -> None:
    assert asked(f"GET /metrics{query} HTTP/1.1")[2] == asked("GET /metrics HTTP/1.1")[2]


@pytest.mark.parametrize(
    "name", ["lhydra_requests_total", "lhydra_requests", "lhydra_workers", "lhydra_request_seconds_bucket"]
)
def test_a_name_shows_its_metric_alone(name: str) -> None:
    code, _, body = asked(f"GET /metrics?name[]={name} HTTP/1.1")
    families = {line.split()[2] for line in body.decode().splitlines() if line.startswith("# TYPE")}
    assert code == 200
    assert len(families) == 1
    assert name.startswith(families.pop().removesuffix("_total"))
    assert b"lhydra_workers" in asked("GET /metrics?name[]=lhydra_batch_size&name[]=lhydra_workers HTTP/1.1")[2]


@pytest.mark.parametrize(
    ("request_line", "code"),
    [
        ("GET /metrics?name[]=no_such HTTP/1.1", 404),
        ("GET / HTTP/1.1", 404),
        ("GET /metrics/ HTTP/1.1", 404),
        ("GET /METRICS HTTP/1.1", 404),
        ("GET //metrics HTTP/1.1", 404),
        ("GET http://here:9464/metrics HTTP/1.1", 200),
        ("GET http://[/metrics HTTP/1.1", 400),
        ("GET /metrics", 400),
        ("GET  HTTP/1.1", 400),
        ("GET /metrics nonsense HTTP/1.1", 400),
        ("PRI * HTTP/2.0", 505),
        ("OPTIONS * HTTP/1.1", 204),
        ("OPTIONS /metrics HTTP/1.1", 204),
        ("\x16\x03\x01\x02", 400),  # TLS
    ],
)
def test_odd_requests_have_their_codes(request_line: str, code: int) -> None:
    found, headers, body = asked(request_line)
    assert found == code
    assert int(headers["Content-Length"]) == len(body)
    if code >= 400:
        assert body.decode().count("\n") == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "get", "BREW"])
def test_other_methods_are_told_which_there_are(method: str) -> None:
    code, headers, _ = asked(f"{method} /metrics HTTP/1.1")
    assert (code, headers["Allow"]) == (405, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize("path", ["/metrics", "/metrics?name[]=lhydra_workers", "/", "/metrics?name[]=no_such"])
def test_head_has_the_headers_of_get_and_no_body(path: str) -> None:
    code, headers, body = asked(f"GET {path} HTTP/1.1")
    assert asked(f"HEAD {path} HTTP/1.1") == (code, headers, b"")
    assert body


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.0", False),
        ("", False),
        ("br", False),
    ],
)
def test_gzip_is_used_where_it_is_taken(accepted: str, packed: bool) -> None:
    code, headers, body = asked("GET /metrics HTTP/1.1", f"Accept-Encoding: {accepted}")
    assert code == 200
    assert ("Content-Encoding" in headers) is packed
    assert samples((gzip.decompress(body) if packed else body).decode()) == shown(TOTALS)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text(st.characters(max_codepoint=255, exclude_characters="\n"), max_size=60), min_size=1, max_size=6)
)
def test_whatever_comes_is_answered(lines: list[str]) -> None:
    code, headers, body = asked(lines[0], *lines[1:])
    assert 200 <= code < 600
    assert code != 500
    assert int(headers["Content-Length"]) == len(body)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "text/plain",
                "application/openmetrics-text",
                ";",
                "version=",
                "1.0.0",
                "0.0.4",
                "x",
                ",",
                "q=",
                " ",
                "escaping=",
                "allow-utf-8",
            ]
        ),
        max_size=9,
    )
)
@example(["application/openmetrics-text;version=", "x"])
def test_whatever_is_accepted_something_is_shown(parts: list[str]) -> None:
    code, _, body = asked("GET /metrics HTTP/1.1", "Accept: " + "".join(parts))
    assert code == 200
    assert b"lhydra_workers" in body


# -- over sockets -----------------------------------------------------------------------------------------


@contextmanager
def listening() -> Iterator[int]:
    port = free_port()
    with exposed(TOTALS, "127.0.0.1", port):
        yield port


def received(port: int, data: bytes, *, end: bool = False) -> bytes:
    """All that is answered to some bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(data)
        if end:
            connection.shutdown(socket.SHUT_WR)
        answered = b""
        while more := connection.recv(65_536):
            answered += more
        return answered


def ended(connection: socket.socket) -> bool:
    """Whether the other side has closed it."""
    try:
        return not connection.recv(1)
    except ConnectionError:
        return True


def test_requests_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "REQUEST_S", 0.2)
    with listening() as port:
        assert received(port, b"GET /metrics HTTP/1.0\n\n").startswith(b"HTTP/1.1 200 ")  # typed by hand
        assert received(port, b"\r\nGET /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        assert received(port, b"GET /" + b"a" * 20_000).startswith(b"HTTP/1.1 414 ")
        assert received(port, b"GET / HTTP/1.1\r\nA: " + b"a" * 20_000).startswith(b"HTTP/1.1 431 ")
        assert received(port, b"GET / HTTP/1.1\r\n" + b"A: a\r\n" * 200).startswith(b"HTTP/1.1 431 ")
        assert received(port, b"GET /metrics HTTP/1.1\r\nA:").startswith(b"HTTP/1.1 408 ")
        assert received(port, b"GET /metrics HTTP/1.1\r\n", end=True) == b""
        body = b"POST /metrics HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + b"a" * 1_000_000
        assert received(port, body).startswith(b"HTTP/1.1 405 ")


def test_the_oldest_connection_makes_room_for_a_new_one() -> None:
    with listening() as port, ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(MAX_CONNECTIONS)]
        for one in held:
            one.sendall(b"GET /met")
        for _ in range(2):
            assert received(port, b"GET /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        held[-1].sendall(b"rics HTTP/1.1\r\n\r\n")
        assert held[-1].recv(12) == b"HTTP/1.1 200"
        assert ended(held[0])


def test_half_requests_without_number_neither_end_a_server_nor_hide_its_metrics(tmp_path: Path) -> None:
    store, port = tmp_path / "store", free_port()
    write_bundle(store, B1, n=100)
    publish(store, B1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4_096), hard))
    try:
        with running(fake(store, metrics_port=port), tmp_path / "log") as server, ExitStack() as stack:
            dies = server.workers()[0]
            halves = []
            for _ in range(1_100):
                halves.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60)))
                halves[-1].sendall(b"GET /metrics HTTP/1.1\r\nA: ")
            assert ended(halves[-MAX_CONNECTIONS - 1])  # by a newer one, not after its 5 s with a word
            assert len(os.listdir(f"/proc/{server.process.pid}/fd")) < 200
            os.kill(dies, signal.SIGKILL)
            until(lambda: server.status().workers == 2 and dies not in server.children())
            assert Scraped(server, port)()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_stop_leaves_no_connection_open(recwarn: pytest.WarningsRecorder) -> None:
    for i in range(100):  # at least one stop comes while a connection is being closed
        with listening() as port, ExitStack() as stack:
            for _ in range(8):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
                client.sendall(b"GET / HTTP/1.1\r\n\r\n")
                client.shutdown(socket.SHUT_WR)
            for _ in range(i % 20):
                os.sched_yield()
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


def test_keep_alive_clients_are_served(tmp_path: Path) -> None:
    with listening() as port:
        client = HTTPConnection("127.0.0.1", port, timeout=60)
        for _ in range(3):  # it opens a new connection for each
            client.request("GET", "/metrics")
            assert b"lhydra_workers" in client.getresponse().read()
        client.request("HEAD", "/metrics")
        assert client.getresponse().read() == b""
        client.close()
