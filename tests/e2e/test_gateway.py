"""`lhydra web`: a real gateway before a real server, asked as any HTTP client would."""

import http.client
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from lhydra.errors import ConfigError
from lhydra.users.store import open_users
from lhydra_client import Client
from lhydra_client.client import channel_options
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.access import Access
from lhydra_server.app import Listener
from lhydra_server.service import RecommenderService
from lhydra_server.tokens import COPY
from tests.fake_core import served
from tests.harness import free_port, until

uvicorn = pytest.importorskip("uvicorn", reason="NOT RUN: `pip install lhydra[web]` brings uvicorn and Starlette")
pytest.importorskip("starlette", reason="NOT RUN: `pip install lhydra[web]` brings uvicorn and Starlette")
from lhydra_server.web import application as applications  # noqa: E402
from lhydra_server.web import command as commands  # noqa: E402
from lhydra_server.web import connections, page  # noqa: E402
from lhydra_server.web import gateway as gateways  # noqa: E402
from lhydra_server.web.connections import Connection  # noqa: E402

SERVICE = "/lhydra.v1.Recommender"
READ, WRITE = "r" * 24, "w" * 24


class Web:
    """A gateway at a port of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, verb: str, path: str, body: bytes = b"", /, **headers: str) -> tuple[int, dict[str, str], bytes]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(verb, path, body, names)
            reply = connection.getresponse()
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()

    def call(self, method: str, body: object, **headers: str) -> tuple[int, Any]:
        given = {"content_type": "application/json"} | headers
        status, _, data = self.ask("POST", f"{SERVICE}/{method}", json.dumps(body).encode(), **given)
        return status, json.loads(data)


@contextmanager
def backend(folder: Path, access: Access | None = None) -> Iterator[str]:
    users = open_users(None, folder)
    listener = Listener(
        RecommenderService(served(n=100), users, max_k=50), "127.0.0.1:0", max_in_flight=8, access=access
    )
    listener.start()
    try:
        yield f"127.0.0.1:{listener.port}"
    finally:
        listener.stop(0)
        users.close()


@contextmanager
def answering(method: str, answers: "grpc.RpcMethodHandler[Any, Any]") -> Iterator[str]:
    """A server of one method."""
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE[1:], {method: answers}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


@contextmanager
def web(address: str, *, allow_plays: bool = False, **more: Any) -> Iterator[Web]:
    app = applications.application(gateways.Gateway(address, allow_plays=allow_plays), **more)
    server = uvicorn.Server(uvicorn.Config(app, port=0, access_log=False, log_config=None, http=Connection, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield Web(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(60)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with backend(tmp_path_factory.mktemp("users")) as address:
        yield address


@pytest.fixture(scope="module")
def reads(address: str) -> Iterator[Web]:
    with web(address) as found:
        yield found


def test_a_reply_is_what_grpc_says(address: str, reads: Web) -> None:
    status, found = reads.call("Recommend", {"userId": "ann", "k": 5})
    assert status == 200
    with Client(address, timeout_s=20) as client:
        expected = client.recommend("ann", 5)
    assert [track["trackId"] for track in found["tracks"]] == [track.track_id for track in expected.tracks]
    assert found["bundleId"] == expected.bundle_id
    assert reads.call("Recommend", {"user_id": "ann", "k": 5})[1]["tracks"] == found["tracks"]  # both spellings
    assert reads.ask("POST", f"{SERVICE}/GetStatus", content_type="application/json; charset=utf-8")[0] == 200


@pytest.mark.parametrize(
    ("method", "body", "status", "field"),
    [
        ("Recommend", {"userId": "ann", "k": 0}, 400, "k"),
        ("Recommend", {"userId": "", "k": 5}, 400, "user_id"),
        ("Recommend", {"userId": "ann", "kk": 5}, 400, "kk"),
        ("Recommend", {"userId": "ann", "k": "five"}, 400, "k"),
        ("Recommend", ["no object"], 400, None),
        ("SimilarTracks", {"trackIds": ["t001"], "k": 5}, 501, None),
        ("RecommendMany", {}, 501, None),
        ("Nothing", {}, 404, None),
        ("RecordPlays", {"plays": []}, 403, None),
    ],
)
def test_an_error_is_a_problem_with_its_field(
    reads: Web, method: str, body: object, status: int, field: str | None
) -> None:
    data = json.dumps(body).encode()
    code, headers, said = reads.ask("POST", f"{SERVICE}/{method}", data, content_type="application/json")
    told = json.loads(said)
    assert (code, told["status"], told.get("field")) == (status, status, field)
    assert headers["content-type"] == "application/problem+json"
    assert told["requestId"] == headers["x-request-id"]


def test_a_name_that_is_not_known_is_told_apart_from_a_value_of_another_kind(reads: Web) -> None:
    for said, field, found in (
        ({"kk": 3}, "kk", "no such field"),
        ({"k": "three"}, "k", "a value of another kind"),
        ({"filter": {"genre": ["Rock"]}}, "filter.genre", "no such field"),
        ({"filter": {"conditions": [{"anyOf": "Rock"}]}}, "filter.conditions.anyOf", "a value of another kind"),
        ({"k": 'Message type "x" has no field named "y"'}, "k", "a value of another kind"),
        ({"a\nb" + "c" * 200: 3}, "a\nb" + "c" * 97, "no such field"),
    ):
        status, problem = reads.call("Recommend", {"userId": "ann"} | said)
        assert (status, problem["field"]) == (400, field)
        shown = field.replace("\n", "\\n")
        assert problem["detail"] == f"{shown}: found {found}, expected the JSON of a RecommendRequest"


def test_a_server_without_room_lets_nobody_in(tmp_path: Path) -> None:
    def refuse(request: pb.GetStatusRequest, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests in flight")

    answers: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
        refuse, pb.GetStatusRequest.FromString
    )
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "evaluate.html").write_text("whom it was measured on")
    with answering("GetStatus", answers) as address, web(address, store=tmp_path) as found:
        assert found.ask("GET", "/reports/evaluate.html")[0] == 429
        assert found.ask("GET", "/about")[0] == 429
        form = {"content_type": "application/x-www-form-urlencoded", "origin": f"http://127.0.0.1:{found.port}"}
        status, headers, _ = found.ask("POST", "/login", b"token=unknown", **form)
    assert (status, "set-cookie" in headers) == (429, False)


def test_a_map_larger_than_grpc_takes_by_itself_arrives() -> None:
    reply = pb.GetMapResponse(track_ids=[f"{i:036}" for i in range(120_000)])
    answers = grpc.unary_unary_rpc_method_handler(
        lambda request, context: reply, pb.GetMapRequest.FromString, pb.GetMapResponse.SerializeToString
    )
    with answering("GetMap", answers) as address, web(address) as found:
        status, told = found.call("GetMap", {}, connect_timeout_ms="60000")
    assert (status, told.get("trackIds")) == (200, list(reply.track_ids))


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, b'{"k": 1e999}', b"nul", b'"' * 99])
def test_bytes_that_are_no_message_are_refused(reads: Web, body: bytes) -> None:
    assert reads.ask("POST", f"{SERVICE}/Recommend", body, content_type="application/json")[0] == 400


def test_limits_hold(reads: Web) -> None:
    long = b" " * (gateways.MAX_BODY_BYTES + 1)
    assert reads.ask("POST", f"{SERVICE}/Recommend", long, content_type="application/json")[0] == 413
    assert reads.ask("POST", f"{SERVICE}/Recommend", b"{}", content_type="text/plain")[0] == 415  # of another origin
    assert reads.ask("POST", f"{SERVICE}/GetStatus", b"", content_type="application/json", host="evil.test")[0] == 400
    assert reads.ask("GET", f"{SERVICE}/GetStatus")[0] == 405
    for wrong in ("0", "-1", "60001", "soon"):
        assert reads.call("GetStatus", {}, connect_timeout_ms=wrong)[0] == 400
    for right in ({"connect_timeout_ms": "20000"}, {"grpc_timeout": "20S"}):
        assert reads.call("GetStatus", {}, **right)[0] == 200
    for name, wrong in (("connect-timeout-ms", "0"), ("grpc-timeout", "1H")):
        assert reads.call("GetStatus", {}, **{name: wrong})[1]["detail"].startswith(f"{name}: found {wrong}, expected")
    assert "access-control-allow-origin" not in reads.ask("OPTIONS", f"{SERVICE}/GetStatus", origin="http://a.test")[1]


@pytest.mark.parametrize(
    ("verb", "path", "headers", "status"),
    [
        ("GET", "/nothing", {}, 404),
        ("GET", f"{SERVICE}/GetStatus", {}, 405),
        ("DELETE", "/healthz", {}, 405),
        ("POST", f"{SERVICE}/GetStatus/", {}, 404),
        ("GET", "/healthz/", {}, 404),
        ("GET", "/assets/../page.py", {}, 404),
        ("GET", "/assets/..%2f..%2fpage.py", {}, 404),
        ("GET", "/healthz", {"host": "evil.test"}, 400),
        ("POST", "/login", {}, 403),
        ("POST", f"{SERVICE}/GetStatus", {"content-type": "application/json", "authorization": "Basic eA=="}, 401),
    ],
)
def test_every_refusal_is_a_problem_with_a_request_id(
    reads: Web, verb: str, path: str, headers: dict[str, str], status: int
) -> None:
    code, found, said = reads.ask(verb, path, b"", **headers)
    told = json.loads(said)
    assert (code, told["status"], found["content-type"]) == (status, status, "application/problem+json")
    assert told["requestId"] == found["x-request-id"] != ""
    assert "location" not in found
    assert status != 405 or found["allow"]
    assert reads.ask(verb, path, b"", **headers, x_request_id="mine")[1]["x-request-id"] == "mine"


def test_reports_of_a_store_are_shown_in_a_sandbox_to_those_who_may_read(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "run.html").write_bytes(b"<script>1</script>")
    (tmp_path / "reports" / "run.json").write_bytes(b"secret")
    (tmp_path / "secret.html").write_bytes(b"secret")
    (tmp_path / COPY).write_text(f"{READ} read reader\n")
    with backend(tmp_path, Access(str(tmp_path))) as address, web(address, store=tmp_path) as found:
        known = {"authorization": f"Bearer {READ}"}
        assert found.ask("GET", "/reports/run.html")[0] == 401
        assert json.loads(found.ask("GET", "/about")[2])["reports"] == []
        told = json.loads(found.ask("GET", "/about", b"", **known)[2])["reports"]
        assert told == [{"name": "run", "href": "/reports/run.html"}]
        code, headers, said = found.ask("GET", told[0]["href"], b"", **known)
        assert (code, said) == (200, b"<script>1</script>")
        assert headers["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none';")
        assert "cross-origin-opener-policy" not in headers  # with a sandbox browsers show nothing at all
        for name in ("run.json", "nothing.html", "..%2fsecret.html", "../secret.html", "%2e%2e%2fsecret.html"):
            assert found.ask("GET", f"/reports/{name}", b"", **known)[0] == 404


def test_a_report_that_vanishes_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`lhydra retrain` takes old ones away whenever it likes."""
    (tmp_path / "reports").mkdir()
    for name in ("gone.html", "stays.html"):
        (tmp_path / "reports" / name).write_text("")
    here = Path.is_file

    def vanishes(path: Path) -> bool:
        found = here(path)
        if path.name == "gone.html":
            path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "is_file", vanishes)
    with backend(tmp_path) as address, web(address, store=tmp_path) as found:
        assert found.ask("GET", "/reports/gone.html")[0] == 404
        (tmp_path / "reports" / "gone.html").write_text("")
        code, _, said = found.ask("GET", "/about")
        assert (code, [one["name"] for one in json.loads(said)["reports"]][-1:]) == (200, ["stays"])


def test_only_pages_of_named_origins_may_call(address: str) -> None:
    named, other = "https://a.test", "https://a.test.evil.test"
    with web(address, origins=[named]) as found:
        asks = {"access_control_request_method": "POST", "access_control_request_headers": "content-type"}
        code, told, _ = found.ask("OPTIONS", f"{SERVICE}/GetStatus", origin=named, **asks)
        assert (code, told["access-control-allow-origin"]) == (204, named)
        assert "content-type" in told["access-control-allow-headers"]
        code, told, _ = found.ask("POST", f"{SERVICE}/GetStatus", content_type="application/json", origin=named)
        assert (code, told["access-control-allow-origin"]) == (200, named)
        assert not [name for name in told if name.endswith("credentials")]
        code, told, _ = found.ask("OPTIONS", f"{SERVICE}/GetStatus", origin=other, **asks)
        assert (code, "access-control-allow-origin" in told) == (405, False)


def test_an_address_that_asks_too_often_is_told_when_to_come_back(address: str) -> None:
    with web(address, rate=0.001) as found:
        assert found.call("GetStatus", {})[0] == 200
        code, told = found.call("GetStatus", {})
        assert (code, told["retryAfterMs"] > 0) == (429, True)
        assert found.ask("GET", "/about")[0] == 429
        assert found.ask("GET", "/healthz")[0] == 200


def test_too_many_connections_and_what_is_no_http_are_problems(reads: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 0)
    code, headers, said = reads.ask("GET", "/healthz")
    assert (code, json.loads(said)["requestId"], headers["connection"]) == (503, headers["x-request-id"], "close")
    with socket.create_connection(("127.0.0.1", reads.port), timeout=60) as held:
        held.sendall(b"GET / JUNK\r\n\r\n")
        reply = http.client.HTTPResponse(held)
        reply.begin()
        assert json.loads(reply.read())["requestId"] == reply.headers["x-request-id"]
        assert (reply.status, held.recv(1)) == (400, b"")


def test_the_openapi_describes_every_unary_method_as_it_answers(reads: Web) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="E2E TOOLS ABSENT: jsonschema (make e2e installs it)")
    told = json.loads(reads.ask("GET", "/openapi.json")[2])
    methods = [one for one in gateways.SERVICE.methods if not (one.client_streaming or one.server_streaming)]
    assert [*told["paths"]] == [f"{SERVICE}/{one.name}" for one in methods]
    schemas = told["components"]["schemas"]
    for one in methods:
        for kind in (one.input_type, one.output_type):
            assert [*schemas[kind.name]["properties"]] == [field.json_name for field in kind.fields]
    assert told["paths"][f"{SERVICE}/Recommend"]["post"]["description"].startswith("Tracks for a user, best first. ")
    said = " ".join(re.sub(r"\n\s*//", "", Path(pb.__file__).with_name("recommender.proto").read_text()).split())
    fields = [one for kind in schemas.values() for one in kind.get("properties", {}).values()]
    described = [one["description"] for one in fields if "description" in one]
    assert schemas["RecommendRequest"]["properties"]["userId"]["description"] in described
    assert [one for one in "; ".join(described).split("; ") if one not in said] == []
    schema = {"$ref": "#/components/schemas/RecommendResponse", "components": told["components"]}
    jsonschema.validate(reads.call("Recommend", {"userId": "ann", "k": 5})[1], schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"tracks": [{"score": "x"}]}, schema)


def test_an_error_inside_tells_nothing_of_itself(
    reads: Web, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(" ".join(["somebody's", "data"]))

    monkeypatch.setattr(gateways, "bearer", broken)
    code, told = reads.call("GetStatus", {}, x_request_id="mine")
    assert (code, told["detail"], told["requestId"]) == (500, "internal error", "mine")
    assert "mine: RuntimeError" in caplog.text
    assert "somebody's data" not in caplog.text


def test_a_request_id_goes_all_the_way(reads: Web) -> None:
    assert reads.call("Recommend", {"userId": "ann", "k": 5}, x_request_id="r-1")[1]["requestId"] == "r-1"


def test_plays_pass_where_it_is_allowed(address: str) -> None:
    body = {"plays": [{"eventId": "e-1", "userId": "bob", "trackId": "t001"}]}
    with web(address, allow_plays=True) as writes:
        assert writes.call("RecordPlays", body) == (200, {"recorded": 1})
        assert writes.call("RecordPlays", body) == (200, {"duplicates": 1})


def test_tokens_are_the_callers_and_the_server_judges_them(tmp_path: Path) -> None:
    (tmp_path / COPY).write_text(f"{READ} read reader\n{WRITE} write writer\n")
    with backend(tmp_path, Access(str(tmp_path))) as address, web(address, allow_plays=True) as found:
        assert found.call("GetStatus", {})[0] == 401
        assert found.call("GetStatus", {}, authorization=f"Bearer {READ}")[0] == 200
        assert found.call("RecordPlays", {}, authorization=f"Bearer {READ}")[0] == 403
        assert found.call("GetStatus", {}, authorization="Bearer no token at all")[0] == 401


def test_a_browser_logs_in_and_writes_by_its_own_page_alone(tmp_path: Path) -> None:
    (tmp_path / COPY).write_text(f"{READ} read reader\n{WRITE} read,write writer\n")
    form, play = "application/x-www-form-urlencoded", {"plays": [{"eventId": "e", "userId": "u", "trackId": "t001"}]}

    def log_in(found: Web, token: str, **more: str) -> tuple[int, str]:
        headers = {"content_type": form, "origin": f"http://127.0.0.1:{found.port}"} | more
        status, told, _ = found.ask("POST", "/login", f"token={token}".encode(), **headers)
        return status, told.get("set-cookie", "")

    def about(found: Web, **headers: str) -> tuple[bool, str]:
        told = json.loads(found.ask("GET", "/about", b"", **headers)[2])
        return told["plays"], told["login"]

    with backend(tmp_path, Access(str(tmp_path))) as address, web(address) as found:
        assert about(found) == (False, "needed")
        assert about(found, cookie="lhydra_token=!") == about(found, cookie="lhydra_token=eHg=") == (False, "needed")
        assert log_in(found, "x" * 24) == log_in(found, "") == log_in(found, "%ff") == (401, "")
        assert log_in(found, WRITE, origin="http://evil.test") == log_in(found, WRITE, origin="null") == (403, "")
        assert log_in(found, WRITE, content_type="text/plain") == (415, "")
        status, cookie = log_in(found, READ)
        attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert (status, attributes) == (303, {"httponly", "samesite=strict", "path=/"})
        assert READ not in cookie
        reader, writer = ({"cookie": log_in(found, token)[1].partition(";")[0]} for token in (READ, WRITE))
        assert "secure" in log_in(found, READ, origin=f"https://127.0.0.1:{found.port}")[1].lower()
        assert about(found, **reader) == (False, "done")
        assert about(found, **writer) == about(found, authorization=f"Bearer {WRITE}") == (True, "done")
        assert found.call("GetStatus", {}, **reader)[0] == 200
        assert found.call("GetStatus", {})[0] == 401
        assert found.call("RecordPlays", play)[0] == 403
        assert found.call("RecordPlays", play, **reader, x_lhydra_page="1")[0] == 403
        status, told = found.call("RecordPlays", play, **writer)
        assert (status, told["detail"].split(":")[0]) == (403, "x-lhydra-page")
        assert found.call("RecordPlays", play, **writer, x_lhydra_page="1") == (200, {"recorded": 1})
        assert found.call("RecordPlays", play, authorization=f"Bearer {WRITE}") == (200, {"duplicates": 1})
        away = found.ask("POST", "/logout", b"", **writer, origin=f"http://127.0.0.1:{found.port}")
        assert (away[0], "max-age=0" in away[1]["set-cookie"].lower()) == (303, True)
    (tmp_path / "open").mkdir()
    with backend(tmp_path / "open") as address:
        with web(address) as found:
            assert about(found) == (False, "none")
            for headers in ({}, {"authorization": f"Bearer {WRITE}"}):  # any token: an open server knows none
                assert found.call("RecordPlays", play, **headers)[0] == 403
        with web(address, allow_plays=True) as found:
            assert about(found) == (True, "none")
    with web(f"127.0.0.1:{free_port()}") as alone:
        assert alone.ask("GET", "/about")[0] in (503, 504)


def test_the_page_is_told_as_it_was_built(reads: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "FOLDER", tmp_path)
    assert reads.ask("GET", "/")[0] == 404
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_bytes(b"<!doctype html>page")
    (tmp_path / "assets" / "index-Ab_d-123.js").write_bytes(b"code")
    (tmp_path / "assets" / "index-Ab_d-123.js.br").write_bytes(b"small")
    (tmp_path / "assets" / "secret.key").write_bytes(b"secret")
    code, headers, said = reads.ask("GET", "/")
    assert (code, said, headers["cache-control"]) == (200, b"<!doctype html>page", "no-cache")
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert headers["x-content-type-options"] == "nosniff"
    assert reads.ask("GET", "/", if_none_match=headers["etag"])[::2] == (304, b"")
    assert reads.ask("HEAD", "/")[::2] == (200, b"")
    script = "/assets/index-Ab_d-123.js"
    code, headers, said = reads.ask("GET", script, accept_encoding="gzip, br")
    assert (said, headers["content-encoding"], "immutable" in headers["cache-control"]) == (b"small", "br", True)
    assert headers["content-type"].startswith("text/javascript")
    assert reads.ask("GET", script)[2] == reads.ask("GET", script, accept_encoding="br;q=0, gzip")[2] == b"code"
    for name in ("secret.key", "index-Ab_d-123.js.br", "nothing.js", ".js", "a%00.js", "..%2findex.html"):
        assert reads.ask("GET", f"/assets/{name}")[0] == 404


def test_health_tells_the_gateway_from_the_server(tmp_path: Path) -> None:
    with backend(tmp_path) as address, web(address) as found:
        assert found.ask("GET", "/healthz")[0] == 200
        assert found.ask("GET", "/readyz")[0] == 200
    with web(f"127.0.0.1:{free_port()}") as alone:
        assert alone.ask("GET", "/healthz")[0] == 200
        assert alone.ask("GET", "/readyz")[0] == 503
        assert alone.call("GetStatus", {})[0] in (503, 504)


def test_the_command_listens_and_keeps_to_this_machine(address: str) -> None:
    port = free_port()
    words = [sys.executable, "-m", "lhydra.cli", "web", "--port", str(port), "--address", address]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"listening on http://127.0.0.1:{port}\n"
        until(lambda: process.poll() is not None or _up(port))
        assert Web(port).call("GetStatus", {})[1]["bundleId"] == "b-1"
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert said == ""
    taken, beyond = address.rpartition(":")[2], "192.0.2.1"
    for more in (["--host", "0.0.0.0"], ["--address", f"{beyond}:50051"], ["--port", taken]):
        done = subprocess.run([*words, *more], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "asked",
    [
        *(
            "junk",
            ":50051",
            "127.0.0.1",
            "127.0.0.1:0",
            "127.0.0.1:99999",
            "127.0.0.1:50051 x",
            "127.0.0.1:+1",
            "unix:",
        ),
        *("dns:///192.0.2.1:50051", "ipv4:192.0.2.1:50051", "dns:localhost:50051", "[192.0.2.1]:50051", "192.0.2.1:1"),
        *("[2001:db8::1]:50051", "0.0.0.0:50051", "127.0.0.1:50051,192.0.2.1:50051", "nowhere.invalid:50051"),
    ],
)
def test_what_is_no_server_of_this_machine_is_refused(asked: str) -> None:
    """Whatever gRPC would make of it: tokens would travel in the clear."""
    with pytest.raises(ConfigError, match="--address") as refused:
        commands.local_server(asked)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("asked", "target"),
    [
        *(("127.0.0.1:50051", "127.0.0.1:50051"), ("[::1]:50051", "[::1]:50051"), ("::1:50051", "[::1]:50051")),
        *(("unix:/run/lhydra", "unix:/run/lhydra"), ("127.0.0.2:1", "127.0.0.2:1")),
    ],
)
def test_a_server_of_this_machine_is_named_by_number(asked: str, target: str) -> None:
    assert commands.local_server(asked) == target
    assert commands.local_server("localhost:50051") in ("127.0.0.1:50051", "[::1]:50051")  # a name may change its mind


def _up(port: int) -> bool:
    try:
        return Web(port).ask("GET", "/healthz")[0] == 200
    except OSError:
        return False


def test_every_unary_method_has_a_path(reads: Web) -> None:
    for method in pb.DESCRIPTOR.services_by_name["Recommender"].methods:
        status, told = reads.call(method.name, {})
        assert status in (200, 400, 403, 501), told


HEAD = f"POST {SERVICE}/GetStatus HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()


@pytest.mark.parametrize("sent", [b"", b"POST /", HEAD, HEAD + b"Content-Length: 0\r\n\r\n" + HEAD])
def test_a_connection_without_a_request_is_closed(reads: Web, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.2)
    with socket.create_connection(("127.0.0.1", reads.port), timeout=60) as held:
        held.sendall(sent)
        with suppress(ConnectionResetError):
            while held.recv(65_536):
                pass


@contextmanager
def slow_body(found: Web, length: int) -> Iterator[socket.socket]:
    """A body that is waited for, as the gateway has said, and does not come."""
    with socket.create_connection(("127.0.0.1", found.port), timeout=60) as held:
        held.sendall(HEAD + f"Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n".encode())
        assert held.recv(65_536).startswith(b"HTTP/1.1 100 ")
        yield held


def test_slow_bodies_hold_no_places(reads: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "MAX_CALLS", 1)
    with slow_body(reads, 2) as held:
        assert reads.call("GetStatus", {})[0] == 200
        held.sendall(b"{}")
        assert held.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_long_bodies_under_way_have_a_bound_together(reads: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    long = json.dumps({"userId": "ann", "k": 5, "trackIds": []}).replace("[]", '["' + "x" * 40_000 + '"]').encode()
    monkeypatch.setattr(gateways, "MAX_LONG_BYTES", 0)
    code, headers, _ = reads.ask("POST", f"{SERVICE}/Recommend", long, content_type="application/json")
    assert (code, headers["retry-after"]) == (429, "1")
    assert reads.call("GetStatus", {})[0] == 200
    monkeypatch.undo()
    assert reads.ask("POST", f"{SERVICE}/Recommend", long, content_type="application/json")[0] == 400


def test_a_body_does_not_wait_for_the_receipt_of_its_head(address: str) -> None:
    """Nagle's algorithm would hold it back for the 40 ms for which a caller puts receipts off."""
    app = applications.application(gateways.Gateway(address, allow_plays=False))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, http=Connection, ws="none"))
    with commands._bound("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            with socket.create_connection(listening.getsockname(), timeout=60):
                until(lambda: len(server.server_state.connections) == 1)
                (connection,) = server.server_state.connections
                accepted = connection.transport.get_extra_info("socket")
                until(lambda: accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0)
        finally:
            server.should_exit = True
            thread.join(60)


def test_a_connection_that_reads_no_reply_is_closed(reads: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "ANSWER_S", 0.2)
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        held.settimeout(60)
        held.connect(("127.0.0.1", reads.port))
        asked = (HEAD + b"Content-Length: 2\r\n\r\n{}") * 1_000
        with suppress(ConnectionError):
            while True:  # the buffers of both sides fill; it would time out
                held.sendall(asked)


def test_a_length_told_twice_hides_no_second_request(reads: Web) -> None:
    """A proxy that goes by the one and a gateway that goes by the other see different requests behind it."""
    hidden = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", reads.port), timeout=60) as held:
        held.sendall(HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden)
        said = b"".join(iter(lambda: held.recv(65_536), b""))
    assert said.startswith(b"HTTP/1.1 400 ")
    assert len(re.findall(rb"HTTP/1.1 \d", said)) == 1


def test_a_head_without_end_is_refused(reads: Web) -> None:
    with socket.create_connection(("127.0.0.1", reads.port), timeout=60) as held:
        held.sendall(HEAD)
        with pytest.raises(ConnectionError):
            held.sendall((b"x: " + b"y" * 1_000 + b"\r\n") * 40_000)  # more than the buffers of both sides hold


def test_who_offers_another_protocol_is_answered_in_this_one(reads: Web) -> None:
    """As Java's client and `curl --http2` do: with its body, and so is what comes behind it."""
    body = b'{"userId": "ann", "k": 5}'
    head = f"POST {SERVICE}/Recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    length = f"Content-Length: {len(body)}\r\n".encode()
    once = head + offer + length + b"\r\n" + body
    last = head + offer + length + b"Connection: close\r\n\r\n" + body
    for parts in ([once + last], [once[:-9], once[-9:] + last[:70], last[70:]]):
        with socket.create_connection(("127.0.0.1", reads.port), timeout=60) as held:
            for part in parts:
                held.sendall(part)
            said = b"".join(iter(partial(held.recv, 65_536), b""))
        assert (said.count(b"HTTP/1.1 200 "), said.count(b"bundleId")) == (2, 2)


def replies(found: Web, sent: bytes) -> list[bytes]:
    """All that is said on a connection of its own, by replies, until the gateway closes it."""
    with socket.create_connection(("127.0.0.1", found.port), timeout=60) as held:
        held.sendall(sent)
        return b"".join(iter(partial(held.recv, 65_536), b"")).split(b"HTTP/1.1 ")[1:]


@pytest.mark.parametrize("target", [b"/", b"/healthz", b"localhost:80", b"http://localhost/healthz"])
@pytest.mark.parametrize("offer", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"])
def test_nobody_is_connected_through(reads: Web, target: bytes, offer: bytes) -> None:
    """The parser takes all behind CONNECT for another protocol, however often it is asked."""
    (said,) = replies(reads, b"CONNECT " + target + b" HTTP/1.1\r\nHost: localhost\r\n" + offer + b"\r\n")
    assert said.startswith(b"400 ")
    assert reads.ask("GET", "/healthz")[0] == 200


@pytest.mark.parametrize(
    "rest",
    [
        *(b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n", b"Transfer-Encoding: identity\r\n\r\n{}"),
        b"Host: other.test\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_what_is_no_http_is_a_problem_with_an_id(reads: Web, rest: bytes) -> None:
    (said,) = replies(reads, HEAD + rest)
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"400 ")
    assert json.loads(body)["requestId"].encode() in head


def test_fields_behind_a_body_are_none_of_the_head(reads: Web) -> None:
    sent = HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    (said,) = replies(reads, sent + b"X-Request-Id: behind\r\nGrpc-Timeout: none\r\n\r\n")
    assert said.startswith(b"200 ")
    assert b"behind" not in said


def test_a_request_under_way_is_not_closed_for_the_one_before(reads: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn closes connections a while after a reply if nothing comes."""
    made, here = [], Connection.connection_made

    def watched(connection: Connection, transport: Any) -> None:
        made.append(connection)
        here(connection, transport)

    monkeypatch.setattr(Connection, "connection_made", watched)
    with closing(http.client.HTTPConnection("127.0.0.1", reads.port, timeout=60)) as connection:
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"ok\n"
        connection.sock.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert connection.sock.recv(65_536).startswith(b"HTTP/1.1 100 ")
        assert made[0].timeout_keep_alive_task is None


def test_requests_sent_ahead_are_answered_in_their_order(reads: Web) -> None:
    """And what is no HTTP behind one is never read as its answer."""
    asked = [HEAD + f"X-Request-Id: r-{i}\r\nContent-Length: 2\r\n\r\n{{}}".encode() for i in range(20)]
    with socket.create_connection(("127.0.0.1", reads.port), timeout=60) as held:
        held.sendall(b"".join(asked))
        said = b""
        while len(found := re.findall(rb"x-request-id: (r-\d+)\r", said)) < 20 and (more := held.recv(65_536)):
            said += more
        assert found == [f"r-{i}".encode() for i in range(20)]
        held.sendall(asked[0] + b"junk\r\n\r\n")
        assert b" 400 " not in b"".join(iter(partial(held.recv, 65_536), b""))


def test_a_server_that_was_away_is_looked_for_every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, options = grpc.aio.insecure_channel, []

    def watched(address: str, given: list[tuple[str, Any]]) -> grpc.aio.Channel:
        options.append(dict(given))
        return opened(address, given)

    monkeypatch.setattr(grpc.aio, "insecure_channel", watched)
    with web("127.0.0.1:1"):
        pass
    for found in (*options, dict(channel_options("127.0.0.1:1"))):
        assert found["grpc.max_reconnect_backoff_ms"] == 1_000
    assert options
