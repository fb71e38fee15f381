"""deploy/prometheus and deploy/grafana speak of what a server exports, and each alert says what to do."""

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.fake_serve import write_bundle
from tests.harness import free_port
from tests.test_supervisor import B1, ROOT, TRACKS_OF, fake, publish, running

PROMETHEUS = ROOT / "deploy" / "prometheus"
OWN = {"up"}  # Prometheus writes it by itself


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    every = json.loads((ROOT / "deploy" / "grafana" / "lhydra.json").read_text())["panels"]
    return [panel for panel in every if panel["type"] != "row"]


def asked() -> Iterator[str]:
    """Every expression of the alerts and of the dashboard."""
    yield from (rule["expr"] for rule in alerts())
    yield from (target["expr"] for panel in panels() for target in panel["targets"])


def metrics(expression: str) -> set[str]:
    """The names of the metrics in an expression: words that neither a label nor a function is."""
    bare = re.sub(r"\{.*?\}|\[.*?\]|\b(by|on|group_left)\s*\(.*?\)", " ", expression, flags=re.DOTALL)
    return set(re.findall(r"\b[a-z]\w*\b(?!\s*\()", bare)) - {"or", "sum", "count", "on", "by"}


def labels(expression: str) -> Iterator[tuple[str, str, str]]:
    """Metric, label and pattern of every matcher."""
    for metric, inside in re.findall(r"(\w+)\{(.*?)\}", expression):
        for label, pattern in re.findall(r'(\w+)!?=~?"(.*?)"', inside):
            yield metric, label, pattern


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """The labels of every sample that a server shows, by name."""
    folder: Path = tmp_path_factory.mktemp("exported")
    write_bundle(folder / "store", B1, n=TRACKS_OF[B1])
    publish(folder / "store", B1)
    port = free_port()
    with running(fake(folder / "store", metrics_port=port), folder / "log") as server:
        assert server.status().bundle_id == B1  # an answer: counters with labels exist
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
            text = reply.read().decode()
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(text):
        found.setdefault(family.name + ("_total" if family.type == "counter" else ""), [])
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
    return found


def test_alerts_and_dashboard_ask_for_what_a_server_exports(exported: dict[str, list[dict[str, str]]]) -> None:
    assert metrics('sum by (le) (rate(a_b{c="d"}[5m])) > 2 * e or absent(f)') == {"a_b", "e", "f"}
    for expression in asked():
        names = metrics(expression)
        assert names, expression
        assert names - OWN <= set(exported), expression


def test_matchers_name_labels_and_values_that_there_are(exported: dict[str, list[dict[str, str]]]) -> None:
    from lhydra_server.metrics import layout

    values = {"code": {*layout.CODES, layout.OTHER}, "method": {*layout.METHODS}, "tier": {*layout.TIERS}}
    seen = set()
    for expression in asked():
        for metric, label, pattern in labels(expression):
            if label in ("instance", "job"):
                continue  # of the scrape
            known = values.get(label) or {sample[label] for sample in exported[metric]}
            assert set(pattern.split("|")) <= known, (metric, label, pattern)
            seen.add(label)
    assert seen >= {"code", "method", "tier", "reason"}


def test_every_metric_is_on_the_dashboard_or_has_an_alert(exported: dict[str, list[dict[str, str]]]) -> None:
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for expression in asked() for name in metrics(expression)}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported if name.startswith("lhydra_")}
    assert ours - shown == set()


def test_every_alert_says_how_urgent_it_is_and_has_a_row_of_what_to_do() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| `(Lhydra\w+)` \|", text.partition("### Alerts")[2], flags=re.MULTILINE)
    assert rows == [rule["alert"] for rule in alerts()]
    for rule in alerts():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]


def test_every_alert_is_shown_to_fire_and_not_to_fire() -> None:
    cases = yaml.safe_load((PROMETHEUS / "alerts_test.yaml").read_text())["tests"]
    tried = {(one["alertname"], bool(one["exp_alerts"])) for case in cases for one in case["alert_rule_test"]}
    assert tried == {(rule["alert"], fires) for rule in alerts() for fires in (True, False)}


def test_the_panels_of_the_dashboard_lie_beside_each_other() -> None:
    every = json.loads((ROOT / "deploy" / "grafana" / "lhydra.json").read_text())["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in every)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
