"""deploy/prometheus as it ships, under Debian's promtool, and a Prometheus that watches a server that goes wrong."""

import json
import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fake_serve import write_bundle
from tests.harness import free_port, until
from tests.test_supervisor import B1, BAD, ROOT, Server, fake, publish, running

PROMETHEUS = ROOT / "deploy" / "prometheus"
for tool in ("promtool", "prometheus"):
    if not shutil.which(tool):
        pytest.skip(f"E2E TOOLS ABSENT: {tool} (Debian: apt-get install prometheus)", allow_module_level=True)


def promtool(*argv: str | Path) -> str:
    ended = subprocess.run(["promtool", *argv], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_prometheus_takes_the_files() -> None:
    n_rules = (PROMETHEUS / "alerts.yaml").read_text().count("- alert: ")
    assert f"SUCCESS: {n_rules} rules found" in promtool("check", "rules", "alerts.yaml")
    assert "SUCCESS" in promtool("check", "config", "prometheus.yaml")


def test_each_alert_fires_when_it_should_and_not_else() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yaml")


def test_prometheus_takes_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    panels = json.loads((ROOT / "deploy" / "grafana" / "lhydra.json").read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    rules = [
        {"record": f"panel:{i}", "expr": expression.replace("$__rate_interval", "1m")}
        for i, expression in enumerate(expressions)
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", tmp_path / "rules.yaml")


@contextmanager
def watching(folder: Path, target: str) -> Iterator[str]:
    """A Prometheus with the configuration that ships, at short intervals; yields its address."""
    for name in ("alerts.yaml", "prometheus.yaml"):
        shutil.copy(PROMETHEUS / name, folder)
    config = yaml.safe_load((folder / "prometheus.yaml").read_text())
    config["global"] |= {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    argv = ["prometheus", f"--config.file={folder / 'prometheus.yaml'}", f"--web.listen-address={address}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*argv, f"--storage.tsdb.path={folder / 'tsdb'}"], stdout=log, stderr=log)
    try:
        yield address
    finally:
        process.terminate()
        process.wait(60)


def asked(address: str, path: str) -> Any:
    try:
        with urllib.request.urlopen(f"http://{address}/api/v1/{path}", timeout=30) as reply:
            return json.load(reply)["data"]
    except OSError:  # it is starting
        return {}


def firing(address: str) -> dict[str, str]:
    """The alerts that fire, with their summaries."""
    found = asked(address, "alerts").get("alerts", ())
    return {one["labels"]["alertname"]: one["annotations"]["summary"] for one in found if one["state"] == "firing"}


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Server, Path, Callable[[], dict[str, str]], str]]:
    """A server, its store, the alerts that fire, and what Prometheus calls the server."""
    store = tmp_path / "store"
    write_bundle(store, B1, n=50)
    write_bundle(store, BAD, error="bad: index.faiss: found 3 bytes, expected 4")
    publish(store, B1)
    target = f"127.0.0.1:{free_port()}"
    with (
        running(fake(store, metrics_port=int(target.rpartition(":")[2])), tmp_path / "log") as server,
        watching(tmp_path, target) as address,
    ):
        scraped = "query?query=min_over_time(up[1m])%20and%20count_over_time(lhydra_workers[1m])%3E3"
        until(lambda: asked(address, scraped).get("result"))
        yield server, store, lambda: firing(address), target


Watched = tuple[Server, Path, Callable[[], dict[str, str]], str]


def test_a_bundle_that_cannot_be_served_rings(watched: Watched) -> None:
    server, store, alerts, target = watched
    assert "LhydraCannotMove" not in alerts()
    publish(store, BAD)
    rings = until(lambda: alerts().get("LhydraCannotMove"))
    assert rings == f"{target} cannot serve CURRENT and stays with the bundle before"
    assert server.status().bundle_id == B1


def test_workers_that_die_ring(watched: Watched) -> None:
    server, _, alerts, target = watched
    assert "LhydraWorkersDie" not in alerts()
    killed: set[int] = set()
    while len(killed) < 5:
        pid = until(lambda: next((pid for pid in server.children() if pid not in killed), None))
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    assert target in until(lambda: alerts().get("LhydraWorkersDie"))
