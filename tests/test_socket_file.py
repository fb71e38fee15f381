"""`lhydra serve --host unix:PATH`: a path that leads to one worker after another, and to nobody else's server."""

import os
import signal
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lhydra.errors import ConfigError, PortInUse
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.socket_file import SocketFile, address_of, path_of
from tests.fake_serve import write_bundle
from tests.harness import gone, until
from tests.test_supervisor import B1, B2, Load, Server, fake, open_stub, publish, refused, running, whole


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tmp_path / "store"
    write_bundle(store, B1, n=100)
    write_bundle(store, B2, n=77)
    publish(store, B1)
    return store


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:  # a short one: a socket's path ends at 107 bytes
        yield Path(folder) / "a b%20c#?é.sock"  # all that means something in a URI


def on(path: Path, store: Path, **settings: Any) -> list[str | Path]:
    return fake(store, host=f"unix:{path}", workers=0, **settings)


@pytest.fixture
def server(store: Path, path: Path) -> Iterator[Server]:
    with running(on(path, store), store.parent / "log") as server:
        yield server


def listening(path: Path) -> socket.socket:
    other = socket.socket(socket.AF_UNIX)
    other.bind(str(path))
    other.listen()
    return other


def test_an_address_is_the_path_again(path: Path) -> None:
    assert path_of(address_of(str(path))) == str(path)
    assert path_of("127.0.0.1:1") == path_of("[::1]:1") == ""


def test_it_answers_on_the_path_alone_and_leaves_nothing(server: Server, store: Path, path: Path) -> None:
    assert server.address == address_of(str(path))
    assert server.first_line.endswith(" with 1 worker")
    assert server.status().bundle_id == B1
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    line = f"address {server.address}: found the socket in use, expected another path"
    assert refused(on(path, store)) == line
    assert server.status().bundle_id == B1  # though another server asked for its path
    server.process.send_signal(signal.SIGTERM)
    assert server.ended() == 0
    assert list(path.parent.iterdir()) == []


def test_a_swap_fails_no_call_and_a_killed_worker_comes_back(server: Server, store: Path, path: Path) -> None:
    with Load(server.address, whole, n_threads=2) as load:
        for bundle_id in (B2, B1):
            old = server.children()
            publish(store, bundle_id)
            until(lambda: all(gone(pid) for pid in old))  # noqa: B023
            before = load.answers.get(bundle_id, 0)
            until(lambda: load.answers.get(bundle_id, 0) > before + 20)  # noqa: B023
    assert load.failures == []
    os.kill(server.children()[0], signal.SIGKILL)
    until(lambda: server.status().workers == 1)
    path.unlink()  # as those do that tidy /tmp
    with open_stub(server.address) as stub:
        assert stub.Recommend(pb.RecommendRequest(user_id="ann", k=3), wait_for_ready=True, timeout=60).tracks
    assert sum("was taken away" in line["message"] for line in server.whole_log()) == 1


def test_what_a_killed_server_has_left_is_taken_over(store: Path, path: Path) -> None:
    listening(path).close()
    assert path.exists()
    with running(on(path, store), store.parent / "log") as server:
        assert server.status().bundle_id == B1


def test_a_path_that_is_taken_or_cannot_be_is_refused(path: Path) -> None:
    with listening(path), pytest.raises(PortInUse, match="found the socket in use, expected another path"):
        SocketFile(f"unix:{path}")
    path.unlink()
    with SocketFile(f"unix:{path}"), pytest.raises(PortInUse):  # which has not bound it yet
        SocketFile(f"unix:{path.parent}/../{path.parent.name}/{path.name}")
    path.write_text("precious")
    for host in (f"unix:{path}", f"unix:{path.parent}"):
        with pytest.raises(ConfigError, match="found a file that is no socket, expected another path"):
            SocketFile(host)
    link = path.parent / "link"
    link.symlink_to(path)
    with pytest.raises(ConfigError, match="no socket"):
        SocketFile(f"unix:{link}")
    assert path.read_text() == "precious"
    for host in ("unix:", "unix:/", f"unix:{path.parent}/nowhere/x.sock", "unix:/" + "x" * 100, "unix:a\0b"):
        with pytest.raises(ConfigError, match=r"--host: found .*, expected ") as error:
            SocketFile(host)
        assert "\n" not in str(error.value)
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name, "link"]


def test_more_workers_than_one_are_one_line(store: Path, path: Path) -> None:
    line = "--workers: found 2, expected 1 with --host unix:PATH: workers cannot share a unix socket"
    assert refused(fake(store, host=f"unix:{path}", workers=2)) == line


def test_a_worker_that_has_gone_takes_no_name_of_another(path: Path) -> None:
    with SocketFile(f"unix:{path}") as place:
        first, second = place.for_worker(), place.for_worker()
        with listening(Path(path_of(first))), listening(Path(path_of(second))):
            place.publish(first)
            assert not place.lost()
            place.publish(first)  # again, as at every tick
            place.publish(second)
            assert not place.lost()
            third = place.for_worker()
            assert len({first, second, third}) == 3
        listening(Path(path_of(third))).close()  # it died before it served
        place.for_worker()
        assert not Path(path_of(third)).exists()
        path.unlink()
        assert place.lost()
    assert list(path.parent.iterdir()) == []
