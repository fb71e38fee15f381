"""Where clients find servers: IPv6, Unix sockets, and proxies that an environment names."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhydra_client import AsyncClient, Client, InvalidRequest, Unavailable, address
from lhydra_client.command import DEFAULT_ADDRESS
from tests.fake_recommender import FakeRecommender, serving
from tests.harness import free_port

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@contextmanager
def proxy() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that takes connections, keeps what they say first, and hangs up."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            while True:
                try:
                    taken, _ = listening.accept()
                except OSError:
                    return
                with taken:
                    heard.append(taken.recv(100))

        threading.Thread(target=hang_up, daemon=True).start()
        yield f"http://user:secret@127.0.0.1:{listening.getsockname()[1]}", heard
        listening.shutdown(socket.SHUT_RDWR)


async def asked(place: str) -> str:
    async with AsyncClient(place, timeout_s=5) as client:
        return (await client.recommend("u1")).bundle_id


def answers(place: str) -> bool:
    """Whether a server answers both clients."""
    with Client(place, timeout_s=5) as client:
        return client.recommend("u1").bundle_id == asyncio.run(asked(place)) == "b-1"


@pytest.mark.parametrize("variable", VARIABLES[:3])
def test_no_proxy_stands_between_a_client_and_its_own_machine(
    variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with proxy() as (url, heard), serving(FakeRecommender()) as place:
        monkeypatch.setenv(variable, url)
        port = place.rpartition(":")[2]
        for name in (place, f"localhost:{port}", f"ipv4:127.0.0.1:{port}", f"dns:///localhost:{port}"):
            assert answers(name)
        assert heard == []


@pytest.mark.parametrize("variable", VARIABLES[:3])
def test_an_error_behind_a_proxy_names_its_variable_and_no_password(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy() as (url, heard):
        monkeypatch.setenv(variable, url)
        with (
            Client("music.invalid:50051", timeout_s=2) as client,
            pytest.raises(Unavailable, match=f"music.invalid:50051 through the proxy of {variable}") as caught,
        ):
            client.recommend("u1")
        assert heard[0].startswith(b"CONNECT music.invalid:50051")
        assert "secret" not in str(caught.value)
        with pytest.raises(Unavailable, match=f"through the proxy of {variable}"):
            asyncio.run(asked("music.invalid:50051"))
        monkeypatch.setenv("no_proxy", "example.org, invalid")
        assert address.proxy_variable("music.invalid:50051") == ""


@pytest.mark.parametrize(
    ("place", "environ", "variable"),
    [
        ("music.example:1", {}, ""),
        ("music.example:1", {"http_proxy": ""}, ""),
        ("music.example:1", {"HTTP_PROXY": "http://p"}, ""),  # gRPC reads the small letters alone
        ("music.example:1", {"http_proxy": "http://p", "grpc_proxy": "http://q"}, "grpc_proxy"),
        ("music.example:1", {"http_proxy": "http://p", "grpc_proxy": ""}, ""),
        ("music.example:1", {"http_proxy": "http://p", "no_proxy": "Example"}, ""),
        ("music.example:1", {"http_proxy": "http://p", "no_proxy": ",,"}, "http_proxy"),
        ("music.example:1", {"http_proxy": "http://p", "no_proxy": "example", "no_grpc_proxy": "x"}, "http_proxy"),
        ("10.1.2.3:1", {"http_proxy": "http://p", "no_proxy": "10.0.0.0/8"}, ""),
        ("10.1.2.3:1", {"http_proxy": "http://p", "no_proxy": "11.0.0.0/8,nonsense/99"}, "http_proxy"),
        ("[2001:db8::1]:1", {"http_proxy": "http://p", "no_proxy": "2001:db8::/32"}, ""),
        ("127.9.9.9:1", {"http_proxy": "http://p"}, ""),
        ("[::1]:1", {"http_proxy": "http://p"}, ""),
        ("[::ffff:127.0.0.1]:1", {"http_proxy": "http://p"}, ""),
        ("unix:/tmp/x", {"http_proxy": "http://p"}, ""),
        ("ipv4:127.0.0.1:1,127.0.0.2:1", {"http_proxy": "http://p"}, ""),
        ("ipv4:127.0.0.1:1,10.0.0.2:1", {"http_proxy": "http://p"}, "http_proxy"),
        ("dns://8.8.8.8/music.example:1", {"http_proxy": "http://p"}, "http_proxy"),
        ("localhost.example:1", {"http_proxy": "http://p"}, "http_proxy"),
    ],
)
def test_the_variable_is_the_one_that_grpc_goes_by(place: str, environ: dict[str, str], variable: str) -> None:
    assert address.proxy_variable(address.target(place), environ) == variable


def test_both_clients_take_an_ipv6_address_in_every_form() -> None:
    fake = FakeRecommender()
    try:
        with serving(fake, host="[::1]") as place:
            port = place.rpartition(":")[2]
            for form in (f"[::1]:{port}", f"::1:{port}", f"ipv6:[::1]:{port}", f"0:0:0:0:0:0:0:1:{port}"):
                assert answers(form)
    except RuntimeError:
        pytest.skip("this machine has no IPv6")


def test_both_clients_take_a_unix_socket_and_say_where_none_is(tmp_path: Path) -> None:
    with serving(FakeRecommender(), host=f"unix:{tmp_path}/s") as place:
        assert place == f"unix:{tmp_path}/s"
        assert answers(place)
        assert answers(f"unix://{tmp_path}/s")
    with (
        Client(f"unix:{tmp_path}/none", timeout_s=1) as client,
        pytest.raises(Unavailable, match=f"no server answers at unix:{tmp_path}/none"),
    ):
        client.status()


@pytest.mark.parametrize(
    "wrong",
    [
        *("", ":", ":50051", "music", "music:", "music:0", "music:65536", "music:٥٠٠٥١", "music:5_0", "music:+1"),
        *("::1", "[::1]", "[::1", "[::1]50051", "[music]:1", "2001:db8::1", "a:b:1", "http://music:1", "mu sic:1"),
        *("unix:", "unix:///", "dns:", "user@music:1", "a:1,b:1", "\n:1", "x" * 9_999),
    ],
)
def test_what_is_no_address_is_refused_in_one_short_line(wrong: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^address: found .*, expected HOST:PORT") as caught:
        Client(wrong)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=12), st.integers(-1, 70_000))
def test_an_address_is_refused_or_means_what_it_says(host: str, port: int) -> None:
    try:
        place = address.target(f"{host}:{port}")
    except InvalidRequest:
        return
    assert place.replace("[", "").replace("]", "") == f"{host}:{port}".replace("[", "").replace("]", "")
    assert address.target(place) == place
    assert place.startswith(("unix", "dns", "ipv")) or 0 < port < 65_536


def test_the_default_address_is_local() -> None:
    assert address.is_local(address.target(DEFAULT_ADDRESS))
    with (
        pytest.raises(Unavailable, match=r"no server answers at localhost:"),
        Client(f"localhost:{free_port()}") as client,
    ):
        client.status()


def test_a_channel_of_ones_own_can_have_the_same_options(monkeypatch: pytest.MonkeyPatch) -> None:
    from lhydra_client.client import channel_options

    with proxy() as (url, heard), serving(FakeRecommender()) as place:
        monkeypatch.setenv("http_proxy", url)
        with grpc.insecure_channel(place, channel_options(place)) as channel, Client(channel=channel) as client:
            assert client.recommend("u1").bundle_id == "b-1"
        assert heard == []
