"""The latency benchmark against real servers: what it measures of ours, and peers that answer what ours answers."""

import gc
import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks import stages
from benchmarks.latency import h2load
from benchmarks.latency.command import main
from benchmarks.latency.peers.settings import PeerSettings
from lhydra.bundle.bundle import Bundle
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import Query
from lhydra.recommender import Recommender
from lhydra.users.store import open_users

K, DEPTH = 10, 60
needs_peers = pytest.mark.skipif(
    not all(map(find_spec, ("fastapi", "uvicorn", "orjson", "uvloop", "httptools"))), reason="pip install --group bench"
)


@pytest.fixture(scope="module")
def store(tiny_store: Path, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of our own, with the users in it."""
    copied = tmp_path_factory.mktemp("latency") / "store"
    shutil.copytree(tiny_store, copied, ignore=shutil.ignore_patterns("users.lmdb"))
    users = open_users(None, copied)
    users.load(user_states(tiny_dataset, "now"))
    users.close()
    return copied


def test_a_real_server_is_measured_and_its_users_left_alone(
    store: Path, tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (store / "users.lmdb" / "data.mdb").read_bytes()
    argv = ["--store", str(store), "--dataset", str(tiny_dataset.path), "--workers", "1", "--k", str(K)]
    argv += ["--depth", str(DEPTH), "--modes", "closed,open,mixed,cases,in-process", "--concurrency", "2"]
    argv += ["--rates", "80", "--seconds", "0.4", "--warmup-s", "0.1", "--spin-s", "0"]
    assert main([*argv, "--json", str(tmp_path / "l.json"), "--plot", str(tmp_path / "l.html")]) == 0
    document = json.loads((tmp_path / "l.json").read_text())
    assert document["server"]["default_depth"] == DEPTH
    assert document["faults"] == []
    by_mode = {run["mode"]: run for run in document["runs"]}
    for mode in ("closed", "open", "mixed", "cases"):
        cost = by_mode[mode]["server_cost"]
        assert cost["processes"] >= 2  # the supervisor and its worker
        assert 0 < cost["cpu_us_per_request"] < 1e6
        assert 0 < cost["private_mib"] <= cost["pss_mib"] <= cost["rss_mib"]
    assert by_mode["open"]["tiers"] == {"personal": by_mode["open"]["answered"]}
    assert by_mode["mixed"]["kinds"]["feedback"]["answered"] > 0
    assert "10,000 plays" in by_mode["cases"]["kinds"]
    assert by_mode["in-process"]["tiers"] == {"personal": by_mode["in-process"]["answered"]}
    assert "of in-process" in capsys.readouterr().out
    assert (store / "users.lmdb" / "data.mdb").read_bytes() == before


def test_stages_add_up_to_less_than_the_whole(store: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "stages.json"
    argv = [str(tiny_dataset.path), str(store), "--requests", "50", "--k", str(K), "--out", str(out)]
    assert stages.main([*argv, "--depth", str(DEPTH)]) == 0
    document = json.loads(out.read_text())
    assert (document["depth"], document["k"], document["tiers"]) == (DEPTH, K, {"personal": 50})
    parts = {name: row["p50"] for name, row in document["stages_us"].items()}
    whole = parts.pop("total")
    assert set(parts) >= {"lookup", "encode", "embed", "retrieve", "rerank", "select", "reply"}
    assert max(parts.values()) <= whole
    assert document["cpu_us_per_request"] > 0


@pytest.fixture
def told(store: Path, tiny_model: Path) -> Iterator[PeerSettings]:
    yield PeerSettings(store, tiny_model, DEPTH)
    gc.unfreeze()


@needs_peers
def test_the_tuned_peer_answers_what_ours_answers(told: PeerSettings, tiny_dataset: Dataset) -> None:
    from benchmarks.latency.peers import tuned

    engine, ours = tuned.Engine(told), Recommender(Bundle.open(told.store), DEPTH)
    for user in tiny_dataset.user_ids[:20]:
        state = engine.users.get(user)
        assert state is not None
        found = ours.recommend(Query(K, state, True, state.heard))
        tracks = json.loads(engine.recommend(user, K))["tracks"]
        assert [track["track_id"] for track in tracks] == ours.catalog.track_ids(found.rows)
        assert [track["score"] for track in tracks] == pytest.approx(found.scores.tolist())
        assert [track["title"] for track in tracks] == ours.catalog.titles(found.rows)
    engine.users.close()


@needs_peers
def test_the_tutorial_peer_does_the_same_work(told: PeerSettings, tiny_dataset: Dataset) -> None:
    """The same user vector and candidates; its head is an earlier fit, so the order may differ."""
    from benchmarks.latency.peers import tutorial

    engine, ours = tutorial.Engine(told), Recommender(Bundle.open(told.store), DEPTH)
    assert engine.track_ids == ours.catalog.track_ids(np.arange(len(ours.catalog)))
    for user in tiny_dataset.user_ids[:20]:
        state = engine.users.get(user)
        assert state is not None
        found = ours.recommend(Query(K, state, True, state.heard))
        encoded = engine.model.encode(state)
        vector = ours.bundle.embed(ours.encode(state))
        assert engine.model.embed(encoded).numpy() == pytest.approx(vector, abs=1e-4)
        tracks = engine.recommend(user, K)
        assert len({track.track_id for track in tracks}) == len(found.rows) == K
        assert [track.score for track in tracks] == sorted((track.score for track in tracks), reverse=True)
        assert {track.track_id for track in tracks} <= set(ours.catalog.track_ids(found.candidates))
        rows = np.array([engine.track_ids.index(track.track_id) for track in tracks])
        assert [track.title for track in tracks] == ours.catalog.titles(rows)
        assert [track.artist for track in tracks] == ours.catalog.artists(rows)
    engine.users.close()


@needs_peers
@pytest.mark.skipif(not h2load.installed(), reason="no h2load: apt-get install nghttp2-client")
def test_peers_are_started_measured_and_put_in_one_table(
    told: PeerSettings, tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--store", str(told.store), "--dataset", str(tiny_dataset.path), "--model", str(told.model)]
    argv += ["--workers", "1", "--depth", str(DEPTH), "--k", str(K), "--modes", "closed", "--concurrency", "2"]
    argv += ["--seconds", "0.5", "--warmup-s", "0.2", "--spin-s", "0", "--json", str(tmp_path / "l.json")]
    assert main([*argv, "--peers", "tutorial,tuned"]) == 0
    document = json.loads((tmp_path / "l.json").read_text())
    assert list(document["peers"]) == ["tutorial", "tuned"]
    for found in (document["figures"], *document["peers"].values()):
        assert found["closed, 2: per s"]["median"] > 0
        assert found["closed, 2: pss MiB"]["median"] > 10
    out = capsys.readouterr().out
    table = [line for line in out.splitlines() if line.startswith(("lhydra  ", "tutorial  ", "tuned  "))]
    assert [line.split()[0] for line in table] == ["lhydra", "tutorial", "tuned"]
    with pytest.raises(SystemExit):
        main([*argv, "--peers"])
    assert main([*argv, "--peers", "torchserve"]) == 1
    assert "torchserve" in capsys.readouterr().err
