"""The metrics: what a worker counts against plain Python, then what a scrape of a whole server shows."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from lhydra.domain import STAGES
from lhydra.errors import ConfigError, LhydraError, UserStoreError
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.config import ServeSettings
from lhydra_server.metrics import layout as m
from lhydra_server.metrics.counts import Counts
from lhydra_server.metrics.totals import RECENT, Block, Totals
from lhydra_server.metrics.worker import Metrics, NoMetrics
from tests.fake_serve import write_bundle
from tests.harness import examples, free_port, until
from tests.test_server import Gate, N, fails, gone, play, request, serve
from tests.test_supervisor import B1, B2, BAD, ROOT, Server, fake, open_stub, publish, refused, running

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    """Every sample of an exposition by name and labels."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def value(found: Samples, name: str, **labels: str) -> float:
    """One sample; 0 of a counter that has not happened."""
    return found.get((name, frozenset(labels.items())), 0.0)


def total(found: Samples, name: str) -> float:
    return sum(number for (its_name, _), number in found.items() if its_name == name)


def shown(totals: Totals) -> Samples:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(totals)
    return samples(generate_latest(registry).decode())


def opened(block: Block) -> Metrics:
    """The worker's side of a block, in this process."""
    metrics = Metrics.open(os.dup(block.descriptor))
    block.handed_over()
    return metrics


# -- what a worker counts ---------------------------------------------------------------------------------

times_us = st.one_of(
    st.integers(0, 3_000_000),
    st.sampled_from(m.LATENCY_US),
    st.sampled_from(m.LATENCY_US).map(lambda bound: bound + 1),
)
calls = st.fixed_dictionaries(
    {
        "method": st.sampled_from((*m.METHODS, "NoSuchMethod")),
        "code": st.sampled_from(("OK", "INTERNAL", "NO_SUCH_CODE")),
        "took_us": times_us,
        "stage_us": st.dictionaries(st.sampled_from((*STAGES, "no such stage")), times_us),
        "tier": st.sampled_from(("", *m.TIERS, "no such tier")),
        "degraded": st.lists(st.sampled_from((*m.DEGRADED, "no such reason")), max_size=2),
        "short": st.booleans(),
    }
)
events = st.one_of(
    st.tuples(st.just("call"), calls),
    st.tuples(st.just("batch"), st.integers(1, 100)),
    st.tuples(st.just("refused"), st.sampled_from((*m.REFUSED, "no such reason"))),
    st.tuples(st.just("plays"), st.integers(0, 1000)),
    st.tuples(st.sampled_from(("exact_fallback", "user_store_error", "worker dies")), st.none()),
)


def known(word: str, words: tuple[str, ...]) -> str:
    return word if word in words else "other"


@settings(max_examples=examples(20), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), events), max_size=40))
def test_a_scrape_is_the_sum_of_what_all_workers_counted_dead_or_alive(happened: list[tuple[int, Any]]) -> None:
    totals = Totals(Counts())
    blocks = [totals.block(f"b{i}") for i in range(3)]
    workers = [opened(block) for block in blocks]
    seconds: dict[tuple[str, str], list[int]] = {}  # (metric, label value) -> what was observed
    batches: list[int] = []
    count: Counter[tuple[str, frozenset[tuple[str, str]]]] = Counter()

    def counted(name: str, by: int = 1, **labels: str) -> None:
        count[name, frozenset(labels.items())] += by

    for i, (kind, what) in happened:
        if kind == "worker dies":
            blocks[i].end()
            blocks[i] = totals.block(f"b{i}")
            workers[i] = opened(blocks[i])
        elif kind == "call":
            workers[i].record(**what)
            method, bundle = known(what["method"], m.METHODS), f"b{i}"
            if (what["method"], what["code"]) in m.FAMILIES["lhydra_requests_total"].places:
                counted("lhydra_requests_total", method=method, code=what["code"])
            else:
                counted("lhydra_requests_total", method="other", code="other")
            seconds.setdefault(("request", method), []).append(what["took_us"])
            for stage, took_us in what["stage_us"].items():
                seconds.setdefault(("stage", known(stage, STAGES)), []).append(took_us)
            if what["tier"]:
                counted("lhydra_answers_total", tier=known(what["tier"], m.TIERS), bundle=bundle)
            for reason in what["degraded"]:
                counted("lhydra_degraded_total", reason=known(reason, m.DEGRADED))
            counted("lhydra_short_answers_total", int(what["short"]))
        elif kind == "batch":
            workers[i].batch(what)
            batches.append(what)
        elif kind == "refused":
            workers[i].refused(what)
            counted("lhydra_refused_total", reason=known(what, m.REFUSED))
        elif kind == "plays":
            workers[i].plays(what)
            counted("lhydra_plays_recorded_total", what)
        else:
            getattr(workers[i], kind)()
            name = {"exact_fallback": "lhydra_exact_fallbacks_total"}.get(kind, "lhydra_user_store_errors_total")
            counted(name)

    found = shown(totals)
    for (name, labels), number in count.items():
        assert value(found, name, **dict(labels)) == number
    counters = {key for key in found if key[0] in {name for name, _ in count}}
    assert all(found[key] == count[key] for key in counters)  # and nothing else was counted
    for metric, label, words in (
        ("request", "method", (*m.METHODS, "other")),
        ("stage", "stage", (*STAGES, "other")),
    ):
        for word in words:
            assert_histogram(found, f"lhydra_{metric}_seconds", {label: word}, seconds.get((metric, word), []), 1e6)
    assert_histogram(found, "lhydra_batch_size", {}, batches, 1)


def assert_histogram(found: Samples, name: str, labels: dict[str, str], observed: list[int], per: float) -> None:
    """Every bucket holds what is not above its bound; count and sum are those of all."""
    bounds = sorted(
        float(dict(its)["le"]) for its_name, its in found if its_name == name + "_bucket" and labels.items() <= its
    )
    assert bounds[-1] == float("inf")
    assert [bound * per for bound in bounds[:-1]] == pytest.approx(m.BATCH if per == 1 else m.LATENCY_US)
    for (its_name, its), number in found.items():
        if its_name == name + "_bucket" and labels.items() <= its:
            bound = round(float(dict(its)["le"]) * per) if dict(its)["le"] != "+Inf" else float("inf")
            assert number == sum(one <= bound for one in observed)
    assert value(found, name + "_count", **labels) == len(observed)
    assert value(found, name + "_sum", **labels) == pytest.approx(sum(observed) / per)


def test_gauges_are_those_of_the_living() -> None:
    totals = Totals(Counts())
    blocks = [totals.block("b") for _ in range(3)]
    for n, block in enumerate(blocks, 1):
        worker = opened(block)
        worker.queue(n)
        worker.in_flight(10 * n)
    assert value(shown(totals), "lhydra_queue_depth") == 6
    blocks[1].end()
    found = shown(totals)
    assert (value(found, "lhydra_queue_depth"), value(found, "lhydra_in_flight")) == (4, 40)


def test_gauges_of_what_all_workers_see_are_not_added_up() -> None:
    totals = Totals(Counts())
    blocks = [totals.block("b") for _ in range(3)]
    names = [f"lhydra_event_log_{name}" for name in ("entries", "bytes", "oldest_seconds", "free_bytes")]
    assert [value(shown(totals), name) for name in names] == [0] * 4
    for n, block in enumerate(blocks, 1):
        opened(block).event_log(10 * n, 20 * n, 30 * n, 40 * n)
    assert [value(shown(totals), name) for name in names] == [30, 60, 90, 120]
    blocks[2].end()
    assert [value(shown(totals), name) for name in names] == [20, 40, 60, 80]


def test_no_count_is_lost_between_threads() -> None:
    totals = Totals(Counts())
    worker = opened(totals.block("b"))

    def count() -> None:
        for _ in range(2_000):
            worker.record("Recommend", "OK", 500, dict.fromkeys(STAGES, 30), "history", ("user_store",), True)
            worker.batch(2)
            worker.plays(3)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    found = shown(totals)
    assert value(found, "lhydra_requests_total", method="Recommend", code="OK") == 8_000
    assert value(found, "lhydra_request_seconds_sum", method="Recommend") == pytest.approx(8_000 * 500e-6)
    assert all(value(found, "lhydra_stage_seconds_count", stage=stage) == 8_000 for stage in STAGES)
    assert value(found, "lhydra_batch_size_sum") == 16_000
    assert value(found, "lhydra_plays_recorded_total") == 24_000


def test_bundles_have_labels_of_their_own_for_a_while_and_no_answer_is_forgotten() -> None:
    totals = Totals(Counts())
    for i in range(30):
        block = totals.block(f"b{i % 20}")  # the last ten have been served before
        worker = opened(block)
        for _ in range(i):
            worker.record("Recommend", "OK", 1, {}, "popular")
        alive = shown(totals)
        block.end()
        dead = shown(totals)
        for found in (alive, dead):
            assert total(found, "lhydra_answers_total") == sum(range(i + 1))
            bundles = {dict(labels)["bundle"] for name, labels in found if name == "lhydra_answers_total"}
            assert len(bundles) <= RECENT + 2  # those, `older` and the living one
            assert i == 0 or f"b{i % 20}" in bundles


def test_the_names_are_those_of_the_api() -> None:
    assert tuple(pb.DESCRIPTOR.services_by_name["Recommender"].methods_by_name) == m.METHODS
    assert tuple(code.name for code in grpc.StatusCode) == m.CODES


def test_places_do_not_overlap() -> None:
    taken = [
        place + i for family in m.FAMILIES.values() for place in family.places.values() for i in range(family.width)
    ]
    assert sorted(taken) == list(range(1, len(taken) + 1))


def test_a_block_of_another_layout_is_refused() -> None:
    block = Totals(Counts()).block("b")
    block.cells[0] += 1
    with pytest.raises(LhydraError, match="found a supervisor of another version"):
        opened(block)
    read, write = os.pipe()
    os.close(write)
    with pytest.raises((LhydraError, OSError)):
        Metrics.open(read)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(read)  # closed already


def test_counting_nowhere_has_the_same_interface() -> None:
    nowhere = Metrics.open(-1)
    assert isinstance(nowhere, NoMetrics)
    nowhere.record("Recommend", "OK", 1, {"embed": 1}, "personal", ("user_store",), True)
    nowhere.batch(1)
    nowhere.queue(1)
    nowhere.in_flight(1)
    nowhere.refused("overload")
    nowhere.plays(1)
    nowhere.exact_fallback()
    nowhere.user_store_error()


# -- what a server shows ----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tmp_path / "store"
    write_bundle(store, B1, n=3)
    write_bundle(store, B2, n=5)
    write_bundle(store, BAD, n=0, error="bad: index.faiss: found 3 bytes, expected 4")
    publish(store, B1)
    return store


def counting(store: Path, **what: Any) -> list[str | Path]:
    return [ROOT / "tests" / "fake_counting.py", store, json.dumps({"port": 0, "workers": 2} | what)]


class Scraped:
    """A server with metrics, scraped again and again: on the way no counter may go back."""

    def __init__(self, server: Server, port: int) -> None:
        self.server, self.url = server, f"http://127.0.0.1:{port}/metrics"
        self._last: Samples = {}

    def __call__(self) -> Samples:
        with urllib.request.urlopen(self.url, timeout=30) as reply:
            found = samples(reply.read().decode())
        for key, before in self._last.items():
            if key[0].endswith(("_total", "_bucket", "_count", "_sum")):
                assert found[key] >= before, key
        self._last = found
        return found


@pytest.fixture
def scrape(store: Path) -> Iterator[Scraped]:
    port = free_port()
    with running(counting(store, metrics_port=port), store.parent / "log") as server:
        assert server.first_line.startswith(f"serving bundle {B1} on 127.0.0.1:")
        assert server.process.stdout is not None
        assert server.process.stdout.readline() == f"metrics on http://127.0.0.1:{port}/metrics\n"
        yield Scraped(server, port)


def test_a_killed_worker_takes_its_gauges_and_leaves_its_counters(scrape: Scraped) -> None:
    found = until_shown(scrape, lhydra_workers=2)
    assert value(found, "lhydra_requests_total", method="Recommend", code="OK") == 6
    assert value(found, "lhydra_answers_total", tier="personal", bundle=B1) == 6
    assert (value(found, "lhydra_queue_depth"), value(found, "lhydra_in_flight")) == (4, 6)
    assert value(found, "lhydra_bundle_info", bundle_id=B1, model_id="m-1") == 1
    assert value(found, "lhydra_bundle_age_seconds") > 0
    for answered in (9, 12):  # the two left or replaced, and every one that died
        os.kill(scrape.server.workers()[0], signal.SIGKILL)
        found = until_shown(scrape, lhydra_request_seconds_count=answered, lhydra_workers=2, lhydra_queue_depth=4)
        assert value(found, "lhydra_requests_total", method="Recommend", code="OK") == answered
        assert value(found, "lhydra_worker_restarts_total") == answered / 3 - 2
        assert value(found, "lhydra_in_flight") == 6


def until_shown(scrape: Scraped, **wanted: float) -> Samples:
    """The first scrape with these totals over all labels."""

    def look() -> Samples | None:
        found = scrape()
        return found if all(total(found, name) == number for name, number in wanted.items()) else None

    found: Samples = until(look)
    return found


def test_a_swap_keeps_what_the_old_workers_counted(scrape: Scraped, store: Path) -> None:
    publish(store, BAD)
    until(lambda: value(scrape(), "lhydra_swap_failures_total"))
    found = scrape()
    assert value(found, "lhydra_bundle_info", bundle_id=B1, model_id="m-1") == 1
    publish(store, B2)
    until(lambda: value(scrape(), "lhydra_bundle_info", bundle_id=B2, model_id="m-1"))
    found = until_shown(scrape, lhydra_queue_depth=4, lhydra_workers=2)  # the old ones are gone
    assert value(found, "lhydra_answers_total", tier="personal", bundle=B1) == 6
    assert value(found, "lhydra_answers_total", tier="personal", bundle=B2) == 10
    assert value(found, "lhydra_requests_total", method="Recommend", code="OK") == 16
    assert [dict(labels)["bundle_id"] for name, labels in found if name == "lhydra_bundle_info"] == [B2]
    assert not [key for key in found if BAD in dict(key[1]).values()]


def test_both_formats_of_prometheus_are_spoken(scrape: Scraped) -> None:
    request = urllib.request.Request(scrape.url, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        assert reply.headers["Content-Type"].startswith("application/openmetrics-text")
        families = list(openmetrics.text_string_to_metric_families(reply.read().decode()))  # type: ignore[no-untyped-call]
    names = {family.name + "_total" * (family.type == "counter") for family in families}
    assert names >= set(m.FAMILIES)
    assert all(family.documentation and family.name.startswith("lhydra_") for family in families)


def test_a_taken_metrics_port_is_one_line_before_any_worker(store: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        line = f"metrics address 127.0.0.1:{port}: found the port in use, expected a free --metrics-port"
        assert refused(counting(store, metrics_port=port)) == line
    port = free_port()
    line = f"metrics address 127.0.0.1:{port}: found the port in use, expected a free --metrics-port"
    assert refused(counting(store, port=port, metrics_port=port)) == line
    assert not list(store.glob("worker-*"))


def test_without_a_metrics_port_nothing_is_counted_or_imported(store: Path) -> None:
    assert ServeSettings().metrics_port == 0
    with running(counting(store), store.parent / "log") as server:
        assert len(server.workers()) == 2
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    told = [json.loads(path.read_text()) for path in store.glob("worker-*")]
    assert [worker["metrics"] for worker in told] == [-1, -1]
    assert "lhydra-metrics" not in maps
    code = "import sys, lhydra_server.supervisor, lhydra_server.worker; print('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"False\n"


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ({"metrics_port": 65_536}, "ServeSettings.metrics_port: found 65536, expected 0 to 65535"),
        ({"log_sample": 1.5}, "ServeSettings.log_sample: found 1.5, expected 0 to 1"),
        ({"log_sample": -0.1}, "ServeSettings.log_sample: found -0.1, expected 0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused(what: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        ServeSettings(**what)


def test_workers_are_told_the_share_to_log(store: Path) -> None:
    with running(counting(store, log_sample=0.25), store.parent / "log") as server:
        server.workers()
    assert {json.loads(path.read_text())["log_sample"] for path in store.glob("worker-*")} == {0.25}


# -- what calls count --------------------------------------------------------------------------------------


def test_every_call_counts_once_as_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(tmp_path, max_in_flight=3) as server:
        for user in ("ann", "bob"):
            for k in (1, 2, 3):
                server.stub.Recommend(request(user, k=k))
        everything = [f"t{i:03}" for i in range(N)]
        server.stub.Recommend(request(k=3, exclude_track_ids=everything[2:]))
        server.stub.Recommend(request(k=3, history=pb.History(entries=[pb.HistoryEntry(track_id="t1")])))
        plays = pb.RecordPlaysRequest(plays=[play("e0", "t007"), play("e1", "t007"), play("e0", "t007")])
        for _ in range(2):
            server.stub.RecordPlays(plays)
        server.stub.Recommend(request())
        server.stub.GetStatus(pb.GetStatusRequest())
        for bad in (request(k=0), request(""), request(explain=True)):
            fails(lambda: server.stub.Recommend(bad))  # noqa: B023

        def lost(what: object, deadline_s: float) -> Any:
            raise UserStoreError("gone")

        with monkeypatch.context() as broken:
            broken.setattr(server.users, "get", lost)
            broken.setattr(server.users, "record", lost)
            server.stub.Recommend(request())
            fails(lambda: server.stub.RecordPlays(plays))

        gate = Gate(server)
        first, second, third = gate.holds(*(request(k=k) for k in (1, 2, 3)))
        for _ in range(4):
            fails(lambda: server.stub.Recommend(request()))
        assert value(shown(server.totals), "lhydra_in_flight") == 3
        third.cancel()
        until(lambda: gone(server.waiting[1].request[1]))
        gate.open.set()
        first.result(), second.result()
        until(lambda: server.in_flight == 0)
        found = shown(server.totals)
        lines = server.lines()

    counted = {
        (labels["method"], labels["code"]): number
        for labels, number in labelled(found, "lhydra_requests_total")
        if number
    }
    assert counted == {
        ("Recommend", "OK"): 12,
        ("Recommend", "INVALID_ARGUMENT"): 2,
        ("Recommend", "UNIMPLEMENTED"): 1,
        ("Recommend", "DEADLINE_EXCEEDED"): 1,
        ("RecordPlays", "OK"): 2,
        ("RecordPlays", "UNAVAILABLE"): 1,
        ("GetStatus", "OK"): 1,
        ("other", "other"): 4,  # refused before anybody looks at what they are
    }
    assert sum(counted.values()) == len(lines) == total(found, "lhydra_request_seconds_count")
    assert {labels["tier"]: number for labels, number in labelled(found, "lhydra_answers_total") if number} == {
        "popular": 6 + 1 + 1,
        "history": 1,
        "personal": 1 + 2,
    }
    assert {labels["reason"]: number for labels, number in labelled(found, "lhydra_refused_total") if number} == {
        "overload": 4,
        "deadline": 1,
    }
    assert value(found, "lhydra_degraded_total", reason="user_store") == 1
    assert value(found, "lhydra_user_store_errors_total") == 2
    assert value(found, "lhydra_short_answers_total") == 1
    assert value(found, "lhydra_plays_recorded_total") == 2
    assert (value(found, "lhydra_in_flight"), value(found, "lhydra_queue_depth")) == (0, 0)
    assert value(found, "lhydra_batch_size_count") == 10 + 2  # all alone but the last two, of which one had left
    assert value(found, "lhydra_batch_size_sum") == 10 + 1 + 2
    assert value(found, "lhydra_batch_size_bucket", le="1.0") == 11
    assert all(value(found, "lhydra_stage_seconds_count", stage=stage) == 12 for stage in STAGES if stage != "lookup")
    assert value(found, "lhydra_stage_seconds_count", stage="lookup") == 13  # and the one that left after it


def labelled(found: Samples, name: str) -> list[tuple[dict[str, str], float]]:
    return [(dict(labels), number) for (its_name, labels), number in found.items() if its_name == name]


def test_calls_of_a_real_server_are_counted(store: Path) -> None:
    port = free_port()
    with running(fake(store, metrics_port=port, log_sample=0.0), store.parent / "log") as server:
        scrape = Scraped(server, port)
        server.workers()
        with open_stub(server.address) as stub:
            for _ in range(20):
                stub.Recommend(pb.RecommendRequest(user_id="ann", k=2))
            stub.Recommend(pb.RecommendRequest(user_id="ann", k=500))  # there are three tracks
            with pytest.raises(grpc.RpcError):
                stub.Recommend(pb.RecommendRequest(user_id="ann", k=0))
            sent = pb.Play(event_id="e-1", user_id="ann", track_id="t001", timestamp_s=1_600_000_000)
            for _ in range(2):
                stub.RecordPlays(pb.RecordPlaysRequest(plays=[sent]))
        found = until_shown(scrape, lhydra_request_seconds_count=24)
        assert value(found, "lhydra_requests_total", method="Recommend", code="OK") == 21
        assert value(found, "lhydra_requests_total", method="Recommend", code="INVALID_ARGUMENT") == 1
        assert value(found, "lhydra_requests_total", method="RecordPlays", code="OK") == 2
        assert total(found, "lhydra_answers_total") == 21
        assert value(found, "lhydra_short_answers_total") == 1
        assert value(found, "lhydra_plays_recorded_total") == 1
        assert all(value(found, "lhydra_stage_seconds_count", stage=stage) == 21 for stage in STAGES)
        assert value(found, "lhydra_bundle_info", bundle_id=B1, model_id="m-1") == 1
        until(lambda: any("took_us" in line for line in server.lines()))  # what is killed writes no more
        os.kill(server.workers()[0], signal.SIGKILL)
        until(lambda: value(scrape(), "lhydra_worker_restarts_total") == 1)
        assert total(scrape(), "lhydra_request_seconds_count") == 24
        logged = [line["code"] for line in server.whole_log() if "took_us" in line]
        assert logged == ["INVALID_ARGUMENT"]  # what failed; of what succeeded, none


def test_a_search_done_again_is_not_said_to_be_exact() -> None:
    """`Index.search_eligible` searches an inverted file wider; only other indexes fall back to the exact scan."""
    name = "lhydra_exact_fallbacks_total"
    page = (ROOT / "docs" / "operations.md").read_text()
    (row,) = (line for line in page.splitlines() if f"`{name}`" in line)
    assert m.FAMILIES[name].text.lower().rstrip(".") == row.split("|")[-2].strip()
    assert "wider or exactly" in m.FAMILIES[name].text
