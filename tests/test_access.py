"""Who gets in: TLS, client certificates, tokens and their rights, on real servers with our client."""

import asyncio
import errno
import os
import socket
import ssl
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from lhydra.cli import main
from lhydra.errors import ConfigError, Unauthenticated
from lhydra_client import AsyncClient, Client, ClientError, Overloaded, Play
from lhydra_client.errors import InvalidRequest
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server import certificates, tokens, watched_files
from lhydra_server.access import API, METRICS, OPEN, RIGHT_OF
from lhydra_server.address import check_exposure
from lhydra_server.config import ServeSettings
from lhydra_server.files_in_force import FilesInForce
from tests.fake_serve import write_bundle
from tests.harness import free_port, until
from tests.pki import PAST, Pki
from tests.test_supervisor import B1, fake, publish, refused, running

READ, WRITE, ADMIN, BOTH = (letter * 24 for letter in "rwab")
FILE = f"# callers\n{READ} read reader\n{WRITE}\twrite writer\n\n{ADMIN} admin boss\n  {BOTH} write,read both 1000\n"
RIGHTS = {READ: {"read"}, WRITE: {"write"}, ADMIN: {"read", "write", "admin"}, BOTH: {"read", "write"}}
FORMS = serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL
TRANSPORTS = ("plain", "tls", "mtls")
CALLS: dict[str, tuple[str, Callable[[Client], Any]]] = {
    "Recommend": ("read", lambda client: client.recommend("u", 3)),
    "RecommendMany": ("read", lambda client: _only(client.recommend_many(["u"], 3))),
    "SimilarTracks": ("read", lambda client: client.similar(["t1"], 3)),
    "Explain": ("read", lambda client: client.explain("u", "t1")),
    "GetStatus": ("read", lambda client: client.status()),
    "GetTracks": ("read", lambda client: client.tracks(["t1"])),
    "SearchTracks": ("read", lambda client: client.search("blue")),
    "GetUser": ("admin", lambda client: client.user("u")),
    "SearchUsers": ("admin", lambda client: client.users("u")),
    "ListBundles": ("admin", lambda client: client.bundles()),
    "GetMap": ("admin", lambda client: client.track_map(5)),
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
    path, new = folder / "tokens", folder / ".tokens"
    new.write_text(text)
    new.chmod(0o600)
    return new.replace(path)  # in one go: a server that looks meanwhile would find a part of it


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
            assert b"\nlhydra_workers " in reply.read()
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
        assert "rights of token reader: found read, expected write, for RecordPlays" in log
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


# -- TLS --------------------------------------------------------------------------------------------------


def said(call: Callable[[], Any]) -> str:
    with pytest.raises(ClientError) as caught:
        call()
    return str(caught.value)


def test_only_the_right_certificates_connect(pki: Pki, store: Path, tmp_path: Path) -> None:
    other = Pki(tmp_path / "other")
    old = pki.issue("old client", **PAST)
    with running(fake(store, workers=1, **settings(pki, "mtls")), store.parent / "log") as server:

        def refusal(**access: Any) -> str:
            with Client(server.address, 60, **access) as client:
                return said(client.status)

        closed = "it may want TLS, or a certificate of the client"
        assert closed in refusal()
        assert closed in refusal(tls_ca=pki.ca)
        assert closed in refusal(tls_ca=pki.ca, tls_cert=other.client_cert, tls_key=other.client_key)
        assert closed in refusal(tls_ca=pki.ca, tls_cert=old[0], tls_key=old[1])
        for strange in ({**pki.client, "tls_ca": other.ca}, {**pki.client, "tls_ca": None}):
            assert "its certificate is refused: " in refusal(**strange)
        with Client(server.address, 60, **pki.client) as client:
            assert client.status().bundle_id == B1


def test_a_client_with_tls_is_told_of_a_server_without(pki: Pki, store: Path) -> None:
    with (
        running(fake(store, workers=1), store.parent / "log") as server,
        Client(server.address, 60, tls_ca=pki.ca) as client,
    ):
        assert said(client.status) == f"no server answers at {server.address} (it speaks no TLS)"


def test_a_server_does_not_start_with_wrong_certificates(pki: Pki, store: Path, tmp_path: Path) -> None:
    cert, key = pki.issue("old", **PAST)
    junk = tmp_path / "junk"
    junk.write_text("junk")
    _, other = pki.issue("other")
    pair = "a file: --tls-cert and --tls-key go together"
    lines = {
        (str(cert), str(key)): f"{cert}: found certificate has expired, expected a certificate that is valid now, "
        "for a server",
        (str(pki.cert), str(other)): f"{other}: found the key of another certificate, expected that of {pki.cert}",
        (str(junk), str(key)): f"{junk}: found no certificate in it, expected certificates in PEM form",
        (str(pki.cert), str(junk)): f"{junk}: found none that can be used, expected a private key in PEM form",
        (str(tmp_path / "none"), str(key)): f"{tmp_path}/none: found No such file or directory, expected a file of "
        "certificates",
        (str(pki.cert), None): f"--tls-key: found nothing, expected {pair}",
        (None, str(pki.key)): f"--tls-cert: found nothing, expected {pair}",
    }
    for (cert_path, key_path), line in lines.items():
        assert refused(fake(store, tls_cert=cert_path, tls_key=key_path)) == line
    assert refused(fake(store, tls_client_ca=str(pki.ca))) == f"--tls-cert: found nothing, expected {pair}"
    line = f"{junk}: found no certificate in it, expected certificates in PEM form"
    assert refused(fake(store, tls_client_ca=str(junk), **pki.server)) == line


def test_a_key_under_a_passphrase_asks_nobody(pki: Pki, tmp_path: Path) -> None:
    key = serialization.load_pem_private_key(pki.key.read_bytes(), None)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    locked = key.private_bytes(*form, serialization.BestAvailableEncryption(b"secret"))
    (tmp_path / certificates.CERT).write_bytes(pki.cert.read_bytes())
    (tmp_path / certificates.KEY).write_bytes(locked)
    with pytest.raises(ConfigError, match=r"key.pem: found a key under a passphrase, expected a private key without"):
        certificates.check(tmp_path)
    path = tmp_path / "locked.key"
    path.write_bytes(locked)
    with pytest.raises(InvalidRequest, match=r"found no pair, expected a certificate and its key in PEM form"):
        Client(tls_cert=pki.client_cert, tls_key=path)


@pytest.mark.parametrize(
    ("kind", "served"),
    [
        (rsa.generate_private_key(65537, 2048), True),
        (ec.generate_private_key(ec.SECP256R1()), True),
        (ec.generate_private_key(ec.SECP384R1()), True),
        (ec.generate_private_key(ec.SECP521R1()), False),
        (ed25519.Ed25519PrivateKey.generate(), False),
    ],
    ids=["rsa", "p-256", "p-384", "p-521", "ed25519"],
)
@pytest.mark.parametrize("form", FORMS, ids=["pkcs8", "traditional"])
def test_a_key_is_taken_where_grpc_can_serve_it(tmp_path: Path, kind: Any, served: bool, form: Any) -> None:
    if form is serialization.PrivateFormat.TraditionalOpenSSL and isinstance(kind, ed25519.Ed25519PrivateKey):
        form = serialization.PrivateFormat.PKCS8  # which knows no other
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lhydra")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(kind.public_key())
    made = made.serial_number(1).not_valid_before(datetime(2020, 1, 1)).not_valid_after(datetime(2999, 1, 1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    shown = made.sign(kind, None if isinstance(kind, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    cert = shown.public_bytes(serialization.Encoding.PEM)
    key = kind.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    (tmp_path / certificates.CERT).write_bytes(cert)
    (tmp_path / certificates.KEY).write_bytes(key)
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([(key, cert)]))
        server.start()
        with grpc.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(cert)) as opened:
            unknown: Callable[..., Any] = opened.unary_unary("/a/b")
            assert outcome(unknown, b"", timeout=60) == ("UNIMPLEMENTED" if served else "UNAVAILABLE")
        server.stop(None).wait()
    if served:
        assert certificates.check(tmp_path) == int(datetime(2999, 1, 1, tzinfo=UTC).timestamp())
    else:
        with pytest.raises(ConfigError, match=r"key.pem: found a kind that gRPC cannot serve, expected RSA"):
            certificates.check(tmp_path)


def test_beyond_this_machine_a_server_wants_tls_or_a_word(pki: Pki, store: Path) -> None:
    more = "--tls-cert and --tls-key, or --insecure to listen beyond this machine without TLS"
    for host in ("0.0.0.0", "::", "[::]", "::ffff:0.0.0.0"):
        shown = host.strip("[]")
        assert refused(fake(store, host=host, workers=1)) == f"--host {shown}: found no TLS, expected {more}"
    for host, secured in (("0.0.0.0", pki.server), ("0.0.0.0", {"insecure": True}), ("localhost", {}), ("::1", {})):
        check_exposure(host, secured="tls_cert" in secured, insecure="insecure" in secured)
    check_exposure("unix:/run/lhydra.sock", secured=False, insecure=False)
    check_exposure("::ffff:127.0.0.1", secured=False, insecure=False)
    check_exposure("no such host", secured=False, insecure=False)  # who binds it says so
    with running(fake(store, host="0.0.0.0", workers=1, **pki.server), store.parent / "log") as server:
        port = server.address.rpartition(":")[2]
        with Client(f"127.0.0.1:{port}", 60, tls_ca=pki.ca) as client:
            assert client.status().bundle_id == B1
        with Client(f"127.0.0.2:{port}", 60, tls_ca=pki.ca) as client:
            assert "(its certificate is for another name)" in said(client.status)


def test_on_a_unix_socket_there_is_tls_too(pki: Pki, store: Path) -> None:
    made = pki.server | {"token_file": str(write_tokens(store.parent))}
    with running(fake(store, host=f"unix:{store.parent}/s", workers=1, **made), store.parent / "log") as server:
        with Client(server.address, 60, tls_ca=pki.ca, token=READ) as client:
            assert client.recommend("u", 3).bundle_id == B1
        with Client(server.address, 60, token=READ) as client:
            assert "it may want TLS" in said(client.status)


# -- tokens -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found no token, expected one or more lines of `token rights name [requests/s]`"),
        ("# nothing\n\n", "found no token, expected one or more lines of"),
        ("secret", "line 1: found 1 fields, expected 3 or 4: token rights name [requests/s]"),
        ("ok read a\nsecret read a 1 more", "line 2: found 5 fields, expected 3 or 4"),
        ("secret reed a", "line 1: rights: found other words, expected some of read, write, admin, by commas"),
        ("read secret a", "line 1: rights: found other words"),
        ("secret read,,write a", "line 1: rights: found other words"),
        ("secret read secret!", "line 1: name: found 7 characters, expected 1 to 64 of A-Z a-z 0-9 . _ : @ / -"),
        ("s\u00e9cret read a", "line 1: token: found other characters, expected 1 to 512 of ASCII, without spaces"),
        ("secret read a 0", "line 1: requests/s: found something else, expected a number up to 1,000,000"),
        ("secret read a -1", "line 1: requests/s: found something else"),
        ("secret read a nan", "line 1: requests/s: found something else"),
        ("secret read a secret", "line 1: requests/s: found something else"),
        ("secret read a\n\nsecret write b", "line 3: found the token of line 1, expected each token once"),
    ],
)
def test_a_wrong_line_is_named_by_its_number_and_never_shown(tmp_path: Path, text: str, message: str) -> None:
    path = write_tokens(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        tokens.read(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)
    assert "cret" not in str(caught.value).replace(str(path), "")


def test_bytes_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"found bytes that are not UTF-8, expected lines of"):
        tokens.read(path)


@given(st.lists(st.text(st.characters(min_codepoint=36, max_codepoint=126), min_size=1, max_size=40), unique=True))
def test_each_token_is_found_and_nothing_else_is(secrets: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = [f"{secret} read n{number}\n" for number, secret in enumerate(secrets)]
        found = tokens.Tokens(tokens.read(write_tokens(Path(folder), "".join(lines) + "!last read last")))
    assert found.find(["Bearer !last"]).name == "last"
    for number, secret in enumerate(secrets):
        assert found.find([f"Bearer {secret}"]).name == f"n{number}"
        if secret + "x" not in secrets:
            with pytest.raises(Unauthenticated):
                found.find([f"Bearer {secret}x"])


@pytest.mark.parametrize(
    "shown", [[], [""], ["Bearer"], ["Bearer "], ["Basic abc"], ["abc"], [b"Bearer abc"], ["Bearer abc", "Bearer abc"]]
)
def test_what_is_no_bearer_token_is_none(tmp_path: Path, shown: list[str | bytes]) -> None:
    found = tokens.Tokens(tokens.read(write_tokens(tmp_path, "abc read a")))
    assert found.find(["bearer abc"]).name == "a"
    with pytest.raises(Unauthenticated):
        found.find(shown)


@given(
    rate=st.floats(0.1, 1000), share=st.sampled_from([1.0, 0.5, 0.125]), steps=st.lists(st.floats(0, 2), max_size=200)
)
def test_a_bucket_lets_through_its_rate_and_one_second_more(rate: float, share: float, steps: list[float]) -> None:
    now = 0.0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(time, "monotonic", lambda: now)
        bucket = tokens.Bucket(rate * share)
        for passed, step in enumerate(steps, 1):
            now += step
            wait_s = bucket.take()
            if wait_s:
                now += wait_s * (1 + 1e-6) + 1e-6
                assert not bucket.take()  # it said when
            assert passed <= rate * share * now + max(1, rate * share) + 1e-6


def test_above_its_rate_a_token_is_refused_and_told_when_to_come_back(store: Path) -> None:
    path = write_tokens(store.parent, f"{READ} read slow 0.004\n{BOTH} read fast\n")
    made = {"token_file": str(path), "connection_age_s": 300}  # a new connection may reach the other worker
    with running(fake(store, workers=2, **made), store.parent / "log") as server:
        with Client(server.address, 60, token=READ) as client:  # each worker lets one through
            found = [outcome(client.recommend, "u", 3) for _ in range(4)]
            assert found == ["OK", *["RESOURCE_EXHAUSTED"] * 3]
            with pytest.raises(
                Overloaded, match=r"token slow: found more requests, expected at most 0\.004 a sec"
            ) as e:
                client.status()
            assert e.value.retry_after_ms is not None
            assert 250_000 < e.value.retry_after_ms <= 500_000  # .004 a second, of which half is this worker's
            answers = list(client.recommend_many(["u", "v", "w"], 3))
            assert [type(answer) for answer in answers] == [Overloaded] * 3
        with Client(server.address, 60, token=BOTH) as client:
            assert all(outcome(client.recommend, "u", 3) == "OK" for _ in range(20))


def test_each_request_of_a_stream_counts(store: Path) -> None:
    path = write_tokens(store.parent, f"{READ} read slow 3\n")
    with (
        running(fake(store, workers=1, token_file=str(path)), store.parent / "log") as server,
        Client(server.address, 60, token=READ) as client,
    ):
        answers = list(client.recommend_many(["u"] * 200, 3))
        refused = sum(isinstance(answer, Overloaded) for answer in answers)
        assert len(answers) == 200
        assert not any(isinstance(answer, ClientError) for answer in answers[:3])
        assert 0 < refused <= 197


def test_who_may_not_call_takes_no_place_and_is_not_read(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALL_LIMIT_S", "600")  # however slow this machine is, the call that waits is not taken for lost
    path, port = write_tokens(store.parent), free_port()
    made = {"token_file": str(path), "metrics_port": port, "max_in_flight": 1, "workers": 1}
    with running(fake(store, **made), store.parent / "log") as server, Client(server.address, 60, token=READ) as client:
        stuck = store / B1 / "stuck"
        client.status()
        stuck.touch()
        answered: list[str] = []
        busy = threading.Thread(target=lambda: answered.append(outcome(client.recommend, "u", 3)))
        busy.start()
        shown = {"Authorization": f"Bearer {READ}"}
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=shown)

        def in_flight() -> bool:
            with urllib.request.urlopen(asked, timeout=60) as reply:
                return b"lhydra_in_flight 1.0" in reply.read()

        until(in_flight)
        try:
            with grpc.insecure_channel(server.address) as channel:
                raw: Callable[..., Any] = channel.unary_unary(API + "Recommend")
                assert outcome(raw, b"no message", timeout=60) == "UNAUTHENTICATED"  # not RESOURCE_EXHAUSTED
                shown_too = (("authorization", f"Bearer {WRITE}"),)
                assert outcome(raw, b"no message", timeout=60, metadata=shown_too) == "PERMISSION_DENIED"
                half: Callable[..., Any] = channel.stream_unary(API + "Recommend")
                never = threading.Event()
                assert outcome(half, iter(never.wait, None), timeout=60) == "UNAUTHENTICATED"  # its request never comes
                never.set()
            with Client(server.address, 60, token=BOTH) as other:
                assert outcome(other.recommend, "u", 3) == "RESOURCE_EXHAUSTED"
        finally:
            stuck.unlink()
            busy.join()
        assert answered == ["OK"]


def test_a_server_does_not_start_with_wrong_tokens(store: Path, tmp_path: Path) -> None:
    path = write_tokens(tmp_path, f"{READ} raed reader")
    line = f"{path}: line 1: rights: found other words, expected some of read, write, admin, by commas"
    assert refused(fake(store, token_file=str(path))) == line
    none = tmp_path / "none"
    assert refused(fake(store, token_file=str(none))) == (
        f"{none}: found No such file or directory, expected a file of tokens"
    )


@pytest.mark.parametrize("token_file", [False, True])
def test_reflection_can_be_closed(store: Path, token_file: bool) -> None:
    made: dict[str, Any] = {"token_file": str(write_tokens(store.parent))} if token_file else {}
    with (
        running(fake(store, workers=1, closed_reflection=True, **made), store.parent / "log") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        assert reflect(channel, ADMIN) == "UNIMPLEMENTED"


# -- changes while it runs --------------------------------------------------------------------------------


class Traffic:
    """Calls without pause over clients that are opened again and again; keeps what went wrong."""

    def __init__(self, address: str, access: dict[str, Any]) -> None:
        self.address, self.access = address, access
        self.failures: list[str] = []
        self.answered = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]

    def _run(self) -> None:
        while not self._stop.is_set():
            with Client(self.address, 60, **self.access) as client:
                for _ in range(20):
                    try:
                        client.recommend("u", 3)
                        self.answered += 1
                    except ClientError as error:
                        self.failures.append(str(error))

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self) -> None:
        """Waits for a hundred more answers."""
        most = self.answered + 100
        until(lambda: self.answered > most)


def shown_serial(address: str, pki: Pki) -> str:
    """The certificate that a new connection is shown."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=pki.ca)
    context.load_cert_chain(pki.client_cert, pki.client_key)
    with (
        socket.create_connection((host, int(port))) as plain,
        context.wrap_socket(plain, server_hostname=host) as shown,
    ):
        found = shown.getpeercert()
        assert found is not None
        return str(found["serialNumber"])


def replace(path: Path, data: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.chmod(0o600)
    new.replace(path)


def test_certificates_and_tokens_change_under_traffic_without_a_failed_call(store: Path, tmp_path: Path) -> None:
    pki, port = Pki(tmp_path / "pki"), free_port()
    path = write_tokens(tmp_path)
    made = settings(pki, "mtls") | {"token_file": str(path)}
    with running(fake(store, workers=2, metrics_port=port, **made), tmp_path / "log") as server:
        access = arguments(pki, "mtls")

        def told() -> str:
            with Client(server.address, 60, **access, token=BOTH) as client:
                return client.status().access_error

        first = shown_serial(server.address, pki)
        assert shown_serial(f"127.0.0.1:{port}", pki) == first
        good = pki.cert.read_bytes(), pki.key.read_bytes()
        with Traffic(server.address, access | {"token": BOTH}) as traffic:
            traffic.goes_on()
            cert, key = pki.issue("next")
            replace(pki.cert, cert.read_bytes())  # without its key: wrong for a moment
            until(lambda: "found the key of another certificate" in told())
            assert shown_serial(server.address, pki) == first
            replace(pki.key, key.read_bytes())
            until(lambda: told() == "")
            second = until(lambda: (now := shown_serial(server.address, pki)) != first and now)
            for _ in range(8):  # every worker
                until(lambda: shown_serial(server.address, pki) == second)
            until(lambda: shown_serial(f"127.0.0.1:{port}", pki) == second)
            traffic.goes_on()
            replace(pki.cert, good[0][: len(good[0]) // 2])  # half written
            until(lambda: "found no certificate in it" in told())
            for _ in range(4):
                assert shown_serial(server.address, pki) == second
            replace(pki.cert, cert.read_bytes())
            until(lambda: told() == "")
            traffic.goes_on()
            replace(path, f"{BOTH} read,write both 1000\n{READ} raed reader\n".encode())
            until(lambda: "line 2: rights: found other words" in told())
            with Client(server.address, 60, **access, token=READ) as client:
                assert outcome(client.recommend, "u", 3) == "OK"
            replace(path, f"{BOTH} read,write both 1000\n".encode())  # takes READ away
            until(lambda: told() == "")

            def revoked() -> bool:
                with Client(server.address, 60, **access, token=READ) as client:
                    return outcome(client.recommend, "u", 3) == "UNAUTHENTICATED"

            for _ in range(8):  # every worker
                until(revoked)
            assert scraped(port, pki, "mtls", READ) == 401
            assert scraped(port, pki, "mtls", BOTH) == 200
            traffic.goes_on()
        assert traffic.failures == []
        replace(path, b"nothing of the kind\n")
        until(lambda: "line 1: rights: found other words" in told())
        victim = server.workers()[0]
        os.kill(victim, 9)  # its successor starts with what was sound
        until(lambda: victim not in server.children() and len(server.children()) == 2)
        for _ in range(4):
            assert shown_serial(server.address, pki) == second
            with Client(server.address, 60, **access, token=BOTH) as client:
                assert outcome(client.recommend, "u", 3) == "OK"
        log = (tmp_path / "log").read_text()
        assert "the certificates stay as they were: " in log
        assert "the tokens stay as they were: " in log
        assert not any(token in log for token in RIGHTS)


def test_connections_that_begin_no_handshake_hide_no_metrics(pki: Pki, store: Path) -> None:
    port = free_port()
    with (
        running(fake(store, workers=1, metrics_port=port, **settings(pki, "tls")), store.parent / "log") as server,
        ExitStack() as stack,
    ):
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(200)]
        assert scraped(port, pki, "tls", "") == 200
        idle[0].settimeout(60)
        with suppress(ConnectionResetError):
            assert idle[0].recv(1) == b""  # the oldest made room
        assert server.process.poll() is None


def test_another_authority_lets_in_other_clients(store: Path, tmp_path: Path) -> None:
    pki, other, port = Pki(tmp_path / "pki"), Pki(tmp_path / "other"), free_port()
    with running(fake(store, workers=1, metrics_port=port, **settings(pki, "mtls")), tmp_path / "log") as server:
        theirs: dict[str, Any] = {"tls_ca": pki.ca, "tls_cert": other.client_cert, "tls_key": other.client_key}

        def asked(access: dict[str, Any]) -> str:
            with Client(server.address, 60, **access) as client:
                return outcome(client.status)

        def scrapes(access: dict[str, Any]) -> bool:
            context = ssl.create_default_context(cafile=access["tls_ca"])
            context.load_cert_chain(access["tls_cert"], access["tls_key"])
            try:
                with urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", context=context, timeout=60) as reply:
                    return bool(reply.read())
            except OSError:
                return False

        assert (asked(pki.client), asked(theirs)) == ("OK", "UNAVAILABLE")
        assert (scrapes(pki.client), scrapes(theirs)) == (True, False)
        ours = {**pki.client, "tls_ca": tmp_path / "kept.pem"}
        ours["tls_ca"].write_bytes(pki.ca.read_bytes())
        theirs["tls_ca"] = ours["tls_ca"]
        replace(pki.ca, other.ca.read_bytes())
        until(lambda: asked(theirs) == "OK")
        assert asked(ours) == "UNAVAILABLE"
        until(lambda: scrapes(theirs))
        assert not scrapes(ours)


def test_secrets_that_everybody_can_read_have_a_line(pki: Pki, store: Path) -> None:
    path = write_tokens(store.parent)
    path.chmod(0o644)
    with running(fake(store, workers=1, token_file=str(path), **pki.server), store.parent / "log") as server:
        warned = [
            line["message"] for line in server.lines() if line["level"] == "warning" and "read by" in line["message"]
        ]
    assert warned == [f"{path} can be read by every user of this machine: chmod o-r"]


def test_copies_are_nobody_elses_and_go_with_the_server(store: Path, tmp_path: Path) -> None:
    path = write_tokens(tmp_path)
    files = FilesInForce(ServeSettings(token_file=str(path)), store)
    files.open(B1)
    copies = Path(files.in_force["tokens"])
    assert copies.parent.stat().st_mode & 0o077 == 0
    assert files.access.closed
    files.close()
    assert not copies.parent.exists()


def test_no_room_for_copies_is_one_line(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_files, "MEMORY", tmp_path / "none")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
    files = FilesInForce(ServeSettings(token_file=str(write_tokens(tmp_path))), store)
    expected = f"copies of the tokens: found No such file or directory, expected room in {tmp_path}/none or in $TMPDIR"
    with pytest.raises(ConfigError) as caught:
        files.open(B1)
    assert str(caught.value) == expected


def test_a_token_of_the_same_length_takes_the_place_of_another_whatever_the_time_says(
    store: Path, tmp_path: Path
) -> None:
    path, kept = write_tokens(tmp_path), tmp_path / "kept"
    files = FilesInForce(ServeSettings(token_file=str(path)), store)
    files.open(B1)
    kept.write_text(path.read_text().replace(READ, "z" * 24))
    assert kept.stat().st_size == path.stat().st_size
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    with path.open("r+") as file:  # the same file, its time set back: as `cp -p` onto it and `rsync -t --inplace` do
        file.write(kept.read_text())
    os.utime(path, ns=times)
    files.look(B1)
    assert (Path(files.in_force["tokens"]) / tokens.COPY).read_text() == kept.read_text()
    with pytest.raises(Unauthenticated):
        files.access.check(API + "Recommend", [("authorization", f"Bearer {READ}")])
    files.close()


def test_what_is_no_file_is_refused_and_never_waited_for(store: Path, tmp_path: Path) -> None:
    path = write_tokens(tmp_path)
    files = FilesInForce(ServeSettings(token_file=str(path)), store)
    files.open(B1)
    before = files.in_force["tokens"]
    path.unlink()
    os.mkfifo(path)
    files.look(B1)
    assert files.told["access_error"] == f"{path}: found no regular file, expected a file of tokens"
    assert files.in_force["tokens"] == before
    with pytest.raises(ConfigError, match="no regular file"):
        FilesInForce(ServeSettings(token_file=str(path)), store).open(B1)
    files.close()


def test_a_version_that_is_refused_leaves_no_copy(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tokens(tmp_path)
    files = FilesInForce(ServeSettings(token_file=str(path)), store)
    files.open(B1)
    folder = Path(files.in_force["tokens"]).parent
    for text in ("junk", "more junk"):
        path.write_text(text)
        files.look(B1)
        assert [entry.name for entry in folder.iterdir()] == ["0"]

    def full(copy: Path, data: bytes) -> int:
        copy.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    path.write_text(f"{READ} read other\n")
    files.look(B1)
    assert "No space left" in files.told["access_error"]
    assert [entry.name for entry in folder.iterdir()] == ["0"]
    files.close()


# -- our client -------------------------------------------------------------------------------------------


def test_a_token_goes_to_another_machine_by_tls_alone(pki: Pki) -> None:
    line = "token: found a server on another machine without TLS, expected tls, or insecure to send it in the clear"
    for address in ("10.1.2.3:50051", "example.org:50051", "[2001:db8::1]:50051", "dns:///example.org:50051"):
        assert said(partial(Client, address, token=READ)) == line
        for access in ({"tls": True}, {"tls_ca": pki.ca}, {"insecure": True}):
            Client(address, token=READ, **access).close()
    for address in ("127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/run/lhydra.sock"):
        Client(address, token=READ).close()


@pytest.mark.parametrize("token", ["a b", "a\n", "\u00e9", "a" * 513, 7])
def test_what_cannot_be_a_token_is_refused_without_showing_it(token: Any) -> None:
    expected = "token: found other characters, expected 1 to 512 of ASCII, without spaces"
    assert said(lambda: Client(token=token)) == expected


def test_files_that_are_none_are_one_line(pki: Pki, tmp_path: Path) -> None:
    none, junk = tmp_path / "none", tmp_path / "junk"
    junk.write_text("junk")
    missing = "found No such file or directory, expected a PEM file"
    assert said(lambda: Client(tls_ca=none)) == f"tls_ca {none}: {missing}"
    assert said(lambda: Client(tls_cert=none, tls_key=pki.key)) == f"tls_cert {none}: {missing}"
    assert said(lambda: Client(tls_ca=junk)) == f"tls_ca {junk}: found no certificate in it, expected some in PEM form"
    assert "found no pair, expected a certificate and its key" in said(
        lambda: Client(tls_cert=pki.client_cert, tls_key=junk)
    )
    together = "expected a file: tls_cert and tls_key go together"
    assert said(lambda: Client(tls_cert=pki.cert)) == f"tls_key: found nothing, {together}"
    assert said(lambda: Client(tls_key=pki.key)) == f"tls_cert: found nothing, {together}"


@pytest.mark.parametrize("by", ["flags", "environment"])
def test_query_shows_certificates_and_tokens(
    pki: Pki, store: Path, by: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = settings(pki, "mtls") | {"token_file": str(write_tokens(store.parent))}
    own = store.parent / "own"
    with running(fake(store, workers=1, **made), store.parent / "log") as server:

        def query(*words: str, token: str | None, access: dict[str, Any]) -> tuple[int, str]:
            for name in ("LHYDRA_TOKEN", "LHYDRA_TOKEN_FILE", "LHYDRA_TLS_CA", "LHYDRA_TLS_CERT", "LHYDRA_TLS_KEY"):
                monkeypatch.delenv(name, raising=False)
            given = [*words, "--address", server.address]
            files = {name: str(path) for name, path in access.items()}
            if token is not None:
                own.write_text(token + "\n")
                files["token_file"] = str(own)
            for name, path in files.items():
                if by == "flags":
                    given += ["--" + name.replace("_", "-"), path]
                else:
                    monkeypatch.setenv(f"LHYDRA_{name.upper()}", path)
            code = main(["query", *given])
            out = capsys.readouterr()
            assert out.err.count("\n") == (code != 0)
            return code, out.err

        assert query("recommend", "u", token=READ, access=pki.client) == (0, "")
        assert query("plays", "u", "t1", token=WRITE, access=pki.client) == (0, "")
        code, line = query("plays", "u", "t1", token=READ, access=pki.client)
        assert (code, "found read, expected write, for RecordPlays" in line) == (1, True)
        assert "a token that is not known" in query("status", token="wrong", access=pki.client)[1]
        assert "authorization: found none" in query("status", token=None, access=pki.client)[1]
        assert "may want TLS, or a certificate" in query("status", token=READ, access={"tls_ca": pki.ca})[1]
        if by == "environment":
            monkeypatch.delenv("LHYDRA_TOKEN_FILE", raising=False)
            monkeypatch.setenv("LHYDRA_TOKEN", READ)
            for name, path in pki.client.items():
                monkeypatch.setenv(f"LHYDRA_{name.upper()}", str(path))
            monkeypatch.setenv("LHYDRA_TLS", "1")
            assert main(["query", "status", "--address", server.address]) == 0
            monkeypatch.setenv("LHYDRA_TLS", "perhaps")
            assert main(["query", "status", "--address", server.address]) == 1
            assert "environment variable LHYDRA_TLS: found 'perhaps'" in capsys.readouterr().err


def test_query_says_what_is_wrong_with_a_token_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own"
    for data, found in ((b"", "0 words"), (b"secret two", "2 words"), (b"\xff", "characters other than ASCII")):
        own.write_bytes(data)
        assert main(["query", "status", "--token-file", str(own)]) == 1
        line = capsys.readouterr().err
        assert line.startswith(f"lhydra query: token file {own}: found {found}, expected ")
        assert "secret" not in line
    assert main(["query", "status", "--token-file", str(tmp_path / "none")]) == 1
    assert "found No such file or directory, expected a file with a token" in capsys.readouterr().err
