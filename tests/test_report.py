"""The report page: whole and partial documents, hostile texts, nothing from outside."""

import base64
import copy
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any, cast

import numpy as np
import pytest

from lhydra.errors import MissingExtra
from lhydra.evaluation.document import Document
from lhydra.evaluation.report import page as report


def render(document: Any) -> str:
    """The page of a document of which any part may be missing."""
    return report.render(cast(Document, document))


HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">'


def example() -> dict[str, Any]:
    """A complete evaluation document with made-up numbers, as the contract has it."""
    rng = np.random.default_rng(0)

    def around(mean: float, width: float = 0.004) -> dict[str, float]:
        low, high = mean - width * (0.8 + 0.4 * rng.random()), mean + width * (0.8 + 0.4 * rng.random())
        return {"mean": round(mean, 6), "low": round(low, 6), "high": round(high, 6)}

    ndcg = {"cascade": 0.1423, "retrieval": 0.1311, "head": 0.1419}
    ndcg |= {"popular": 0.0523, "itemknn": 0.1187, "ials": 0.1246, "ease": 0.1325}
    ranking = {}
    for name, value in ndcg.items():
        metrics = {}
        for k, more in ((10, 1.0), (20, 1.18)):
            metrics[f"recall@{k}"] = around(value * more * (1.1 if k == 10 else 1.5))
            metrics[f"ndcg@{k}"] = around(value * more)
            metrics[f"map@{k}"] = around(value * 0.6 * more)
            metrics[f"hr@{k}"] = around(min(0.9, value * 3.4 * more), 0.01)
            share = 0.02 if name == "popular" else 0.31 * more
            metrics[f"coverage@{k}"] = {"mean": share, "low": share, "high": share}
        ranking[name] = metrics | {"mrr": around(value * 1.7)}
    rivals = list(ndcg)[3:]
    paired: dict[str, Any] = {}
    for name in rivals:
        paired[name] = {}
        for metric, scale in (("ndcg@10", 1.0), ("recall@20", 1.9)):
            value = (ndcg["cascade"] - ndcg[name]) * scale
            paired[name][metric] = {"difference": value, "low": value - 0.0041, "high": value + 0.0044}
    depths = [10, 20, 50, 100, 200, 300, 500, 1000]
    overlap = 1 - 0.72 * np.exp(-np.array(depths) / 90)
    curve = [
        {"depth": d, "overlap": float(o), "ndcg": 0.1419 * (0.86 + 0.14 * float(o)), "ndcg_difference": -0.001}
        for d, o in zip(depths, overlap, strict=True)
    ]
    rate = np.linspace(0, 1, 60)
    groups = {
        "age group": ["under 18", "18–24", "25–34", "35–44", "45–54", "55–64", "65 and over", "unknown"],
        "gender": ["female", "male", "other"],
        "country": ["Chile", "Germany", "United States", "The Democratic Republic of the Congo", "Japan"],
        "activity": ["1–5 plays", "6–20 plays", "21–50 plays", "51–200 plays", "over 200 plays"],
        "genre": ["rock", "indie, downtempo", "hip hop", "electronic", "jazz", "classical", HOSTILE],
        "tier": ["personal", "segment"],
    }
    cohorts: list[dict[str, Any]] = []
    for by, names in groups.items():
        for name in names:
            n = int(rng.integers(20, 3000))
            width = 0.3 / np.sqrt(n)
            cohorts.append({"by": by, "name": name, "users": n, "ndcg@10": around(0.1 + 0.07 * rng.random(), width)})
            cohorts[-1]["recall@20"] = around(0.2 + 0.1 * rng.random(), width)

    def titles(n: int) -> list[str]:
        first = ["Blue", "Midnight", "Paper", "Golden", "Silent", "Electric", "Wandering", "Broken", "Distant"]
        last = ["Harbour", "Train", "Letters", "Morning", "Rooms", "Garden", "Radio", "Mirrors (Live at the Old Hall)"]
        by = ["Ada Stone", "The Quiet Ones", "Mira", "Orchestra of the Long Name", "Kilo"]
        return [f"{rng.choice(first)} {rng.choice(last)} — {rng.choice(by)}" for _ in range(n)]

    users: list[dict[str, Any]] = [
        {
            "user_id": f"user-{rng.integers(10**9):09d}",
            "ndcg@10": 0.0,
            "history": titles(5),
            "list": titles(10),
            "missed": titles(int(rng.integers(3, 7))),
        }
        for _ in range(10)
    ]
    users[0]["history"][0] = HOSTILE
    users[0]["user_id"] = "40bf699a7773a8f95e49b3429ebd16d6f6807438"
    bins = [("0", 400), ("1–5", 2100), ("6–20", 4300), ("21–100", 7800), ("101–500", 9200), ("over 500", 5100)]
    by_popularity: list[dict[str, Any]] = []
    for n, (name, targets) in enumerate(bins):
        hit = int(targets * (0.02 + 0.06 * n))
        lost = int((targets - hit) * (0.95 - 0.13 * n))
        part: dict[str, Any] = {"bin": f"{name} listeners", "targets": targets, "hit": hit, "lost_in_retrieval": lost}
        by_popularity.append(part | {"lost_in_rerank": targets - hit - lost})
    by_stage = {key: sum(row[key] for row in by_popularity) for key in by_popularity[0] if key != "bin"}
    groups_of = {"history": 0.071, "ids": 0.034, "genre and tags": 0.012, "audio": 0.006, "demographics": 0.0004}
    features = ["energy", "tempo", "valence", "year", "duration_ms", "age", "gender", "country", "loudness"]
    return {
        "format": 1,
        "protocol": {
            "dataset": "/data/listening-2024",
            "store": "/srv/store",
            "bundle_id": "20260301T101500-0a1b2c3d",
            "model_id": "20260301T093000-77aa88bb",
            "split": {"protocol": "temporal", "seed": 0, "valid": 0.1, "test": 0.1, "hash": "8c1f00aa"},
            "as_of": "test",
            "ks": [10, 20],
            "mrr_depth": 20,
            "users": "all",
            "seed": 0,
            "ranked": "the whole catalogue without what the user heard",
            "targets": "tracks of the test fold that the user had not heard",
            "negatives": "one uniformly random unheard track per test play, seed 0",
            "lhydra_version": "0.2.0",
            "hash": "0123456789abcdef",
        },
        "summary": [
            "cascade NDCG@10 0.1423 beats the best baseline ease 0.1325 by 0.0098 (95 % interval +0.0057 to +0.0142)",
            "baseline slow skipped: 57,000 tracks need 26 GB",
            "One track is in 41 % of all lists: <b>Golden Radio</b>",
            "leak: user column avg_energy: 0.98 correlated with …",
        ],
        "counts": {"users": 6040, "users_without_list": 0, "targets": 28900, "heard_before": 911, "catalogue": 57000},
        "ranking": ranking,
        "baselines": {
            "popular": {"chosen": {}, "tried": 1, "took_s": 0.1, "valid_ndcg@10": 0.05, "cached": False},
            "itemknn": {"chosen": {"neighbours": 200, "shrink": 10}, "tried": 6, "took_s": 8.2, "valid_ndcg@10": 0.11},
            "ials": {"chosen": {"factors": 128, "alpha": 4.0}, "tried": 9, "took_s": 92.4, "valid_ndcg@10": 0.12},
            "ease": {"chosen": {"lambda": 250}, "tried": 5, "took_s": 30.0, "valid_ndcg@10": 0.13, "cached": True},
            "slow": {"chosen": {}, "tried": 0, "took_s": None, "skipped": "57,000 tracks need 26 GB"},
        },
        "paired": paired,
        "cascade_loss": {"k": 10, "full": {"ndcg@10": 0.1419}, "curve": curve, "users": 500},
        "classification": {
            "pairs": 57800,
            "positives": 28900,
            "accuracy": 0.812,
            "precision": 0.83,
            "recall": 0.785,
            "f1": 0.807,
            "auc": 0.889,
            "pr_auc": 0.892,
            "log_loss": 0.427,
            "ece": 0.021,
            "negatives": "one uniformly random unheard track per test play, seed 0",
            "roc": [[float(x), float(x**0.25)] for x in rate],
            "pr": [[float(x), float(1 - 0.5 * x**2.4)] for x in rate],
            "confusion": [[24200, 4700], [6210, 22690]],
            "calibration": [
                {"low": n / 10, "high": (n + 1) / 10, "n": 400 * n, "predicted": 0.05 + n / 10, "observed": n / 9.5}
                for n in range(10)
            ],
        },
        "cohorts": cohorts,
        "slices": {
            "few_play_tracks": {"at_most": 5, "targets": 2500, "users": 1830, "recall@20": 0.041, "ndcg@10": 0.019},
            "new_tracks": {"at_most": 0, "targets": 400, "users": 350, "recall@20": 0.012, "ndcg@10": 0.005},
            "new_users": {"targets": 610, "users": 121, "recall@20": None, "ndcg@10": None},
            "cold_users": {"targets": 3100, "users": 1208, "recall@20": 0.171, "ndcg@10": 0.098},
        },
        "beyond_accuracy": {
            "coverage@10": 0.31,
            "popularity_lift": 1.42,
            "inter_user_overlap": 0.087,
            "intra_list_diversity": 0.61,
            "novelty": 7.93,
            "genre_calibration": 0.22,
            "alarms": ["One track is in 41 % of all lists: <b>Golden Radio</b>"],
        },
        "leaks": [
            {
                "check": "fold overlap",
                "verdict": "ok",
                "found": "no user has the same track in two folds",
                "figure": 0.0,
            },
            {"check": "timestamps", "verdict": "warning", "found": "3 plays before 1970, 0 after today", "figure": 3.0},
            {"check": "user column avg_energy", "verdict": "leak", "found": "0.98 correlated with …", "figure": 0.98},
        ],
        "mistakes": {
            "users": users,
            "tracks": [
                {"track_id": f"TR{n:06}", "title": title, "targets": 420 - 31 * n, "found": 3 * n, "listeners": 77 * n}
                for n, title in enumerate([HOSTILE, *titles(9)])
            ],
            "by_popularity": by_popularity,
            "by_stage": by_stage,
        },
        "importance": {
            "metric": "ndcg@10",
            "users": 300,
            "repeats": 3,
            "base": 0.1423,
            "groups": [
                {"group": name, "stage": stage, "drop": d * s, "low": d * s - 0.003, "high": d * s + 0.003}
                for stage, s in (("retrieval", 1.2), ("cascade", 1.0))
                for name, d in groups_of.items()
            ],
            "features": [
                {"feature": name, "stage": "cascade", "drop": d, "low": d - 0.001, "high": d + 0.0012}
                for name, d in zip(features, 0.008 * rng.random(9) ** 3, strict=True)
            ],
        },
        "training": [
            {
                "epoch": epoch,
                "temperature": 0.1,
                "retrieval_loss": 7.5 + 2 * 0.8**epoch,
                "head_loss": 0.35 + 0.3 * 0.7**epoch,
                "retrieval": {"ndcg@10": 0.13 - 0.08 * 0.7**epoch, "recall@20": 0.2},
                "cascade": {"ndcg@10": 0.142 - 0.09 * 0.7**epoch, "recall@20": 0.2},
                "took_s": 31.0,
            }
            for epoch in range(1, 13)
        ],
        "per_user": {"users": [], "stages": {}},
    }


class Page(HTMLParser):
    """What a browser would make of the page: tags with attributes, scripts, and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    @property
    def charts(self) -> list[dict[str, Any]]:
        kinds = [attrs.get("type") for tag, attrs in self.tags if tag == "script"]
        return [json.loads(s) for s, kind in zip(self.scripts, kinds, strict=True) if kind == "application/json"]

    @property
    def sections(self) -> list[str]:
        return [str(attrs["id"]) for tag, attrs in self.tags if tag == "section"]


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the 5 MB of plotly.js."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "var Plotly;")


SECTIONS = {
    "ranking": "ranking",
    "paired": "paired",
    "cascade_loss": "cascade",
    "cohorts": "cohorts",
    "beyond_accuracy": "beyond",
    "slices": "slices",
    "classification": "classification",
    "importance": "importance",
    "training": "training",
    "mistakes": "mistakes",
    "leaks": "data",
}


def test_the_page_holds_everything_and_needs_nothing() -> None:
    text = render(example())
    page = Page(text)
    assert page.sections == [*SECTIONS.values(), "protocol"]
    assert text.count("plotly.js v") == 1
    for tag, attrs in page.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base", "form")
        assert "src" not in attrs
        assert str(attrs.get("href", "#")).startswith("#")
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "http://" not in outside
    assert "https://" not in outside
    assert "url(" not in outside
    assert "@import" not in outside


def test_only_the_two_scripts_of_the_page_may_run() -> None:
    page = Page(render(example()))
    policy = next(str(a["content"]) for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    run = [text for text in page.scripts if not text.startswith("{")]
    assert len(run) == 2
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run]
    assert allowed["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]
    assert allowed["default-src"] == "'none'"


@pytest.mark.usefixtures("light")
def test_the_figures_that_matter_come_first() -> None:
    document = example()
    text = Page(render(document)).text
    top = text[: text.index("Ranking")]
    assert top.index(document["summary"][0][1:]) < top.index("EASE, best baseline") < top.index("Leaks: these")
    for shown in (
        "0.142",
        "0.133",
        "31.0%",
        "user column avg_energy: 0.98",
        "3 plays before 1970",
        "<b>Golden Radio</b>",
    ):
        assert top.count(shown) == 1 or shown[0] == "0"
    assert "fold overlap" not in top


@pytest.mark.usefixtures("light")
def test_nothing_to_report_is_said_quietly() -> None:
    document = example() | {"leaks": [{"check": "x", "verdict": "ok", "found": "fine", "figure": None}]}
    document["beyond_accuracy"]["alarms"] = []
    page = Page(render(document))
    notices = [attrs["class"] for tag, attrs in page.tags if str(attrs.get("class")).startswith("notice")]
    assert notices == ["notice ok"]
    assert "No leak in 1 check of" in page.text


@pytest.mark.usefixtures("light")
def test_charts_show_the_numbers_of_the_document() -> None:
    document = example()
    charts = Page(render(document)).charts
    ranking = charts[0]
    assert ranking["labels"][:4] == ["Lhydra", "retrieval alone", "head alone", "most popular"]
    assert [s["name"] for s in ranking["series"]] == ["k = 10", "k = 20"]
    means = [part["ndcg@20"]["mean"] for part in document["ranking"].values()]
    assert [point["mean"] for point in ranking["series"][1]["points"]] == means
    paired = next(chart for chart in charts if chart["labels"][0] == "over most popular")
    assert paired["reference"] == 0
    assert paired["series"][0]["points"][3]["mean"] == document["paired"]["ease"]["ndcg@10"]["difference"]
    lost = next(chart for chart in charts if chart["kind"] == "bars")
    stage = document["mistakes"]["by_stage"]
    assert [part["counts"][0] for part in lost["parts"]] == [
        stage["hit"],
        stage["lost_in_rerank"],
        stage["lost_in_retrieval"],
    ]
    assert sum(part["shares"][0] for part in lost["parts"]) == pytest.approx(1)


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("missing", [*SECTIONS, "protocol", "counts", "summary", "baselines", "per_user", "format"])
@pytest.mark.parametrize("how", ["absent", "null", "empty"])
def test_a_missing_part_leaves_a_readable_page(missing: str, how: str) -> None:
    document = example()
    if how == "absent":
        del document[missing]
    else:
        document[missing] = None if how == "null" else type(document[missing])()
    page = Page(render(document))
    expected = [section for key, section in SECTIONS.items() if key != missing] + ["protocol"]
    assert page.sections == expected
    assert "None" not in page.text
    assert "nan" not in page.text


@pytest.mark.usefixtures("light")
def test_an_empty_document_is_a_page() -> None:
    page = Page(render({}))
    assert page.sections == []
    assert "How good are the recommendations?" in page.text


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything inside value; of a list only to what is in its first entry."""
    inside = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, one in inside:
        yield (*path, key)
        yield from paths(one, (*path, key))


@pytest.mark.usefixtures("light")
def test_any_number_may_be_undefined() -> None:
    whole = example()
    whole["mistakes"]["users"] = whole["mistakes"]["users"][:1]
    for path in paths(whole):
        if path[:2] in (("classification", "roc"), ("classification", "pr"), ("classification", "confusion")):
            continue
        document = copy.deepcopy(whole)
        inside: Any = document
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = None
        assert "</footer>" in render(document)


def hostile(value: Any) -> Any:
    """The same document with every text, and every name that a data set decides, replaced."""
    if isinstance(value, dict):
        return {key: hostile(one) for key, one in value.items()}
    if isinstance(value, list):
        return [hostile(one) for one in value]
    return f"{HOSTILE}\u202e\x00</style>&lt;{{{{" if isinstance(value, str) else value


@pytest.mark.usefixtures("light")
def test_hostile_texts_stay_texts() -> None:
    document = hostile(example())
    clean = Page(render(example()))
    page = Page(render(document))
    allowed = {(tag, *attrs) for tag, attrs in clean.tags}
    assert {(tag, *attrs) for tag, attrs in page.tags} <= allowed | {("p", "class")}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert HOSTILE in page.text
    assert "\u202e" not in page.text
    for chart in page.charts:
        for label in chart.get("labels", ()):
            assert "<" not in label


def test_a_page_without_plotly_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(MissingExtra, match=r"lhydra\[eval\]"):
        render({})
