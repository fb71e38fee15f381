"""Who gets in: TLS, client certificates, tokens and their rights, on real servers with our client."""

import asyncio
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from lhydra_client import AsyncClient, Client, ClientError, Play
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.access import API, METRICS, OPEN, RIGHT_OF
from tests.fake_serve import write_bundle
from tests.harness import free_port
from tests.pki import Pki
from tests.test_supervisor import B1, fake, publish, running

READ, WRITE, ADMIN, BOTH = (letter * 24 for letter in "rwab")
FILE = f"# callers\n{READ} read reader\n{WRITE}\twrite writer\n\n{ADMIN} admin boss\n  {BOTH} write,read both 1000\n"
RIGHTS = {READ: {"read"}, WRITE: {"write"}, ADMIN: {"read", "write"}, BOTH: {"read", "write"}}
TRANSPORTS = ("plain", "tls", "mtls")
CALLS: dict[str, tuple[str, Callable[[Client], Any]]] = {
    "Recommend": ("read", lambda client: client.recommend("u", 3)),
    "RecommendMany": ("read", lambda client: _only(client.recommend_many(["u"], 3))),
    "SimilarTracks": ("read", lambda client: client.similar(["t1"], 3)),
    "Explain": ("read", lambda client: client.explain("u", "t1")),
    "GetStatus": ("read", lambda client: client.status()),
    "RecordPlays": ("write", lambda client: client.record_plays([Play("u", "t1")])),
}


def _only(answers: Iterator[Any]) -> Any:
    (answer,) = answers
    if isinstance(answer, ClientError):
        raise answer
    return answer


def outcome(call: Callable[..., Any], *args: Any, **more: Any) -> str:
    """The code that a call ended with; OK where the method was reached, which the fake may not answer."""
    try:
        call(*args, **more)
    except ClientError as error:
        return "OK" if error.code == "UNIMPLEMENTED" else error.code
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def expected(right: str, token: str) -> str:
    if token not in RIGHTS:
        return "UNAUTHENTICATED"
    return "OK" if right in RIGHTS[token] else "PERMISSION_DENIED"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "store", B1, n=100)
    publish(tmp_path / "store", B1)
    return tmp_path / "store"


def settings(pki: Pki, transport: str) -> dict[str, str]:
    found = {} if transport == "plain" else pki.server
    return found | ({"tls_client_ca": str(pki.ca)} if transport == "mtls" else {})


def arguments(pki: Pki, transport: str) -> dict[str, Any]:
    return {"plain": {}, "tls": {"tls_ca": pki.ca}, "mtls": pki.client}[transport]


def write_tokens(folder: Path, text: str = FILE) -> Path:
    path = folder / "tokens"
    path.write_text(text)
    path.chmod(0o600)
    return path


def channel(address: str, pki: Pki, transport: str) -> grpc.Channel:
    if transport == "plain":
        return grpc.insecure_channel(address)
    own = (pki.client_key.read_bytes(), pki.client_cert.read_bytes()) if transport == "mtls" else (None, None)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(pki.ca.read_bytes(), *own))


def reflect(opened: grpc.Channel, token: str) -> str:
    stub = reflection_pb2_grpc.ServerReflectionStub(opened)
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    return outcome(lambda: next(stub.ServerReflectionInfo(asked, timeout=60, metadata=metadata)))


def scraped(port: int, pki: Pki, transport: str, token: str) -> int:
    """The HTTP code of a scrape."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    scheme, context = "http", None
    if transport != "plain":
        scheme, context = "https", ssl.create_default_context(cafile=pki.ca)
        context.load_cert_chain(pki.client_cert, pki.client_key)
    asked = urllib.request.Request(f"{scheme}://127.0.0.1:{port}/metrics", headers=headers)
    try:
        with urllib.request.urlopen(asked, context=context, timeout=60) as reply:
            assert b"lhydra_workers 1.0" in reply.read()
            return int(reply.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


# -- rights -----------------------------------------------------------------------------------------------


def test_every_method_of_the_api_has_a_right() -> None:
    methods = {API + method.name for method in pb.DESCRIPTOR.services_by_name["Recommender"].methods}
    assert {method for method in RIGHT_OF if method.startswith(API)} == methods
    assert {API + name: right for name, (right, _) in CALLS.items()} == {name: RIGHT_OF[name] for name in methods}
    assert not OPEN & set(RIGHT_OF)
    assert RIGHT_OF[METRICS] == "read"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_without_a_file_of_tokens_everybody_who_connects_may_do_everything(
    pki: Pki, store: Path, transport: str
) -> None:
    port = free_port()
    with running(fake(store, workers=1, metrics_port=port, **settings(pki, transport)), store.parent / "log") as server:
        for token in ("", READ):
            with Client(server.address, 60, **arguments(pki, transport), token=token) as client:
                for _, call in CALLS.values():
                    assert outcome(call, client) == "OK"
            assert scraped(port, pki, transport, token) == 200
        with channel(server.address, pki, transport) as opened:
            assert reflect(opened, "") == "OK"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_each_token_may_do_what_its_rights_say(pki: Pki, store: Path, transport: str) -> None:
    tokens, port = write_tokens(store.parent), free_port()
    made = settings(pki, transport) | {"token_file": str(tokens)}
    with running(fake(store, workers=1, metrics_port=port, **made), store.parent / "log") as server:
        codes = {"OK": 200, "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403}
        for token in (*RIGHTS, "wrong", READ[:-1], READ + "r", ""):
            with Client(server.address, 60, **arguments(pki, transport), token=token) as client:
                for name, (right, call) in CALLS.items():
                    assert outcome(call, client) == expected(right, token), (name, token)
            assert scraped(port, pki, transport, token) == codes[expected("read", token)]
            with channel(server.address, pki, transport) as opened:
                assert reflect(opened, token) == expected("read", token)
                health = health_pb2_grpc.HealthStub(opened)
                assert health.Check(health_pb2.HealthCheckRequest(), timeout=60).status == 1
                unknown: Callable[..., Any] = opened.unary_unary("/lhydra.v1.Recommender/Nothing")
                shown = (("authorization", f"bearer {token}"),)
                wanted = "UNIMPLEMENTED" if token in RIGHTS else "UNAUTHENTICATED"
                assert outcome(unknown, b"", timeout=60, metadata=shown) == wanted
        log = (store.parent / "log").read_text()
        assert not any(token in log for token in RIGHTS)


def test_the_aio_client_shows_the_same(pki: Pki, store: Path) -> None:
    made = settings(pki, "mtls") | {"token_file": str(write_tokens(store.parent))}

    async def ask(token: str) -> list[str]:
        found = []
        async with AsyncClient(address, 60, **arguments(pki, "mtls"), token=token) as client:
            for call in (
                lambda: client.recommend("u", 3),
                lambda: client.record_plays([Play("u", "t1")]),
                lambda: anext(client.recommend_many(["u"], 3)),
            ):
                try:
                    await call()
                    found.append("OK")
                except ClientError as error:
                    found.append(error.code)
        return found

    with running(fake(store, workers=1, **made), store.parent / "log") as server:
        address = server.address
        assert asyncio.run(ask(READ)) == ["OK", "PERMISSION_DENIED", "OK"]
        assert asyncio.run(ask(WRITE)) == ["PERMISSION_DENIED", "OK", "PERMISSION_DENIED"]
        assert asyncio.run(ask("wrong")) == ["UNAUTHENTICATED"] * 3
