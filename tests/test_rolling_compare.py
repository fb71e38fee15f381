"""Two rolling evaluations side by side: paired by user, and refused where they measured different things."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lhydra.cli import main
from lhydra.data.dataset import Dataset
from lhydra.evaluation.bootstrap import difference

FIGURES = ("all", "repeat", "discovery")


@pytest.fixture(scope="module")
def written(tiny_dataset: Dataset, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One evaluation, 20 users, a model beside two baselines."""
    out = tmp_path_factory.mktemp("compare") / "a.json"
    flags = ["--protocol", "next-session", "--baselines", "popular,bll", "--users", "20", "--json", str(out)]
    assert main(["evaluate", str(tiny_dataset.path), "--model", str(tiny_model), *flags]) == 0
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


@pytest.fixture
def a(written: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(written)


@pytest.fixture
def b(written: dict[str, Any]) -> dict[str, Any]:
    """Another model: what is served has other values, and one user of it none."""
    other, rng = copy.deepcopy(written), np.random.default_rng(0)
    for figure in FIGURES:
        served = other["per_user"]["figures"][figure]["served"]
        for metric, values in served.items():
            served[metric] = [None, *(value if value is None else float(rng.random()) for value in values[1:])]
    return other


def write(path: Path, document: dict[str, Any]) -> str:
    path.write_text(json.dumps(document), encoding="utf-8")
    return str(path)


def test_differences_are_paired_by_user(
    a: dict[str, Any], b: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.json"
    paths = [write(tmp_path / "a.json", a), write(tmp_path / "b.json", b)]
    for _ in range(2):  # what it wrote itself may be replaced
        assert main(["compare", *paths, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(out.read_text(encoding="utf-8"))
    for figure in FIGURES:
        for metric in ("ndcg@10", "hr@20", "mrr"):
            both = [
                (ours, theirs)
                for ours, theirs in zip(
                    *(document["per_user"]["figures"][figure]["served"][metric] for document in (a, b)), strict=True
                )
                if ours is not None and theirs is not None
            ]
            ours, theirs = (np.array(values) for values in zip(*both, strict=True))
            law = {"a": ours.mean(), "b": theirs.mean(), **difference(ours, theirs, 0)}
            assert found["figures"][figure]["served"][metric] == pytest.approx(law)
        same = found["figures"][figure]["popular"]["ndcg@10"]
        assert same["difference"] == same["low"] == same["high"] == 0
        assert f"{figure}: B, served NDCG@10 " in printed
        assert f"{found['figures'][figure]['served']['mrr']['difference']:+.4f}" in printed
    assert "bll" not in found["figures"]["discovery"]
    assert "all, the same in both: popular, bll" in printed


def test_a_document_equals_itself(a: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.json", a)
    assert main(["compare", path, path]) == 0
    assert capsys.readouterr().out.startswith("all: B and A rank alike: served NDCG@10 ")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"protocol": {"protocol": "next-day", "hash": "b"}}, "found protocol next-day, expected the protocol of "),
        ({"protocol": {"known": 5, "hash": "b"}}, "found known 5, expected the protocol of "),
        ({"protocol": {"hash": "b"}}, "found other data or users, expected the protocol of "),
        ({"per_user": {"users": []}}, "found other data or users, expected the protocol of "),
        ({"protocol": {"doubt": "another split"}}, "found another split, expected a model that has not learned"),
        ({"format": 1}, "found a static evaluation, expected a rolling one, as "),
        ({"format": "rolling-1"}, "found format rolling-1, expected rolling-2; write it again"),
        ({"per_user": None}, "per_user: found "),
    ],
    ids=str,
)
def test_other_protocols_are_one_line(
    a: dict[str, Any],
    b: dict[str, Any],
    spoil: dict[str, Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for key, value in spoil.items():
        b[key] = {**b[key], **value} if isinstance(value, dict) else value
    assert main(["compare", write(tmp_path / "a.json", a), write(tmp_path / "b.json", b)]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "b.json" in captured.err
    assert message in captured.err
