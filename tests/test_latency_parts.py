"""The arithmetic of the latency benchmark: the knee, verdicts, the kernel's accounts, h2load's words, mixed traffic."""

import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks import machine, processes
from benchmarks.latency import figures, h2load, traffic, verdict
from benchmarks.latency.knee import GROWTH, LOWEST_SHARE, MIN_GOODPUT, PRECISION, find_knee, sustained
from benchmarks.latency.own_server import start_web_server
from benchmarks.latency.peers.settings import PeerSettings
from benchmarks.latency.plot import write_plot
from benchmarks.latency.results import read_document
from benchmarks.latency.settings import RESULTS
from benchmarks.latency.summary import merged
from lhydra.errors import ConfigError, LhydraError, NotReady
from lhydra_protos.v1 import recommender_pb2 as pb

# ---- the knee


@given(st.floats(10, 1e5), st.floats(10, 1e5))
def test_the_knee_is_found_to_its_precision_from_any_start(capacity: float, start: float) -> None:
    assume(capacity > start * LOWEST_SHARE * GROWTH)
    asked: list[float] = []

    def sustains(rate: float) -> bool:
        asked.append(rate)
        return rate <= capacity

    knee = find_knee(sustains, start)
    assert capacity / (1 + PRECISION) <= knee <= capacity
    assert len(asked) < 2 * (3 + abs(np.log(capacity / start)) / np.log(GROWTH) + 5)
    assert max(asked) <= max(start, capacity * GROWTH)


def test_a_server_that_sustains_nothing_has_no_knee() -> None:
    assert find_knee(lambda rate: False, 100) == 0


@settings(max_examples=50)
@given(st.integers(0, 2**31))
def test_single_disturbances_do_not_move_the_knee(seed: int) -> None:
    """Every rate fails now and then for reasons of its own, but never twice in a row."""
    rng = np.random.default_rng(seed)
    disturbed = False

    def sustains(rate: float) -> bool:
        nonlocal disturbed
        disturbed = not disturbed and rng.random() < 0.3
        return rate <= 1000 and not disturbed

    assert 1000 / (1 + PRECISION) <= find_knee(sustains, 300) <= 1000


def run_of(requests: int, answered: int, p99: float | None) -> Any:
    return {"requests": requests, "answered": answered, "latency_ms": {"p99": p99}}


def test_sustained_means_answered_and_in_time() -> None:
    assert sustained(run_of(1000, 1000, 20.0), 20.0)
    assert sustained(run_of(1000, int(1000 * MIN_GOODPUT), 20.0), 20.0)
    assert not sustained(run_of(1000, int(1000 * MIN_GOODPUT) - 1, 1.0), 20.0)
    assert not sustained(run_of(1000, 1000, 20.1), 20.0)
    assert not sustained(run_of(1000, 0, None), 20.0)
    assert not sustained(run_of(0, 0, None), 20.0)


# ---- verdicts

repeats = st.lists(st.floats(0.1, 1e4), min_size=3, max_size=7)


@given(repeats, repeats, st.booleans())
def test_what_is_worse_one_way_is_better_the_other(a: list[float], b: list[float], higher: bool) -> None:
    mirror = {verdict.BETTER: verdict.WORSE, verdict.WORSE: verdict.BETTER, verdict.SAME: verdict.SAME}
    found = verdict.judge(a, b, higher_is_better=higher)
    assert verdict.judge(b, a, higher_is_better=higher).word == mirror[found.word]
    assert verdict.judge(a, b, higher_is_better=not higher).word == mirror[found.word]
    assert found.ratio == pytest.approx(np.median(b) / np.median(a))


@given(repeats)
def test_a_result_is_no_different_from_itself(a: list[float]) -> None:
    assert verdict.judge(a, a, higher_is_better=True).word == verdict.SAME


@given(repeats, repeats)
def test_repeats_that_overlap_are_no_difference(a: list[float], b: list[float]) -> None:
    assume(max(a) >= min(b) and max(b) >= min(a))
    assert verdict.judge(a, b, higher_is_better=True).word == verdict.SAME


def test_without_noise_the_floor_decides() -> None:
    beyond, within = 1 + verdict.MIN_DIFFERENCE * 1.1, 1 + verdict.MIN_DIFFERENCE * 0.9
    assert verdict.judge([2.0] * 3, [2.0 * beyond] * 3, higher_is_better=False).word == verdict.WORSE
    assert verdict.judge([2.0] * 3, [2.0 * beyond] * 3, higher_is_better=True).word == verdict.BETTER
    assert verdict.judge([2.0] * 3, [2.0 * within] * 3, higher_is_better=False).word == verdict.SAME


def test_few_repeats_say_nothing() -> None:
    assert verdict.judge([1.0] * 5, [9.0] * 2, higher_is_better=False).word == verdict.UNKNOWN
    assert verdict.judge([1.0], [9.0] * 5, higher_is_better=False).word == verdict.UNKNOWN


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.2])
def test_noise_seldom_looks_like_a_difference_and_a_difference_seldom_like_noise(noise: float) -> None:
    rng = np.random.default_rng(1)

    def worse(factor: float) -> float:
        found = [
            verdict.judge(
                (rng.lognormal(0, noise, 5)).tolist(),
                (factor * rng.lognormal(0, noise, 5)).tolist(),
                higher_is_better=False,
            ).word
            for _ in range(1000)
        ]
        return Counter(found)[verdict.WORSE] / len(found)

    assert worse(1.0) < 0.005  # of thirty figures, one false alarm in seven comparisons or fewer
    assert worse(float(np.exp(max(0.1, 6.5 * noise)))) > 0.95


def documents(**changed: Any) -> tuple[Any, Any]:
    def document() -> dict[str, Any]:
        return {
            "machine": {"cores": 2, "processor": "p", "memory_gib": 4.0, "system": "Linux"},
            "settings": {"k": 100, "workers": 2},
            "server": {"tracks": 9, "dim": 4},
            "spinning": {"free": True},
            "figures": {
                "a: p50 ms": {"values": [1.0, 1.0, 1.0], "median": 1.0, "better": "lower"},
                "a: per s": {"values": [5.0, 5.0, 5.0], "median": 5.0, "better": "higher"},
            },
        }

    now = document()
    for part, values in changed.items():
        now[part] |= values
    return document(), now


def test_a_comparison_names_what_makes_it_void() -> None:
    assert verdict.differences(*documents()) == []
    assert verdict.differences(*documents(machine={"cores": 4})) == ["NOT COMPARABLE: machine: cores was 2, is 4"]
    assert verdict.differences(*documents(settings={"k": 10})) == ["NOT COMPARABLE: settings: k was 100, is 10"]
    assert verdict.differences(*documents(server={"tracks": 8})) == ["NOT COMPARABLE: server: tracks was 9, is 8"]
    (line,) = verdict.differences(*documents(spinning={"free": False}))
    assert "not free during this run" in line


def test_a_comparison_judges_each_figure_in_its_own_direction() -> None:
    slow = {"values": [2.0, 2.0, 2.0], "median": 2.0}
    base, now = documents(figures={"a: p50 ms": {**slow, "better": "lower"}, "a: per s": {**slow, "better": "higher"}})
    now["figures"]["new"] = {**slow, "better": "lower"}
    found = verdict.compare(base["figures"], now["figures"])
    assert {name: one.word for name, one in found.items()} == dict.fromkeys(base["figures"], verdict.WORSE)
    text = verdict.report(found, base["figures"], now["figures"])
    assert "2.000" in text
    assert text.count("WORSE") == 2


@pytest.mark.parametrize("path", sorted(RESULTS.parent.glob("latency-*.json")), ids=lambda path: path.stem)
def test_results_of_earlier_runs_are_still_baselines(path: Path) -> None:
    found = read_document(path)
    verdicts = verdict.compare(found["figures"], found["figures"])
    assert verdicts.keys() == found["figures"].keys()
    assert {one.word for one in verdicts.values()} <= {verdict.SAME, verdict.UNKNOWN}
    assert all(line in figures.tables(found, found["settings"]["concurrency"]) for line in found["faults"])


# ---- the kernel's accounts


def fake_proc(root: Path, parents: dict[int, int], ticks: dict[int, tuple[int, int]]) -> Path:
    for pid, parent in parents.items():
        folder = root / str(pid)
        folder.mkdir(parents=True, exist_ok=True)
        user, system = ticks.get(pid, (0, 0))
        rest = ["S", str(parent), *["0"] * 9, str(user), str(system), *["0"] * 30]
        (folder / "stat").write_text(f"{pid} (a) b) (c) {' '.join(rest)}\n")
        rollup = f"00400000-7fff ---p 00000000 00:00 0 [rollup]\nRss: {4 * 1024 * pid} kB\nPss: {1024 * pid} kB\n"
        rollup += f"Private_Clean: {512 * pid} kB\nPrivate_Dirty: {256 * pid} kB\n"
        (folder / "smaps_rollup").write_text(rollup)
    (root / "self").mkdir(exist_ok=True)
    return root


def test_the_family_is_a_process_and_all_below_it(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, {1: 0, 10: 1, 11: 10, 12: 10, 13: 12, 20: 1, 21: 20}, {})
    assert processes.process_tree(10, proc) == [10, 11, 12, 13]
    assert processes.process_tree(21, proc) == [21]


def test_processor_seconds_are_both_modes_of_all_processes_since_then(tmp_path: Path) -> None:
    proc, hz = tmp_path, processes.TICKS
    before = processes.cpu_times([10, 11, 12], fake_proc(proc, {10: 1, 11: 10, 12: 10}, {10: (5, 5), 11: (hz, 0)}))
    (proc / "12" / "stat").unlink()  # gone: what it did is not known any more
    after = processes.cpu_times(
        [10, 11, 13], fake_proc(proc, {10: 1, 11: 10, 13: 10}, {10: (5, 5), 11: (2 * hz, hz), 13: (hz, hz)})
    )
    assert after.since(before) == pytest.approx(4.0)
    assert after.shares(before) == [2.0, 2.0]
    assert before.since(before) == 0


def test_memory_adds_up_over_processes_and_skips_the_gone(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, {1: 0, 2: 0}, {})
    assert processes.memory_mib([1, 2, 3], proc) == {"pss": 3.0, "private": 2.2, "rss": 12.0}


def test_this_process_is_accounted_for() -> None:
    before = processes.cpu_times([os.getpid()])
    while processes.cpu_times([os.getpid()]).since(before) < 0.05:
        sum(range(10_000))
    assert os.getpid() in processes.process_tree(os.getppid())
    assert processes.memory_mib([os.getpid()])["pss"] > 1


# ---- h2load

SAID = """finished in 1.00s, 4244.00 req/s, 1.08MB/s
requests: 4244 total, 4248 started, 4244 done, 4244 succeeded, 2 failed, 1 errored, 1 timeout
status codes: 4244 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 1.08MB (1134013) total, 12.73KB (13032) headers (space savings 96.21%), 862.06KB (882752) data
                     min         max         mean         sd        +/- sd
time for request:      255us      4.04ms       925us       321us    74.22%
"""


def test_what_h2load_says_is_read() -> None:
    logs = ["1795556537262340\t200\t1849\n1795556537262372\t200\t2615\n", "1795556537262388\t503\t31\n1\t-1\t7\n"]
    found = h2load.parsed([SAID, SAID], logs, 2.0, 0.5)
    assert found.latency_ms.tolist() == [1.849, 2.615]
    assert found.statuses == {"200": 2, "503": 1, "-1": 1}
    assert (found.answered, found.failed, found.data_bytes) == (2, 8, 2 * 882752)
    with pytest.raises(LhydraError, match="no answer"):
        h2load.parsed([SAID], ["1\t503\t31\n"], 2.0, 0.5)


@given(st.lists(st.binary(min_size=1, max_size=6), min_size=1, max_size=50))
def test_bodies_have_the_commonest_length(messages: list[bytes]) -> None:
    kept = h2load.same_length(messages)
    assert len({len(message) for message in kept}) == 1
    assert len(kept) == max(Counter(map(len, messages)).values())
    assert kept == [message for message in messages if len(message) == len(kept[0])]


def test_h2load_is_told_one_request_per_connection() -> None:
    target = h2load.Target("http://127.0.0.1:1/x", False, [b"a"])
    command = target.command(Path("b"), Path("l"), 3, 1.5)
    assert command[:7] == ["h2load", "--clients", "3", "--max-concurrent-streams", "1", "--duration", "1500ms"]
    assert "content-type: application/grpc" in command
    assert "te: trailers" in command
    web = h2load.Target("http://127.0.0.1:1/x", True, [b"a"]).command(Path("b"), Path("l"), 3, 1.5)
    assert "--h1" in web
    assert "te: trailers" not in web


# ---- traffic


def test_a_mixture_has_its_shares_and_every_request_what_its_kind_says() -> None:
    users, tracks = [f"u{i}" for i in range(50)], [f"t{i}" for i in range(200)]
    filters = [pb.Filter(genres=["rock"]), pb.Filter(min_year=1990)]
    made = traffic.mixed(5000, users, tracks, filters, k=7, seed=3)
    counts = Counter(request.kind for request in made)
    for kind, share in traffic.MIX.items():
        assert counts[kind] / 5000 == pytest.approx(share, abs=0.03)
    events, strangers = [], []
    for message, kind, method in made:
        if kind == "feedback":
            assert method == "/lhydra.v1.Recommender/RecordPlays"
            (play,) = pb.RecordPlaysRequest.FromString(message).plays
            assert play.user_id in users
            assert play.track_id in tracks
            events.append(play.event_id)
            continue
        asked = pb.RecommendRequest.FromString(message)
        assert asked.k == 7
        assert (asked.user_id in users) == (kind in ("warm", "filtered"))
        assert len(asked.history.entries) == (traffic.HISTORY_ENTRIES if kind == "cold, history" else 0)
        assert (asked.filter in filters) == (kind == "filtered")
        if kind.startswith("cold"):
            strangers.append(asked.user_id)
    assert len(set(events)) == len(events)
    assert len(set(strangers)) == len(strangers)
    again = traffic.mixed(10, users, tracks, filters, k=7, seed=3)
    assert not {message for message, kind, _ in again if kind == "feedback"} & {message for message, *_ in made}
    poor = {request.kind for request in traffic.mixed(500, users, [], [], k=7, seed=3)}
    assert poor == {"warm", "cold, nothing"}


def test_filters_are_spelled_on_the_command_line() -> None:
    wanted = pb.Filter(genres=["rock", "folk"], artists=["A B"], min_year=1980, max_year=1999, explicit=False)
    assert traffic.parse_filter("genre=rock,genre=folk,artist=A B,min_year=1980,max_year=1999,explicit=false") == wanted
    for wrong in ("genre", "tempo=3", "min_year=x", "explicit=maybe", ""):
        with pytest.raises(ConfigError, match="--filter"):
            traffic.parse_filter(wrong)


def test_filters_come_from_the_catalogue_with_their_shares(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    genre = [None, *rng.choice(["x", "y", "z"], 999, p=[0.7, 0.25, 0.05]).tolist()]
    artist = ["alone", *(f"a{i}" for i in rng.integers(0, 50, 999))]
    year = [float("nan"), *rng.integers(1960, 2020, 999).astype(float)]
    path = tmp_path / "catalog.parquet"
    columns = {"track_id": [f"t{i}" for i in range(1000)], "genre": genre, "artist": artist, "year": year}
    pq.write_table(pa.table(columns), path)
    found = traffic.filters_of(path)
    shares = [case.share for case in found]
    assert max(shares) > 0.9
    assert min(shares) == 0.001
    assert traffic.NamedFilter("artist alone", 0.001, pb.Filter(artists=["alone"])) in found
    for case in found:
        f = case.filter
        fits = [
            (not f.genres or g in f.genres)
            and (not f.artists or a in f.artists)
            and (not f.HasField("min_year") or y >= f.min_year)
            for g, a, y in zip(genre, artist, year, strict=True)
        ]
        assert case.share == pytest.approx(np.mean(fits)), case.name
    pq.write_table(pa.table({"track_id": ["a"]}), path)
    assert traffic.filters_of(path) == []


def test_cases_are_interleaved_and_named() -> None:
    filters = [traffic.NamedFilter("genre x", 0.5, pb.Filter(genres=["x"]))]
    made = traffic.cases(["u"], [f"t{i}" for i in range(2000)], filters, heavy="h", k=5, seed=1)
    assert Counter(request.kind for request in made) == dict.fromkeys(
        ["unfiltered", "genre x (50 %)", "1,000 excluded", "10,000 plays"], traffic.REQUESTS_PER_CASE
    )
    for message, kind, _ in made:
        asked = pb.RecommendRequest.FromString(message)
        assert (asked.user_id == "h") == (kind == "10,000 plays")
        assert len(asked.exclude_track_ids) == (1000 if kind == "1,000 excluded" else 0)
        assert (asked.filter == filters[0].filter) == kind.startswith("genre")
    assert [request.kind for request in made[: traffic.REQUESTS_PER_CASE]] != ["unfiltered"] * traffic.REQUESTS_PER_CASE


# ---- figures and pictures


def a_run(mode: str, name: str, repeat: int, **more: Any) -> Any:
    latency = {"p50": 1.0 + repeat, "p90": 1.5, "p99": 2.0 + repeat, "p99_9": 3.0, "mean": 1.0, "max": 4.0}
    return {
        "server": "lhydra", "mode": mode, "name": name, "repeat": repeat, "latency_ms": latency, "requests": 100,
        "answered": 99, "errors": {"INTERNAL": 1}, "throughput_per_s": 50.0 * (1 + repeat), "goodput_per_s": 48.0,
        "offered_per_s": 60.0, "sustained": True, "stages_us": {"rerank": {"p50": 5.0, "p99": 9.0}},
        "generator": {"cpu_share": 0.1, "cpu_us_per_request": 30.0, "late_share": None},
        "server_cost": {"cpu_us_per_request": 700.0, "pss_mib": 200.0, "private_mib": 90.0},
        "kinds": {"warm": {"latency_ms": latency}}, "refused_ms": latency, "goodput_of_peak": 0.9, **more,
    }  # fmt: skip


def all_runs() -> list[Any]:
    names = {"closed": "closed, 8", "ramp": "open, 60/s", "knee": "knee, 60/s", "soak": "soak, 36/s"}
    names |= {"overload": "overload, 120/s", "mixed": "mixed, 30/s"}
    runs = [a_run(mode, name, repeat) for repeat in (0, 1, 2) for mode, name in names.items()]
    return runs


def test_figures_hold_one_value_per_repeat_and_their_direction() -> None:
    found = figures.figures_of(all_runs())
    assert found["closed, 8: p50 ms"] == {
        "values": [1.0, 2.0, 3.0], "median": 2.0, "min": 1.0, "max": 3.0, "better": "lower",
    }  # fmt: skip
    better = {name for name, figure in found.items() if figure["better"] == "higher"}
    assert better == {"closed, 8: per s", "knee: per s", "overload: goodput of peak"}
    for name in ("overload: refused p99 ms", "mixed, warm: p99 ms", "soak, 36/s: p50 ms", "closed, 8: pss MiB"):
        assert len(found[name]["values"]) == 3


def test_repeats_merge_to_medians_and_sums() -> None:
    (whole,) = merged([run for run in all_runs() if run["mode"] == "closed"])
    assert whole["latency_ms"]["p50"] == 2.0
    assert whole["throughput_per_s"] == 100.0
    assert (whole["answered"], whole["errors"]) == (297, {"INTERNAL": 3})
    assert whole["server_cost"]["cpu_us_per_request"] == 700.0


def test_the_table_of_peers_gives_ratios_to_ours() -> None:
    ours = figures.figures_of(all_runs())
    theirs = {name: figure | {"median": 4 * figure["median"]} for name, figure in ours.items()}
    text = figures.peers_table({"lhydra": ours, "tuned": theirs, "dead": {}}, [8], "lhydra")
    assert text.splitlines()[1].count("1.00") >= 5
    assert text.splitlines()[2].count("4.00") >= 5
    assert "-" in text.splitlines()[3]


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    document: Any = {
        "figures": figures.figures_of(all_runs()), "peers": {"tuned": figures.figures_of(all_runs())},
        "settings": {"concurrency": [8], "k": 10, "repeats": 3}, "runs": all_runs(), "bundle_id": "b",
        "server": {"tracks": 10, "workers": 2}, "machine": {"cores": 2, "processor": "p"},
        "spinning": {"before": 2.0, "after": 1.9}, "measured": "today",
    }  # fmt: skip
    write_plot(tmp_path / "deep" / "page.html", document)
    page = (tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
    assert "closed loop: latency by callers" in page
    assert "mixed traffic by kind" in page
    assert '<script src="http' not in page
    write_plot(tmp_path / "bare.html", document | {"runs": [], "figures": {}, "peers": {}})


def test_two_spinners_are_compared_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    done = {1: [100, 120], 2: [165]}
    monkeypatch.setattr(machine, "_spin", lambda processes, seconds: done[processes].pop())
    assert machine.core_scaling() == 1.5
    monkeypatch.undo()
    assert machine._spin(2, 0.01) > 0
    assert "NOISE" not in machine.noise_line(1.9, 2.0)
    assert "THE CORES WERE NOT FREE" in machine.noise_line(1.9, 1.2)
    assert "THE CORES WERE NOT FREE" in machine.noise_line(1.2, 1.9)


# ---- peers

WEB = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"pid": %d}' % os.getpid())
    def log_message(self, *_): pass
port = int(sys.argv[sys.argv.index("--port") + 1])
server = http.server.HTTPServer(("127.0.0.1", port), Handler)
child = os.fork()
server.serve_forever()
"""


def test_a_peer_is_there_when_all_workers_answer_and_gone_afterwards() -> None:
    with start_web_server([sys.executable, "-c", WEB], 2, environment={}) as server:
        family = processes.process_tree(server.pid)
        assert len(family) == 2
    limit_s = time.monotonic() + 20
    while running := [pid for pid in family if _runs(pid)]:  # killed, but the kernel takes its time
        assert time.monotonic() < limit_s, running


def _runs(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_peer_that_ends_says_why() -> None:
    program = "import sys; sys.exit('no such model')"
    with (
        pytest.raises(NotReady, match=r"exit 1: no such model, expected 2 workers"),
        start_web_server([sys.executable, "-c", program], 2, environment={}),
    ):
        pass


def test_peers_are_told_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    told = PeerSettings(Path("store"), Path("model"), 300)
    for name, value in told.environment().items():
        monkeypatch.setenv(name, value)
    assert PeerSettings.read() == told
