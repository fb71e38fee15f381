"""The real data sets, end to end: small runs that must beat popularity by far; scored by the shared tool.

`docs/real-data.md` has the full runs.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lhydra.cli import main
from lhydra_client import Client
from tests.realdata import ROOT as DATA
from tests.realdata import real_data
from tests.test_supervisor import running

pytestmark = pytest.mark.real_data
TOOLS = DATA.parent / "tools"
SMALL = ("--dim", "66", "--hidden", "64", "--threads", "1", "--head-epochs", "1", "--depth", "100")


def lhydra(*words: object) -> None:
    assert main([str(word) for word in words]) == 0, words


def build(source: Path, folder: Path, *training: str) -> tuple[Path, Path]:
    """Returns the dataset and the store of a small model."""
    dataset, model, store = (folder / name for name in ("dataset", "model", "store"))
    lhydra("prepare", source, dataset, *(("--split", "column") if source.is_dir() else ()))
    lhydra("train", dataset, model, *training)
    lhydra("index", "rebuild", "--model", model, "--data", dataset, "--store", store, "--recall-users", "50")
    return dataset, store


def test_the_sample_is_served(tmp_path: Path, quick_export: None) -> None:
    source = real_data("lhydra-sample") / "spotify_1k_sample_data.csv"
    dataset, store = build(source, tmp_path, "--epochs", "2", "--dim", "32", "--hidden", "32", "--threads", "1")
    lhydra("users", "load", dataset, "--store", store)
    with source.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    user = rows[0]["user_id"]
    heard = {row["track_id"] for row in rows if row["user_id"] == user}
    names = {row["track_id"]: row["name"] for row in rows}
    serve = ("-m", "lhydra.cli", "serve", store, "--port", "0", "--workers", "1")
    with running(serve, tmp_path / "log") as server, Client(server.address, timeout_s=30) as client:
        found = client.recommend(user, k=10)
        ids = [track.track_id for track in found.tracks]
        assert len(set(ids)) == 10
        assert not heard & set(ids)
        assert [track.title for track in found.tracks] == [names[track_id] for track_id in ids]
        query = ("query", "recommend", user, "--json", "--address", server.address)
        asked = subprocess.run([sys.executable, "-m", "lhydra.cli", *query], stdout=subprocess.PIPE, check=True)
    assert [track["track_id"] for track in json.loads(asked.stdout)["tracks"]] == ids


def test_a_small_model_is_far_above_popularity(tmp_path: Path, quick_export: None) -> None:
    split = real_data(name := "movielens-100k") / "splits" / "random_seed0.npz"
    if not TOOLS.is_dir():
        pytest.skip("REAL DATA ABSENT: the tools beside the data sets")
    source, lists, ours, theirs = (tmp_path / part for part in ("source", "lists.csv", "ours.json", "theirs.json"))
    subprocess.run([sys.executable, TOOLS / "to_tables.py", name, split, source], check=True)
    dataset, store = build(source, tmp_path, *SMALL, "--epochs", "4")
    lhydra("recommend", dataset, store, "--k", "100", "--out", lists)
    lhydra("evaluate", dataset, "--store", store, "--baselines", "none", "--json", ours)
    tool = map(str, (sys.executable, TOOLS / "evaluate.py", "--split", split, "--lists", lists, "--out", theirs))
    subprocess.run([*tool], check=True, stdout=subprocess.DEVNULL)
    expected = json.loads(theirs.read_text())
    found = {name: value["mean"] for name, value in json.loads(ours.read_text())["ranking"]["cascade"].items()}
    shared = set(found) & set(expected)
    assert {"recall@10", "recall@20", "ndcg@10", "ndcg@20", "map@10", "hr@10", "mrr"} <= shared
    for metric in sorted(shared):
        assert found[metric] == pytest.approx(expected[metric], abs=1e-9), metric
    assert expected["masked_violations"] == expected["duplicates"] == 0
    assert expected["ndcg@10"] > 0.28
