"""What `lhydra index diff` says of two bundles, against laws and against plain Python."""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.catalog import Catalog
from lhydra.bundle.listed import entries
from lhydra.bundle.strings import StringColumn
from lhydra.cli import main
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import I64, Query, Recommendation, Tier, UserState, make_history, no_history, track_hashes
from lhydra.errors import BundleMissing, DataError, UserStoreError
from lhydra.recommender import Recommender
from lhydra.users.lmdb_store import LmdbUsers
from lhydra_index_builder.changes import add, remove
from lhydra_index_builder.config import RebuildSettings
from lhydra_index_builder.diff import asking, comparing, measures, telling
from lhydra_index_builder.diff.result import Audience
from tests.harness import examples

Lists = Sequence[Sequence[str]]


@pytest.fixture(scope="module")
def states(tiny_dataset: Dataset) -> list[UserState]:
    return [state for _, state in user_states(tiny_dataset, "now")][:60]


@pytest.fixture(scope="module")
def queries(states: list[UserState]) -> list[Query]:
    return [Query(10, state, True, state.heard) for state in states] + [Query(10)]


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy of the tiny store: two bundles, the newer one current, and every user."""
    return Path(shutil.copytree(tiny_store, tmp_path / "store"))


def ids_of(store: Path) -> tuple[str, str]:
    newer, older = (entry.bundle_id for entry in entries(store)[:2])
    return older, newer


# -- a catalogue of ten tracks, and bundles that answer with the lists they are told ------------------------


def catalog_of(source: Catalog, ids: Sequence[str], share: Sequence[float], genres: Any, removed: Iterable[str]) -> Any:
    """A catalogue of these tracks, in id order as catalogues are; genres: (n,) number of each, in the last column."""
    assert list(ids) == sorted(ids)
    hashes = track_hashes(ids)
    at = np.argsort(hashes)
    return replace(
        source,
        vectors=source.vectors[: len(ids)],
        ids=np.array(genres, np.int32)[:, None],
        share=np.array(share, np.float32),
        hashes=hashes[at],
        hash_rows=at.astype(np.int32),
        removed=np.array([ids.index(track) for track in removed], np.int64),
        names=StringColumn.of(ids),
    )


class Scripted:
    """In place of a recommender: answers query n with list n of `answers[bundle id]`, rows of its own catalog."""

    answers: dict[str, Lists]
    asked: list[tuple[str, int]]

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.depth = bundle, 300

    def warm_up(self) -> None:
        pass

    def recommend(self, query: Query) -> Recommendation:
        number = int(query.state.profile["number"])  # type: ignore[arg-type]
        self.asked.append((self.bundle.bundle_id, number))
        names = self.bundle.catalog.track_ids(np.arange(len(self.bundle.catalog)))
        rows = np.array([names.index(track) for track in self.answers[self.bundle.bundle_id][number]], np.int64)
        nothing = np.zeros(len(rows), np.float32)
        tier = list(Tier)[(number + (self.bundle.bundle_id == "A")) % 4]  # cohorts go by those of B
        return Recommendation(rows, nothing, nothing, nothing, rows, nothing, tier, {})


A_TRACKS, B_TRACKS = list("abcdefgh"), list("bcdefghij")  # a is gone from B; i and j are new
A_SHARE, B_SHARE = [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], [0.75, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.0]
A_GENRES, B_GENRES = [1, 1, 2, 2, 0, 3, 3, 3], [2, 3, 3, 1, 2, 2, 2, 1, 0]
A_NAMES, B_NAMES = ("pop", "rock", "jazz"), ("folk", "pop", "rock")  # the numbers mean other genres in B
A_REMOVED, B_REMOVED = {"h"}, {"g"}


def pair(bundle: Bundle) -> tuple[Bundle, Bundle]:
    def made(bundle_id: str, tracks: Any, share: Any, genres: Any, names: tuple[str, ...], removed: set[str]) -> Bundle:
        spec = bundle.spec
        genre = replace(next(part for part in spec.track_categories if part.name == spec.genre), values=names)
        # nothing but the genre, whose derived column is then column 1 beside its own
        spec = replace(spec, track_categories=(genre,), track_bags=(), genre=genre.name)
        catalog = catalog_of(bundle.catalog, tracks, share, genres, removed)
        catalog = replace(catalog, ids=np.concatenate([np.full_like(catalog.ids, 9), catalog.ids], axis=1))
        return replace(bundle, bundle_id=bundle_id, spec=spec, catalog=catalog)

    return (
        made("A", A_TRACKS, A_SHARE, A_GENRES, A_NAMES, A_REMOVED),
        made("B", B_TRACKS, B_SHARE, B_GENRES, B_NAMES, B_REMOVED),
    )


def scripted(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, a: Lists, b: Lists, k: int, lengths: Sequence[int] = ()
) -> dict[str, Any]:
    """What `compare` says when A answers with lists `a` and B with `b`; lengths: of the users' histories."""
    monkeypatch.setattr(comparing, "Recommender", Scripted)
    Scripted.answers, Scripted.asked = {"A": a, "B": b}, []
    states = [UserState({"number": n}, long(lengths[n] if lengths else 0)) for n in range(len(a))]
    found = comparing.compare(*pair(bundle), [Query(k, state) for state in states], k)
    assert telling.tables(replace(found, asked=Audience("users", len(a), 1)))
    return found.document()


def long(n: int) -> Any:
    return make_history(track_hashes(f"h{i}" for i in range(n)), [1.0] * n, [i + 1 for i in range(n)])


def share_of(track: str) -> float:
    return B_SHARE[B_TRACKS.index(track)] if track in B_TRACKS else A_SHARE[A_TRACKS.index(track)]


def genre_of(track: str) -> str:
    own = (B_TRACKS, B_GENRES, B_NAMES) if track in B_TRACKS else (A_TRACKS, A_GENRES, A_NAMES)
    number = own[1][own[0].index(track)]
    return own[2][number - 1] if number else measures.UNKNOWN_GENRE


def mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def oracle(a: Lists, b: Lists, k: int, lengths: Sequence[int]) -> dict[str, Any]:
    """Every measure again, slowly, from ids."""
    a, b = [list(own)[:k] for own in a], [list(own)[:k] for own in b]
    some = [n for n in range(len(a)) if a[n] or b[n]]
    both = [n for n in range(len(a)) if a[n] and b[n]]
    overlaps = {n: len(set(a[n]) & set(b[n])) / max(len(a[n]), len(b[n])) for n in some}
    shifts = [abs(a[n].index(t) - b[n].index(t)) for n in both for t in a[n] if t in b[n]]
    popular = {side: mean(mean(map(share_of, own[n])) or 0 for n in both) for side, own in (("a", a), ("b", b))}
    shown_a, shown_b = ([track for own in lists for track in own] for lists in (a, b))
    genres = None
    if shown_a and shown_b:
        count_a, count_b = Counter(map(genre_of, shown_a)), Counter(map(genre_of, shown_b))
        names = sorted(count_a | count_b)
        shares = {g: {"a": count_a[g] / len(shown_a), "b": count_b[g] / len(shown_b)} for g in names}
        moved = {g: own["b"] - own["a"] for g, own in shares.items()}
        largest = sorted(moved.values(), key=lambda by: -abs(by))[: measures.MAX_GENRE_MOVES]
        distance = sum(map(abs, moved.values())) / 2
        genres = {"total_variation": distance, "shares": shares, "largest": [by for by in largest if by]}
    cohorts = []
    tiers = {tier.label: [n for n in some if n % 4 == i] for i, tier in enumerate(Tier)}
    spans = {"0": (0, 0), "1-10": (1, 10), "11-50": (11, 50), "51+": (51, 10**9)}
    spells = {name: [n for n in some if low <= lengths[n] <= high] for name, (low, high) in spans.items()}
    for by, groups in (("tier", tiers), ("history", spells)):
        for name, own in groups.items():
            if own:
                cohorts.append({"by": by, "name": name, "users": len(own), "overlap": mean(overlaps[n] for n in own)})
    return {
        "users": len(some),
        "overlap": {
            "mean": mean(overlaps.values()),
            "identical": mean(a[n] == b[n] for n in some),
            "same_tracks": mean(set(a[n]) == set(b[n]) for n in some),
            "nothing": mean(not set(a[n]) & set(b[n]) for n in some),
        },
        "order": {"rank_shift": mean(shifts), "same_first": mean(a[n][:1] == b[n][:1] for n in some)},
        "popularity": {**popular, "difference": None if not both else (popular["b"] or 0) - (popular["a"] or 0)},
        "coverage": {"a": len(set(shown_a)), "b": len(set(shown_b))},
        "recommended_new": len(set(shown_b) - (set(A_TRACKS) - A_REMOVED)),
        "recommended_gone": len(set(shown_a) - (set(B_TRACKS) - B_REMOVED)),
        "genres": genres,
        "cohorts": cohorts,
    }


def near(value: Any) -> Any:
    return pytest.approx(value, abs=1e-6)  # shares are float32


def answers(tracks: Sequence[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(tracks), unique=True, max_size=6)


@settings(deadline=None, max_examples=examples(70))
@given(data=st.data())
def test_every_measure_is_that_of_plain_python(tiny_bundle: Bundle, data: st.DataObject) -> None:
    n, k = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 7))
    a, b = (
        data.draw(st.lists(answers(sorted(set(tracks) - removed)), min_size=n, max_size=n))
        for tracks, removed in ((A_TRACKS, A_REMOVED), (B_TRACKS, B_REMOVED))
    )
    lengths = data.draw(st.lists(st.sampled_from([0, 1, 10, 11, 50, 51, 90]), min_size=n, max_size=n))
    with pytest.MonkeyPatch.context() as patch:
        found = scripted(patch, tiny_bundle, a, b, k, lengths)
    expected = oracle(a, b, k, lengths)
    assert found["users"] == expected["users"]
    for part in ("overlap", "order", "popularity", "coverage"):
        assert {name: found[part][name] for name in expected[part]} == near(expected[part]), part
    assert found["cohorts"] == [{**one, "overlap": near(one["overlap"])} for one in expected["cohorts"]]
    for name in ("recommended_new", "recommended_gone"):
        assert found["catalogue"][name] == expected[name]
    assert (found["genres"] is None) == (expected["genres"] is None)
    if expected["genres"] is not None:
        assert found["genres"]["total_variation"] == near(expected["genres"]["total_variation"])
        assert found["genres"]["shares"].keys() >= expected["genres"]["shares"].keys()
        for genre, own in expected["genres"]["shares"].items():
            assert found["genres"]["shares"][genre] == near(own)
        moved = [one["difference"] for one in found["genres"]["movers"]]
        assert [abs(by) for by in moved] == near([abs(by) for by in expected["genres"]["largest"]])
        for one in found["genres"]["movers"]:
            assert one["difference"] == near(one["b"] - one["a"])
    for side in ("low", "high"):  # an interval lies within what the users say
        assert (found["overlap"][side] is None) == (found["users"] < 2)
        if found["overlap"][side] is not None:
            assert 0 <= found["overlap"][side] <= 1
    json.dumps(found, allow_nan=False)


def test_lists_whose_answers_are_known_by_heart(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    a = [list("abc"), list("bcd"), list("bcd"), list("bcd")]
    b = [list("hij"), list("bcd"), list("dcb"), list("bce")]
    found = scripted(monkeypatch, tiny_bundle, a, b, 3)
    assert found["overlap"]["mean"] == pytest.approx((0 + 1 + 1 + 2 / 3) / 4)
    assert (found["overlap"]["identical"], found["overlap"]["same_tracks"]) == (0.25, 0.5)
    assert (found["overlap"]["nothing"], found["order"]["same_first"]) == (0.25, 0.5)
    assert found["order"]["rank_shift"] == pytest.approx((0 + 0 + 0 + 2 + 0 + 2 + 0 + 0) / 8)
    assert found["catalogue"] == {
        "a": 7, "b": 8, "added": 3, "removed": 2, "recommended_new": 3, "recommended_gone": 1,
    }  # fmt: skip
    assert found["summary"][0].startswith("B keeps 2.00 of 3 tracks of A's lists on average (95 % ")
    assert found["summary"][0].endswith("; 25.0 % of users see nothing they saw before")
    low, high = found["overlap"]["low"], found["overlap"]["high"]
    assert 0 <= low < found["overlap"]["mean"] < high <= 1


def test_of_one_user_no_interval_is_told(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    found = scripted(monkeypatch, tiny_bundle, [list("bcd")], [list("bch")], 3)
    assert found["summary"][0].startswith("B keeps 2.00 of 3 tracks of A's lists on average (one user); 0.0 % of")


def test_lists_of_several_lengths_are_told_in_percent(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    found = scripted(monkeypatch, tiny_bundle, [list("bc"), list("bcd")], [list("bc"), list("bch")], 3)
    assert found["summary"][0].startswith("B keeps 83.3 % of A's lists on average (95 % 66.7 % to 100.0 %)")


def test_both_are_asked_in_turns(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, tiny_bundle, [["b"]] * 4, [["b"]] * 4, 1)
    timed = Scripted.asked[-8:]
    assert timed == [("A", 0), ("B", 0), ("B", 1), ("A", 1), ("A", 2), ("B", 2), ("B", 3), ("A", 3)]


@settings(deadline=None)
@given(lists=arrays(np.int64, st.tuples(st.integers(1, 6), st.just(4)), elements=st.integers(0, 3)))
def test_changes_are_symmetric(lists: I64) -> None:
    a = np.argsort(lists, axis=1, kind="stable") + np.arange(len(lists))[:, None] % 2
    b = np.argsort(-lists, axis=1, kind="stable")
    there, back = measures.changed(a, b), measures.changed(b, a)
    assert (there.overlap == back.overlap).all()
    assert there.shift.sum() == back.shift.sum()


# -- real bundles -------------------------------------------------------------------------------------------


def test_a_bundle_against_itself_has_not_changed(tiny_bundle: Bundle, queries: list[Query]) -> None:
    found = comparing.compare(tiny_bundle, tiny_bundle, queries, 10).document()
    assert found["summary"] == [f"B gives all {len(queries)} users exactly the list that A gives"]
    assert found["overlap"] == {
        "mean": 1, "low": 1, "high": 1, "identical": 1, "same_tracks": 1, "nothing": 0,
    }  # fmt: skip
    assert found["order"] == {"rank_shift": 0, "same_first": 1}
    assert found["differ"] == []
    popular = found["popularity"]
    assert popular["a"] == popular["b"] > 0
    assert popular["difference"] == popular["low"] == popular["high"] == 0
    genres = found["genres"]
    assert genres["total_variation"] == 0
    assert genres["movers"] == []
    assert sum(own["a"] for own in genres["shares"].values()) == pytest.approx(1)
    n = len(tiny_bundle.catalog)
    assert found["catalogue"] == {
        "a": n, "b": n, "added": 0, "removed": 0, "recommended_new": 0, "recommended_gone": 0,
    }  # fmt: skip
    assert found["coverage"]["a"] == found["coverage"]["b"]
    assert found["inter_user_overlap@10"]["a"] == found["inter_user_overlap@10"]["b"]
    assert all(one["overlap"] == 1 for one in found["cohorts"])
    for by in ("tier", "history"):
        assert sum(one["users"] for one in found["cohorts"] if one["by"] == by) == len(queries)
    assert {one["name"] for one in found["cohorts"]} >= {"personal", "popular", "0"}
    for side in "ab":
        assert 0 < found["latency"][side]["p50_ms"] <= found["latency"][side]["p99_ms"]


def test_the_lists_are_those_that_are_served(tiny_bundle: Bundle, queries: list[Query]) -> None:
    removed = np.arange(0, len(tiny_bundle.catalog), 2)
    alive = np.arange(len(tiny_bundle.catalog), dtype=np.int32)
    alive[removed] = -1
    other = replace(
        tiny_bundle,
        bundle_id="other",
        catalog=replace(tiny_bundle.catalog, removed=removed),
        index=tiny_bundle.index.with_rows(alive),
    )
    found = comparing.compare(tiny_bundle, other, queries, 10).document()
    lists = [
        [bundle.catalog.track_ids(Recommender(bundle).recommend(query).rows) for query in queries]
        for bundle in (tiny_bundle, other)
    ]
    kept = [len(set(a) & set(b)) / 10 for a, b in zip(*lists, strict=True)]
    assert found["overlap"]["mean"] == pytest.approx(mean(kept))
    assert 0 < found["overlap"]["mean"] < 1
    assert found["catalogue"]["removed"] == len(removed)
    assert found["catalogue"]["recommended_gone"] > 0 == found["catalogue"]["recommended_new"]
    assert found["coverage"] == {"a": len(set().union(*lists[0])), "b": len(set().union(*lists[1]))}
    assert found["differ"] == ["tracks"]


def test_without_a_genre_nothing_is_said_of_genres(tiny_bundle: Bundle) -> None:
    bundle = replace(tiny_bundle, spec=replace(tiny_bundle.spec, genre=None))
    lists = np.array([[0, 1]])
    rows = np.arange(2)
    assert measures.genre_names(bundle, bundle, measures.Tracks(rows, rows)) is None
    assert measures.genres(lists, lists, None) is None
    named = measures.genre_names(tiny_bundle, bundle, measures.Tracks(rows, rows))
    assert named == measures.genre_names(bundle, tiny_bundle, measures.Tracks(rows, rows))


def test_genres_are_those_of_the_data(tiny_bundle: Bundle, tiny_dataset: Dataset) -> None:
    assert tiny_bundle.spec.genre == "genre"
    rows = np.arange(len(tiny_bundle.catalog))
    named = measures.genre_names(tiny_bundle, tiny_bundle, measures.Tracks(rows, rows))
    assert named is not None
    told = dict(zip(tiny_bundle.catalog.track_ids(rows), named, strict=True))
    raw = dict(zip(tiny_dataset.track_ids, tiny_dataset.tracks["genre"].to_pylist(), strict=True))
    assert told == {track: genre or measures.UNKNOWN_GENRE for track, genre in raw.items()}


def test_a_genre_that_is_the_first_of_a_bag(tiny_bundle: Bundle) -> None:
    spec = tiny_bundle.spec
    bag = spec.track_bags[0]
    ids = tiny_bundle.catalog.ids.copy()
    ids[:, len(spec.track_categories)] = np.arange(len(ids)) % (len(bag.values) + 1)
    catalog = replace(tiny_bundle.catalog, ids=ids)
    bundle = replace(tiny_bundle, spec=replace(spec, genre=bag.name), catalog=catalog)
    rows = np.array([0, 1, len(bag.values)])
    assert measures.genre_names(bundle, bundle, measures.Tracks(rows, rows)) == [
        measures.UNKNOWN_GENRE,
        bag.values[0],
        bag.values[-1],
    ]


def test_tracks_that_were_added_and_removed(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = RebuildSettings(gate_users=20, recall_users=20, force=True)
    (tmp_path / "new.csv").write_text("track_id,name\n000,First\nnew1,One\nzzz,Last\n", encoding="utf-8")
    before = Bundle.open(store)
    best = Recommender(before).recommend(Query(10)).rows[:4]
    add(tmp_path / "new.csv", store, limits)
    remove(before.catalog.track_ids(best), store, limits)
    n = len(before.catalog)
    found = comparing.between(store, before.bundle_id, "current", sample=100).document()
    assert {name: found["catalogue"][name] for name in ("a", "b", "added", "removed")} == {
        "a": n, "b": n - 1, "added": 3, "removed": 4,
    }  # fmt: skip
    assert 0 < found["catalogue"]["recommended_gone"] <= 4
    back = comparing.between(store, "current", before.bundle_id, sample=100).document()
    assert (back["catalogue"]["added"], back["catalogue"]["removed"]) == (4, 3)
    assert back["overlap"]["mean"] == found["overlap"]["mean"] < 1
    assert back["popularity"]["difference"] == pytest.approx(-found["popularity"]["difference"], abs=1e-6)
    assert main(["index", "diff", before.bundle_id, "current", "--store", str(store)]) == 0
    assert " +3 -4" in capsys.readouterr().out


# -- whom to ask, and the command ---------------------------------------------------------------------------


def test_the_command_in_words(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older, newer = ids_of(store)
    assert main(["index", "diff", "previous", "current", "--store", str(store), "--sample", "40"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert not err
    assert (
        lines[0] == "B gives all 40 users exactly the list that A gives"
    )  # they differ in the seed, the index is flat
    assert any(line.split() == ["bundle", older, newer] for line in lines)
    for start in ("40 users of the user store", "overlap@10", "rank shift", "genre shift", "p99, ms", "cohorts by"):
        assert any(line.startswith(start) for line in lines), start


def test_the_command_in_json(store: Path, tiny_dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    older, newer = ids_of(store)
    asked = ["--data", str(tiny_dataset.path), "--sample", "30", "--k", "5", "--json"]
    assert main(["index", "diff", older, newer, "--store", str(store), *asked]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["a"], found["b"], found["k"], found["users"]) == (older, newer, 5, 30)
    assert found["asked"] == {"source": f"users of {tiny_dataset.path}", "queries": 30, "unknown": 0}
    both = {"a", "b"}
    keys = {name: set(part) if isinstance(part, dict) else None for name, part in found.items()}
    cohort = found["cohorts"][0]
    assert set(cohort) == {"by", "name", "users", "overlap"}
    assert set(found["genres"]["movers"][0] if found["genres"]["movers"] else ()) <= both | {"genre", "difference"}
    assert set(found["settings"]["a"]) == {"model", "recipe", "point", "depth", "tracks"}
    assert keys == {
        **dict.fromkeys(("summary", "format", "k", "users", "a", "b", "differ", "cohorts")),
        **dict.fromkeys(("settings", "coverage", "inter_user_overlap@5", "latency"), both),
        "asked": {"source", "queries", "unknown"},
        "overlap": {"mean", "low", "high", "identical", "same_tracks", "nothing"},
        "order": {"rank_shift", "same_first"},
        "popularity": both | {"difference", "low", "high"},
        "catalogue": both | {"added", "removed", "recommended_new", "recommended_gone"},
        "genres": {"total_variation", "movers", "shares"},
    }


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command is refused."""
    assert main(["index", "diff", *argv]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    return err.strip()


def test_what_is_refused_in_one_line(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--store", str(store)]
    for name in ("20200101T000000-00000000", "../store", "current ", ""):
        line = refused([name, "current", *at], capsys)
        assert line.startswith(f"lhydra index: bundle id: found {name!r}, expected current, previous, or one that ")
    assert "--k: found 0" in refused(["current", "current", *at, "--k", "0"], capsys)
    assert "--sample: found 0" in refused(["current", "current", *at, "--sample", "0"], capsys)
    both = ["--data", str(tmp_path), "--users", "lmdb:x"]
    assert "--data: found --users too, expected one of them" in refused(["current", "current", *at, *both], capsys)
    line = refused(["current", "current", *at, "--users", f"lmdb:{tmp_path}/typo"], capsys)
    assert f"--users: found nothing at {tmp_path}/typo, expected a user store" in line
    assert not (tmp_path / "typo").exists()
    assert "No such file" in refused(["current", "current", *at, "--requests", str(tmp_path / "none")], capsys)
    shutil.rmtree(store / "users.lmdb")
    line = refused(["current", "current", *at], capsys)
    assert line == (
        f"lhydra index: {store}: found no users.lmdb, expected users to ask: `lhydra users load`, --users URL, "
        "--data DATASET or --requests FILE"
    )
    assert not (store / "users.lmdb").exists()
    LmdbUsers(store / "users.lmdb").close()
    assert "users.lmdb: found no users, expected users to ask" in refused(["current", "current", *at], capsys)
    assert "no such folder" in refused(["current", "current", "--store", str(tmp_path / "no")], capsys)


def test_names_of_bundles(store: Path) -> None:
    older, newer = ids_of(store)
    assert [comparing.resolve(store, name) for name in ("previous", "current", older, newer)] == [
        older,
        newer,
        older,
        newer,
    ]
    shutil.rmtree(store / older)
    with pytest.raises(BundleMissing, match="no previous bundle"):
        comparing.resolve(store, "previous")


def written(path: Path, *lines: Any) -> Path:
    texts = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    path.write_bytes(b"\n".join(texts) + b"\n")
    return path


def test_recorded_requests_become_the_queries_of_a_server(store: Path, tmp_path: Path, tiny_dataset: Dataset) -> None:
    user_id, state = next((one, own) for one, own in user_states(tiny_dataset, "now") if len(own.history) > 5)
    first, second = tiny_dataset.track_ids[:2]
    played = [{"track_id": first, "timestamp_s": 5}, {"track_id": second, "count": 3}, {"track_id": first, "count": 0}]
    file = written(
        tmp_path / "requests.jsonl",
        {"user_id": user_id, "exclude_track_ids": [first, second], "k": 3},
        b"  ",
        {"user_id": user_id, "history": played, "profile": {"age": 30.0, "country": "FR", "gender": None}},
        {"user_id": "nobody", "profile": {"age": 30.5, "country": None}},
        {"user_id": user_id, "history": [], "profile": {"mood": "calm", **dict.fromkeys(state.profile, "other")}},
        {"user_id": "nobody at all", "k": None, "history": None, "profile": None, "exclude_track_ids": None},
        {"user_id": "a stranger", "history": played},
        {"user_id": user_id, "session": [{"track_id": first, "timestamp_s": 9, "skipped": True}], "now_s": 77},
    )
    asked = asking.of_requests(file, store, None, 100, 7)
    stored, given, segment, filled, nobody, stranger, playing = asked.queries
    assert asked.unknown == 2
    assert asked.source == f"requests of {file}"
    assert [query.k for query in asked.queries] == [3, 7, 7, 7, 7, 7, 7]
    assert [query.known for query in asked.queries] == [True, True, False, True, False, False, True]
    assert (playing.now, playing.state.skipped.tolist()) == (77, track_hashes([first]).tolist())
    assert (first_hash := track_hashes([first])[0]) in playing.state.heard
    assert first_hash in playing.state.recent["track"]
    assert (stored.state.history == state.history).all()
    assert (stored.exclude == track_hashes([first, second])).all()
    assert (given.state.history == state.history).all()
    assert given.state.profile == {"age": 30, "country": "FR", **state.profile}
    assert (given.state.heard == np.union1d(state.heard, track_hashes([first, second]))).all()
    assert (len(segment.state.history), segment.state.profile) == (0, {"age": 30.5})
    assert filled.state.profile == {"mood": "calm", **state.profile}
    assert (nobody.state.history == no_history()).all()
    expected = make_history(track_hashes([first, second, first]), [1, 3, 1], [5, 0, 0])
    expected["time"][expected["time"] == 0] = -2  # no time, but a place: the second of three
    assert (stranger.state.history == expected).all()
    tiers = [
        one["name"] for one in comparing.between(store, "previous", "current", requests=file).document()["cohorts"]
    ]
    assert tiers[:4] == ["personal", "history", "segment", "popular"]


def test_requests_are_drawn_in_their_order_and_need_no_user_store(store: Path, tmp_path: Path) -> None:
    shutil.rmtree(store / "users.lmdb")
    file = written(tmp_path / "requests.jsonl", *({"user_id": f"u{n}", "k": n + 1} for n in range(50)))
    asked = asking.of_requests(file, store, None, 20, 10)
    ks = [query.k for query in asked.queries]
    assert len(set(ks)) == 20
    assert ks == sorted(ks)
    assert ks == [query.k for query in asking.of_requests(file, store, None, 20, 10).queries]
    assert asked.unknown == 20
    assert not (store / "users.lmdb").exists()
    with pytest.raises(UserStoreError, match="nothing at"):
        asking.of_requests(file, store, f"lmdb:{tmp_path}/typo", 20, 10)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"user_id": "u"', "request: found broken JSON, expected a JSON object"),
        (b"\xff\xfe", "request: found text that is not UTF-8, expected a JSON object"),
        (b"[" * 100_000, "request: found JSON that nests too deeply, expected a JSON object"),
        ([1], "request: found [1], expected a JSON object"),
        ({"k": 3}, "request: found no user_id, expected user_id and maybe k, exclude_track_ids, history, profile"),
        ({"user_id": "u", "limit": 3}, "request: found field 'limit', expected only user_id, k, "),
        ({"user_id": ""}, "user_id: found 0 characters, expected 1 to 256 characters"),
        ({"user_id": 7}, "user_id: found 7, expected text"),
        ({"user_id": "\ud800"}, "user_id: found '\\ud800', expected text that is UTF-8"),
        ({"user_id": "u", "k": 0}, "k: found 0, expected 1 to 10000"),
        ({"user_id": "u", "k": True}, "k: found True, expected a whole number"),
        ({"user_id": "u", "k": 2.5}, "k: found 2.5, expected a whole number"),
        ({"user_id": "u", "exclude_track_ids": "t1"}, "exclude_track_ids: found 't1', expected a list"),
        ({"user_id": "u", "exclude_track_ids": ["t", 1]}, "exclude_track_ids[1]: found 1, expected text"),
        ({"user_id": "u", "history": {"t": 1}}, "history: found {'t': 1}, expected a list"),
        ({"user_id": "u", "history": ["t"]}, "history[0]: found 't', expected a JSON object"),
        ({"user_id": "u", "history": [{"count": 1}]}, "history[0]: found no track_id, expected track_id and maybe"),
        ({"user_id": "u", "history": [{"track_id": "t", "plays": 1}]}, "history[0]: found field 'plays', expected"),
        (
            {"user_id": "u", "history": [{"track_id": "t", "count": -1}]},
            "history[0].count: found -1, expected a finite",
        ),
        ({"user_id": "u", "history": [{"track_id": "t", "count": float("nan")}]}, "history[0].count: found nan"),
        (
            {"user_id": "u", "history": [{"track_id": "t", "timestamp_s": 1_700_000_000_000}]},
            "history[0].timestamp_s: found 1700000000000, expected Unix seconds, not negative and before the year 2100",
        ),
        ({"user_id": "u", "profile": ["FR"]}, "profile: found ['FR'], expected values by column"),
        ({"user_id": "u", "profile": {"age": float("inf")}}, "profile['age']: found inf, expected text or a finite"),
        ({"user_id": "u", "profile": {"age": [1]}}, "profile['age']: found [1], expected text or a finite number"),
    ],
)
def test_a_bad_line_is_refused_by_its_number(
    line: Any, message: str, tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "requests.jsonl", {"user_id": "fine"}, b"", line, {"user_id": ""})
    said = refused(["current", "current", "--store", str(tiny_store), "--requests", str(file)], capsys)
    assert said.startswith(f"lhydra index: {file} line 3: {message}")
    assert len(said) < 400 + len(str(file))


def test_a_file_without_requests_is_refused(tiny_store: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n \n", encoding="utf-8")
    with pytest.raises(DataError, match="no lines"):
        asking.of_requests(tmp_path / "empty", tiny_store, None, 5, 10)
