"""`lhydra query` against a real gRPC server: what people and machines see, exit codes, one-line errors."""

import argparse
import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lhydra_client import command, explained
from lhydra_client.results import explanation
from lhydra_client.table import clean, clip, score, table, width
from lhydra_protos.v1 import recommender_pb2 as pb
from tests.fake_recommender import STAGES, FakeRecommender, serving


@pytest.fixture
def fake() -> FakeRecommender:
    return FakeRecommender()


@pytest.fixture(autouse=True)
def address(fake: FakeRecommender, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serving(fake) as address:
        monkeypatch.setenv("LHYDRA_ADDRESS", address)
        yield address


def query(*argv: str) -> int:
    """Runs `lhydra query ARGV` in this process; returns the exit code."""
    parser = argparse.ArgumentParser(prog="lhydra query")
    command.configure(parser)
    return command.run(parser.parse_args(argv))


def test_recommend_prints_an_aligned_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert query("recommend", "ana") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "user ana · tier history · bundle b-1 · took 0.9 ms",
        "degraded: slow store",
        "#  title      artist    score  track id",
        "1  Blue Hour  Ana Sol  0.7500  t1",
        "2  雨の夜     東京[2J  0.5000  t2",
        "3                      0.2500  t3",
    ]
    assert err == ""


def test_recommend_sends_every_flag(fake: FakeRecommender) -> None:
    flags = "--k 3 --exclude t1,t2 --history t4,t5 --allow-repeats --profile age=31 zone=7e --profile country=a=b"
    assert query("recommend", "ana", *flags.split()) == 0
    expected = pb.RecommendRequest(user_id="ana", k=3, exclude_track_ids=["t1", "t2"])
    expected.repeat_policy = pb.REPEAT_POLICY_ALLOW
    for track in ("t4", "t5"):
        expected.history.entries.add(track_id=track, count=1)
    expected.profile.columns["age"].number = 31
    expected.profile.columns["zone"].text = "7e"
    expected.profile.columns["country"].text = "a=b"
    assert fake.seen == [expected]


def test_ids_with_commas_are_asked_for_one_by_one_in_their_order(fake: FakeRecommender) -> None:
    flags = ["--exclude", "t1,t2", "--exclude-id", "a,b", "--exclude-id=-,-", "--exclude", "t3"]
    flags += ["--history-id", "x, y", "--history", "t4,t5", "--history-id", ","]
    for _ in range(2):  # nothing is left over from the time before
        assert query("recommend", "ana", *flags) == 0
    expected = pb.RecommendRequest(user_id="ana", k=10, exclude_track_ids=["t1", "t2", "a,b", "-,-", "t3"])
    for track in ("x, y", "t4", "t5", ","):
        expected.history.entries.add(track_id=track, count=1)
    assert fake.seen == [expected] * 2


def test_recommend_sends_the_filter_of_the_flags(fake: FakeRecommender) -> None:
    flags = ["--genre", "Jazz", "--genre", "R&B, Soul", "--artist", "Ana Sol", "--artist", "東京"]
    flags += ["--min-year", "1990", "--max-year", "0", "--no-explicit", "--decay-repeats"]
    for _ in range(2):  # nothing is left over from the time before
        assert query("recommend", "ana", *flags) == 0
    wanted = pb.Filter(genres=["Jazz", "R&B, Soul"], artists=["Ana Sol", "東京"], min_year=1990, max_year=0)
    wanted.explicit = False
    expected = pb.RecommendRequest(user_id="ana", k=10, filter=wanted, repeat_policy=pb.REPEAT_POLICY_DECAY)
    assert fake.seen == [expected] * 2


def test_recommend_sends_session_clock_and_policy(fake: FakeRecommender) -> None:
    flags = ["--session", "t1,t2", "--session-id", "a,b", "--now-s", "17", "--repeat", "learnt"]
    for _ in range(2):
        assert query("recommend", "ana", *flags) == 0
    expected = pb.RecommendRequest(user_id="ana", k=10, now_s=17, repeat_policy=pb.REPEAT_POLICY_LEARNT)
    for track in ("t1", "t2", "a,b"):
        expected.session.entries.add(track_id=track)
    assert fake.seen == [expected] * 2


def test_tracks_and_search_ask_for_what_was_typed_and_print_a_table(
    fake: FakeRecommender, capsys: pytest.CaptureFixture[str]
) -> None:
    table = [
        "title      artist    share            track id",
        "Blue Hour  Ana Sol  0.2500           t1",
        "雨の夜     東京[2J  0.0000  removed  t2",
    ]
    assert query("tracks", "t1", "t9") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["2 tracks · of this bundle · bundle b-1", "unknown: t9"]
    assert [line.split() for line in said[2:]] == [line.split() for line in table]
    assert query("search", "blue", "hou", "--k", "2", "--genre", "Jazz") == 0
    assert capsys.readouterr().out.splitlines()[0] == "2 tracks · the best of 1,234 · bundle b-1"
    assert query("search", "blue", "--json") == 0
    assert json.loads(capsys.readouterr().out)["found"] == 1234
    assert fake.seen == [
        pb.GetTracksRequest(track_ids=["t1", "t9"]),
        pb.SearchTracksRequest(text="blue hou", k=2, filter=pb.Filter(genres=["Jazz"])),
        pb.SearchTracksRequest(text="blue", k=10),
    ]


def test_what_operators_ask_for_is_shown_to_people_and_machines(
    fake: FakeRecommender, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*argv: str) -> list[str]:
        assert query(*argv) == 0
        return capsys.readouterr().out.splitlines()

    lines = said("user", "ana", "--entries", "5")
    head = "user ana · 7 tracks in the history, 1,234 heard · 1 play in the session of now · bundle b-1"
    assert lines[:2] == [head, "country: Chile"]
    assert "2023-11-14 22:13  " in lines[4]
    assert lines[4].split()[-5:] == ["skipped", "(not", "in", "this", "bundle)"]
    assert lines[-1].split()[-2:] == ["3", "t1"]
    assert said("user", "nobody") == ["user nobody · nothing is stored"]
    assert json.loads("".join(said("user", "ana", "--json")))["profile"] == {"country": "Chile"}
    assert said("users", "a", "--k", "2") == ["ana", "an[2J", "… there may be more"]
    lines = said("bundles")
    assert lines[1].split() == ["b-2", "current", "2023-11-14", "22:13", "1,234", "0.0"]
    assert lines[3:] == ["b-2: refused: overlap", "b-1: no manifest"]
    gates = json.loads("".join(said("bundles", "--json")))["bundles"][0]["gates"]
    assert gates == [{"name": "overlap", "verdict": "refused", "found": 0.5, "limit": 0.7, "note": ""}]
    assert said("map", "--points", "2")[0] == "2 tracks by genre · pca · bundle b-1"
    found = json.loads("".join(said("map", "--column", "genre", "--json")))
    assert (found["x"], found["y"], found["labels"]) == ([1, 65535], [256, 0], ["Jazz", ""])
    assert fake.seen[0] == pb.GetUserRequest(user_id="ana", max_entries=5)
    assert fake.seen[3] == pb.SearchUsersRequest(prefix="a", k=2)
    assert fake.seen[6:] == [pb.GetMapRequest(max_points=2), pb.GetMapRequest(column="genre")]
    lines = said("status")
    assert lines[0] == "bundle b-1 · model m-1 · 3 tracks · 1 worker · up 0:00:01"
    assert ["embed", "1,234", "90", "180", "300"] in [line.split() for line in lines]
    assert [line.split() for line in lines[-2:]] == [["tiers", "lists"], ["personal", "7"]]
    assert json.loads("".join(said("status", "--json")))["tiers"] == {"personal": 7}


def test_an_unknown_policy_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert query("recommend", "ana", "--repeat", "never") == 1
    expected = "lhydra query: repeat_policy: found 'never', expected one of exclude, allow, decay, learnt\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("--genre Jazz", pb.Filter(genres=["Jazz"])),
        ("--artist Ana", pb.Filter(artists=["Ana"])),
        ("--min-year 0", pb.Filter(min_year=0)),
        ("--max-year 1999", pb.Filter(max_year=1999)),
        ("--explicit", pb.Filter(explicit=True)),
        ("--no-explicit", pb.Filter(explicit=False)),
    ],
)
def test_each_flag_of_the_filter_does_alone(fake: FakeRecommender, flags: str, wanted: pb.Filter) -> None:
    assert query("recommend", "ana", *flags.split()) == 0
    assert fake.seen == [pb.RecommendRequest(user_id="ana", k=10, filter=wanted)]


def test_without_flags_there_is_neither_filter_nor_policy(fake: FakeRecommender) -> None:
    assert query("recommend", "ana") == 0
    assert fake.seen == [pb.RecommendRequest(user_id="ana", k=10)]
    assert not fake.seen[0].HasField("filter")


def test_json_holds_the_whole_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert query("recommend", "ana", "--k", "3", "--json") == 0
    out = capsys.readouterr().out
    assert out.isascii()
    answer = json.loads(out)
    assert answer["tracks"][1] == {
        "track_id": "t2", "score": 0.5, "retrieval_score": -0.25, "title": "雨の夜", "artist": "東京\x1b[2J",
        "propensity": 0.0, "moved_by": [], "sources": [], "reasons": [],
    }  # fmt: skip
    assert (answer["user_id"], answer["k"], answer["tier"], answer["bundle_id"]) == ("ana", 3, "history", "b-1")
    assert (answer["degraded"], answer["stages_us"], answer["request_id"]) == (["slow store"], STAGES, "r-7")


def test_plays_records_each_track_once(fake: FakeRecommender, capsys: pytest.CaptureFixture[str]) -> None:
    assert query("plays", "ana", "t1", "t2") == 0
    plays = fake.seen[0].plays
    assert [(play.user_id, play.track_id, play.timestamp_s) for play in plays] == [("ana", "t1", 0), ("ana", "t2", 0)]
    assert len({play.event_id for play in plays}) == 2
    out = capsys.readouterr().out
    assert out == "recorded 2 plays of user ana, 1 of a track that the bundle being served does not hold\n"
    assert query("plays", "ana", "t1,t2") == 0
    assert capsys.readouterr().out.endswith("not hold (a comma is part of an id here: several are apart by spaces)\n")
    assert query("plays", "ana", "t1", "--json") == 0
    counts = {"recorded": 1, "duplicates": 0, "unknown_tracks": 1}
    assert json.loads(capsys.readouterr().out) == {"user_id": "ana"} | counts
    assert query("plays", "ana", "t1", "t2", "--request-id", "r-7") == 0
    assert [play.request_id for play in fake.seen[-1].plays] == ["r-7", "r-7"]


def test_status_similar_and_explain(fake: FakeRecommender, capsys: pytest.CaptureFixture[str]) -> None:
    assert query("status") == 0
    out = capsys.readouterr().out
    assert "max_k              1,000\n" in out
    assert "swap_error         b-2: vectors.npy: found 1, expected 2\n" in out
    assert not [name for name in ("rules_error", "rule_sets", "event_log") if name in out]  # which say nothing
    assert query("status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["max_k"] == 1000
    assert query("similar", "t8", "t9", "--k", "2") == 0
    assert capsys.readouterr().out.startswith("similar to t8, t9 · tier history · bundle b-1")
    assert query("explain", "ana", "t1") == 0
    assert capsys.readouterr().out.splitlines()[0] == "t1 for user ana: not among the 0 · tier personal · bundle b-1"
    assert fake.seen[2:] == [
        pb.SimilarTracksRequest(track_ids=["t8", "t9"], k=2),
        pb.ExplainRequest(user_id="ana", track_id="t1", request=pb.RecommendRequest(user_id="ana", k=10)),
    ]


def test_nothing_eligible_is_said(fake: FakeRecommender, capsys: pytest.CaptureFixture[str]) -> None:
    fake.reply = pb.RecommendResponse(tier=pb.TIER_POPULAR)
    assert query("recommend", "ana") == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["no track is eligible"]


@pytest.mark.parametrize(
    ("argv", "code", "details", "line"),
    [
        (["recommend", "ana", "--k", "0"], "INVALID_ARGUMENT", "k: found 0, expected 1 to 1000", "k: found 0, exp"),
        (["similar", "t1"], "UNIMPLEMENTED", "SimilarTracks is not answered yet", "{}: SimilarTracks is not"),
        (["explain", "ana", "t1"], "UNIMPLEMENTED", "Explain is not answered yet", "{}: Explain is not"),
        (["recommend", "ana"], "RESOURCE_EXHAUSTED", "busy", "{}: busy"),
        (["status"], "INTERNAL", "request r-9 failed", "{} answered INTERNAL: request r-9 failed"),
        (["status"], "UNAVAILABLE", "no bundle yet", "{} cannot answer now: no bundle yet"),
    ],
)
def test_an_error_is_one_line_and_exit_1(
    fake: FakeRecommender,
    address: str,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    code: str,
    details: str,
    line: str,
) -> None:
    fake.before = lambda request, context: context.abort(grpc.StatusCode[code], details)
    assert query(*argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lhydra query: " + line.format(address))
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["recommend", "ana", "--k", "-1"], "k: found -1, expected a whole number"),
        (["recommend", "ana", "--max-year", "2147483648"], "filter.max_year: found 2147483648, expected a whole"),
        (["recommend", "\udcff"], "user_id: found '\\udcff', expected text that UTF-8 can hold"),
        (["status", "--address", "nowhere"], "address: found 'nowhere', expected HOST:PORT"),
        (["status", "--timeout-s", "0"], "timeout_s: found 0, expected above 0"),
    ],
)
def test_what_cannot_be_sent_is_one_line_too(capsys: pytest.CaptureFixture[str], argv: list[str], line: str) -> None:
    assert query(*argv) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"lhydra query: {line}")


@pytest.mark.parametrize(
    "argv",
    [
        *(["recommend"], ["plays", "ana"], ["recommend", "ana", "--profile", "age"], []),
        ["recommend", "ana", "--allow-repeats", "--decay-repeats"],
        ["recommend", "ana", "--min-year", "early"],
    ],
)
def test_wrong_usage_exits_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        query(*argv)
    assert caught.value.code == 2


def test_a_terminal_without_the_characters_gets_no_traceback(address: str) -> None:
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "ascii"}
    code = (
        "import argparse, sys; from lhydra_client import command; p = argparse.ArgumentParser(); "
        "command.configure(p); sys.exit(command.run(p.parse_args()))"
    )
    argv = [sys.executable, "-c", code, "recommend", "ana", "--address", address]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Blue Hour" in done.stdout
    assert done.stdout.isascii()


# ---- the table


@settings(deadline=None)  # the machine may be busy
@given(st.text())
def test_clean_text_is_one_line_without_control_characters(text: str) -> None:
    assert len(f"{clean(text)}|".splitlines()) == 1
    assert not [c for c in clean(text) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    kept = "".join(c for c in text if c.isprintable())
    assert clean(kept) == kept


@settings(deadline=None)  # the machine may be busy
@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Cf", "Zl", "Zp"])), st.integers(2, 12))
def test_clipped_text_fits_and_is_a_prefix(text: str, most: int) -> None:
    clipped = clip(text, most)
    assert width(clipped) <= most
    assert clipped == text or (clipped.endswith("…") and text.startswith(clipped[:-1]) and width(text) > most)


@settings(deadline=None)  # the machine may be busy
@given(st.floats(-1e6, 1e6))
@example(-0.0)
def test_a_score_is_shown_as_0_only_where_it_is_0_and_0_has_no_sign(value: float) -> None:
    shown = score(value)
    assert float(shown) == pytest.approx(value, rel=0.06, abs=1e-300)
    assert shown == "0.0000" if value == 0 else float(shown) * value > 0 or abs(value) < 1e-150


@given(st.lists(st.tuples(st.text(max_size=60), st.text(max_size=60), st.just("id")), max_size=5))
def test_the_last_column_starts_at_the_same_cell_in_every_line(rows: Any) -> None:
    lines = table(("a", "b", "c"), rows, right=(1,)).split("\n")
    starts = {width(line.removesuffix("id").removesuffix("c")) for line in lines}
    assert len(lines) == len(rows) + 1
    assert len(starts) == 1


@given(st.text("ab ", max_size=200), st.integers(20, 300))
def test_sentences_take_the_room_that_a_terminal_has(text: str, columns: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("COLUMNS", str(columns))
        line = table(("why", "id"), [(f"{text}.", "t1")], sentences=0).split("\n")[1]
    assert width(line) <= max(columns, 40 + 4)
    assert line.startswith(f"{clean(text)}.") or width(line) == max(columns, 40 + 4)


def test_sentences_are_whole_in_a_pipe(
    fake: FakeRecommender, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # readline sets it in pytest, which its workers inherit
    reason = "because you play " + "a song of a very long name " * 9 + "by somebody"
    fake.reply.tracks[0].reasons.append(reason)
    assert query("recommend", "ana", "--why") == 0
    assert reason in capsys.readouterr().out


def test_an_explanation_leaves_out_what_moves_nothing_and_says_what_places_mean() -> None:
    pulls = [pb.Pull(name="moment", logit=logit) for logit in (0.0006, 0.0004, -0.0, -0.0004)]
    steps = [pb.RuleStep(rule="places", before=3, after=4), pb.RuleStep(rule="cap artist", before=4, after=2)]
    found = explanation(pb.ExplainResponse(k=10, groups=pulls, pulls=pulls[1:], steps=steps))
    assert explained.text("u", "t", found).splitlines()[-4:] == [
        "select     others pinned, new or drawn took places: place 3 → place 4",
        "select     rule cap artist: place 4 → place 2",
        "feature groups",
        "  +0.001  moment",
    ]


def test_long_titles_are_cut_but_ids_never() -> None:
    line = table(("title", "id"), [("x" * 100, "y" * 100)]).split("\n")[1]
    assert line == "x" * 39 + "…" + "  " + "y" * 100
    assert width("e\u0301 雨") == 4
