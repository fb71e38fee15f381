"""`lhydra web STORE`: a gateway with a server of its own, which ends with it, whatever ends it."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from lhydra.bundle.manifest import current_bundle_id
from lhydra.cli import main
from lhydra.data.dataset import Dataset
from tests.harness import free_port, gone, until

pytest.importorskip("uvicorn", reason="NOT RUN: `pip install lhydra[web]` brings uvicorn and Starlette")
pytest.importorskip("starlette", reason="NOT RUN: `pip install lhydra[web]` brings uvicorn and Starlette")
from lhydra_server.web.own_server import own_server
from tests.e2e.test_gateway import Web


@pytest.fixture(scope="module")
def store(tiny_store: Path, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two bundles."""
    store = tmp_path_factory.mktemp("two") / "store"
    copytree(tiny_store, store)
    assert main(["index", "remove", tiny_dataset.track_ids[0], "--store", str(store)]) == 0
    return store


def words(*more: object) -> list[str]:
    return [sys.executable, "-m", "lhydra.cli", "web", *map(str, more)]


@contextmanager
def started(*more: object) -> Iterator[tuple["subprocess.Popen[str]", Web]]:
    port = free_port()
    with subprocess.Popen(words(*more, "--port", port), stdout=subprocess.PIPE, stderr=2, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"listening on http://127.0.0.1:{port}\n"
            yield process, Web(port)
        finally:
            process.kill()


def children(pid: int) -> list[int]:
    return [int(found) for found in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_two_bundles_of_a_store_answer_beside_each_other(store: Path) -> None:
    with started(store, "--compare", "previous", "--allow-plays") as (_, web):
        found: dict[str, Any] = web.call("GetStatus", {})[1]
        assert found["bundleId"] == current_bundle_id(store)
        service, form = "/compared/lhydra.v1.Recommender", "application/json"
        code, _, said = web.ask("POST", f"{service}/GetStatus", b"{}", content_type=form)
        assert code == 200
        assert found["bundleId"] in said.decode()  # what the store calls CURRENT
        assert f'"bundleId": "{found["bundleId"]}"' not in said.decode()
        assert web.ask("POST", f"{service}/RecordPlays", b"{}", content_type=form)[0] == 403
        assert b'"compared":true' in web.ask("GET", "/about")[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_its_server_ends_with_the_gateway(store: Path, number: int) -> None:
    with started(store) as (process, web):
        assert web.ask("POST", "/compared/lhydra.v1.Recommender/GetStatus")[0] == 404
        (server,) = children(process.pid)
        folder = next(part for part in Path(f"/proc/{server}/cmdline").read_text().split("\0") if "unix:" in part)
        process.send_signal(number)
        assert process.wait(60) == (-number if number == signal.SIGKILL else 0)
        until(lambda: gone(server))
    assert number == signal.SIGKILL or not os.path.exists(os.path.dirname(folder.removeprefix("unix:")))


def test_the_gateway_ends_when_its_server_is_killed(store: Path) -> None:
    with started(store) as (process, _):
        (server,) = children(process.pid)
        os.kill(server, signal.SIGKILL)
        assert process.wait(60) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--address", "127.0.0.1:1", "--host", ""], "--host  --port"),  # which a socket takes for every address
        (["--address", "127.0.0.1:1", "--host", f"{'a' * 64}.b"], "expected a free port of this machine"),
        (["--address", ""], "--address: found ''"),
        (["--address", "127.0.0.1:1", "--compare", ""], "--compare: found ''"),
        (["--address", "127.0.0.1:1", "--cors", ""], "--cors: found ''"),
        (["nowhere"], "lhydra web: nowhere: found no such folder"),
        (["nowhere", "--compare", "nosuch"], "lhydra web: nowhere: found no such folder"),
        ([], "STORE and --address: found neither"),
        (["nowhere", "--address", "127.0.0.1:1"], "STORE and --address: found both"),
        (["--address", "127.0.0.1:1", "--compare", "previous"], "--compare: found 'previous'"),
    ],
)
def test_what_cannot_be_served_is_one_line(tmp_path: Path, more: list[str], said: str) -> None:
    done = subprocess.run(
        words(*more, "--port", free_port()), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    code = 2 if said.startswith("STORE and --address") else 1
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert said in done.stderr


def test_a_bundle_to_compare_that_is_not_there_is_named_before_a_server_starts(store: Path) -> None:
    done = subprocess.run(
        words(store, "--compare", "nosuch", "--port", free_port()),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("lhydra web: --compare: found 'nosuch', expected one that `lhydra index list` names")


def test_folders_of_gateways_that_were_killed_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    old = time.time() - 2 * 3600
    for name, held in (("lhydra-web-left", False), ("lhydra-web-used", True), ("lhydra-other", False)):
        (tmp_path / name).mkdir()
        if held:
            (tmp_path / name / "socket").touch()
        os.utime(tmp_path / name, (old, old))
    (tmp_path / "lhydra-web-starts").mkdir()
    with pytest.raises(SystemExit), own_server(tmp_path / "no store"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"lhydra-web-used", "lhydra-web-starts", "lhydra-other"}
