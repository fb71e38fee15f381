"""`lhydra compare`: paired differences, and the refusal to compare what was not measured alike."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lhydra.cli import main
from lhydra.data.dataset import Dataset
from lhydra.errors import DataError
from lhydra.evaluation import compare as comparing
from lhydra.evaluation.bootstrap import difference
from lhydra.evaluation.compare import METRICS
from lhydra.evaluation.evaluate import evaluate
from tests.test_evaluate import FakeCatalog, FakeRecommender, Ranked, names, world

__all__ = ["world"]  # a fixture
World = tuple[Dataset, FakeRecommender]
NAMES = ("a.json", "b.json")


def compare(a: Any, b: Any, names: tuple[str, str]) -> dict[str, Any]:
    return {**comparing.compare(a, b, names)}


@pytest.fixture
def documents(world: World) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a random recommender, and of one that shows everybody the same; the second without a baseline."""
    dataset, recommender = world
    other = Ranked(FakeCatalog(names("t", 80)))
    return {**evaluate(recommender, dataset, baselines=("popular",))}, {**evaluate(other, dataset)}


def test_differences_are_paired_by_user(documents: tuple[dict[str, Any], dict[str, Any]]) -> None:
    a, b = documents
    found = compare(a, b, NAMES)
    assert list(found["stages"]) == ["cascade", "retrieval", "head"]  # only what both have
    for stage, measured in found["stages"].items():
        for metric in METRICS:
            ours, theirs = (np.array(document["per_user"]["stages"][stage][metric]) for document in documents)
            one = measured[metric]
            assert (one["a"], one["b"]) == (ours.mean(), theirs.mean())
            assert one["difference"] == pytest.approx(one["b"] - one["a"])
            assert {**one} == {"a": one["a"], "b": one["b"], **difference(ours, theirs, 0)}
        assert found["metrics"][stage]["coverage@10"]["b"] == b["ranking"][stage]["coverage@10"]["mean"]
    assert [(one["by"], one["name"]) for one in found["cohorts"]] == [(c["by"], c["name"]) for c in a["cohorts"]]
    for one, ours, theirs in zip(found["cohorts"], a["cohorts"], b["cohorts"], strict=True):
        expected = theirs["ndcg@10"]["mean"] - ours["ndcg@10"]["mean"]
        assert one["ndcg@10"]["difference"] == pytest.approx(expected)
    back = compare(b, a, NAMES)
    assert back["stages"]["cascade"]["ndcg@10"]["difference"] == -found["stages"]["cascade"]["ndcg@10"]["difference"]


def test_a_document_equals_itself(documents: tuple[dict[str, Any], dict[str, Any]]) -> None:
    found = compare(documents[0], documents[0], NAMES)
    assert found["summary"][0].startswith("B and A rank alike")
    for measured in found["stages"].values():
        assert all((one["low"], one["difference"], one["high"]) == (0, 0, 0) for one in measured.values())


def test_a_user_that_one_of_them_lacks_is_left_out(documents: tuple[dict[str, Any], dict[str, Any]]) -> None:
    a, b = documents
    numbers = b["per_user"]["stages"]["head"]["ndcg@10"]
    b["per_user"]["stages"]["head"]["ndcg@10"] = [None, *numbers[1:]]
    one = compare(a, b, NAMES)["stages"]["head"]["ndcg@10"]
    assert one["b"] == pytest.approx(np.mean(numbers[1:]))
    assert one["a"] == pytest.approx(np.mean(a["per_user"]["stages"]["head"]["ndcg@10"][1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"mask": "train"},
            "b.json: found targets tracks of the test fold that the user had not heard in train, expected the protocol"
            " of a.json: targets tracks of the test fold that the user had not heard",
        ),
        ({"as_of": "valid"}, "b.json: found as_of valid, expected the protocol of a.json: as_of test"),
        ({"users": 9}, "b.json: found users 9, expected the protocol of a.json: users all"),
        ({"seed": 1}, "b.json: found seed 1, expected the protocol of a.json: seed 0"),
        ({"ks": (5,)}, "b.json: found ks 5, expected the protocol of a.json: ks 10,20"),
    ],
)
def test_other_protocols_are_refused(world: World, change: dict[str, Any], message: str) -> None:
    dataset, recommender = world
    with pytest.raises(DataError) as raised:
        compare(evaluate(recommender, dataset), evaluate(recommender, dataset, **change), NAMES)
    assert str(raised.value) == message


def write(path: Path, document: dict[str, Any]) -> str:
    path.write_text(json.dumps(document))
    return str(path)


def test_the_command_prints_and_writes(
    documents: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (write(tmp_path / name, document) for name, document in zip(NAMES, documents, strict=True))
    out = tmp_path / "c.json"
    assert main(["compare", a, b, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found == json.loads(json.dumps(compare(*documents, (a, b))))
    assert printed.startswith(found["summary"][0] + "\n")
    assert f"{found['stages']['head']['recall@20']['difference']:+.4f}" in printed


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "b.json: found no such file, expected what `lhydra evaluate --json` wrote"),
        (lambda path: path.write_text("[]"), "b.json: found list, expected what"),
        (lambda path: path.write_text("{}"), "b.json: found another document, expected what"),
        (
            lambda path: path.write_text('{"format": 1, "per_user": {}}'),
            "b.json: protocol: found nothing, expected an object; write it again with `lhydra evaluate --json`",
        ),
        (lambda path: path.write_text("{"), "b.json: found broken JSON, expected what"),
    ],
)
def test_what_is_no_evaluation_is_one_line(
    documents: tuple[dict[str, Any], dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], Any],
    message: str,
) -> None:
    a, b = (write(tmp_path / name, document) for name, document in zip(NAMES, documents, strict=True))
    spoil(Path(b))
    assert main(["compare", a, b]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert captured.err.startswith("lhydra compare: ")
    assert message in captured.err


def test_a_reader_who_goes_away_costs_no_file_and_no_traceback(
    documents: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    a, b = (write(tmp_path / name, document) for name, document in zip(NAMES, documents, strict=True))
    out = tmp_path / "c.json"
    read, end = os.pipe()
    os.close(read)  # as `| true` does before the first line is written
    words = [sys.executable, "-m", "lhydra.cli", "compare", a, b, "--json", str(out)]
    ran = subprocess.run(words, stdout=end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(end)
    assert ran.stderr == ""
    assert json.loads(out.read_text())["stages"]
