"""The page of a rolling evaluation: the numbers of the document, whatever is missing, hostile names."""

import copy
import json
from pathlib import Path
from typing import Any, cast

import pytest

from lhydra import cli
from lhydra.data.dataset import Dataset
from lhydra.evaluation.rolling import report
from lhydra.evaluation.rolling.document import RollingDocument
from tests.test_report import Page

FIGURES = ("all", "repeat", "discovery")


@pytest.fixture(scope="module")
def document(tiny_dataset: Dataset, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out, page = (tmp_path_factory.mktemp("report") / name for name in ("a.json", "a.html"))
    flags = ["--protocol", "next-session", "--baselines", "popular,bll,blend", "--users", "20"]
    flags += ["--json", str(out), "--report", str(page)]
    assert cli.main(["evaluate", str(tiny_dataset.path), "--model", str(tiny_model), *flags]) == 0
    assert page.read_text(encoding="utf-8").count("plotly.js v") == 1
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


@pytest.fixture(autouse=True)
def light(request: pytest.FixtureRequest, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the 5 MB of plotly.js, but for the page of the command."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "var Plotly;")


def page_of(document: Any) -> Page:
    return Page(report.render(cast(RollingDocument, document)))


def test_charts_show_the_numbers_of_the_document(document: dict[str, Any]) -> None:
    page = page_of(document)
    assert page.sections == ["ranking", "paired", "slices", "chosen", "protocol"]
    charts = iter(page.charts)
    for figure in FIGURES:
        chart, own = next(charts), document["ranking"][figure]
        law = {one["ndcg@10"]["mean"] for name, one in own.items() if (figure, name) != ("discovery", "bll")}
        assert {point["mean"] for point in chart["series"][0]["points"]} == law
        assert chart["labels"][0] == "Lhydra"
    share = next(charts)
    assert share["reference"] == document["repeats"]["truth"]["mean"]
    assert len(share["labels"]) == 1 + len(document["repeats"]["lists"])
    for figure in FIGURES:
        law = {one["ndcg@10"]["difference"] for one in document["paired"][figure].values()}
        chart = next(charts)
        assert chart["reference"] == 0
        assert {point["mean"] for point in chart["series"][0]["points"]} <= law
    for chart in charts:
        assert chart["kind"] == "lines"
        assert len(chart["ticks"]) == len(chart["tick_names"]) == len(chart["series"][0]["y"])
        assert any(
            chart["series"][0]["y"] == [one["scorers"]["served"] for one in document["slices"] if one["by"] == by]
            for by in ("place", "age", "share")
        )


def test_any_part_may_be_missing(document: dict[str, Any]) -> None:
    for name in document:
        for how in ("absent", "null", "empty"):
            less = copy.deepcopy(document)
            if how == "absent":
                del less[name]
            else:
                less[name] = None if how == "null" else type(less[name])()
            page = page_of(less)
            assert "None" not in page.text, (name, how)
            assert "nan" not in page.text, (name, how)
    assert "What comes next?" in page_of({}).text


def test_a_doubt_stands_at_the_top_and_names_are_text(document: dict[str, Any]) -> None:
    hostile = copy.deepcopy(document)
    hostile["protocol"] |= {"doubt": "another <b>split</b>", "dataset": "<script>alert(1)</script>"}
    hostile["skipped"]["<img src=x>"] = "why"
    page = page_of(hostile)
    assert "another <b>split</b>" in page.text[: page.text.index("What comes next")]
    assert not [tag for tag, _ in page.tags if tag in ("b", "img") and tag == "img"]
    assert len(page.scripts) == len(page.charts) + 2
