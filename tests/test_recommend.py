"""`lhydra recommend`: the file holds what the recommender answers, for every user, or does not exist."""

import csv
import gzip
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhydra.cli import main
from lhydra.data.dataset import TRAIN, VALID, Dataset, user_states
from lhydra.domain import Query, Repeat, no_hashes
from lhydra.evaluation import lists
from lhydra.evaluation.evaluate import evaluate
from lhydra.recommender import LEARNT_AS_DECAY
from tests.test_evaluate import Fake, FakeCatalog, FakeRecommender, installed, names, world, write_dataset
from tests.test_metrics import shared_tool

__all__ = ["installed", "world"]  # fixtures
World = tuple[Dataset, FakeRecommender]
Row = tuple[str, int, str, np.float32]


def read(path: Path) -> list[Row]:
    if path.name.endswith(".parquet"):
        return [
            (r["user_id"], r["rank"], r["track_id"], np.float32(r["score"])) for r in pq.read_table(path).to_pylist()
        ]
    with (gzip.open if path.name.endswith(".gz") else open)(path, "rt", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["user_id", "rank", "track_id", "score"]
    return [(user, int(rank), track, np.float32(score)) for user, rank, track, score in rows]


def expected_rows(world: World, k: int, as_of: Any = "test", stage: str = "final", heard: bool = False) -> list[Row]:
    """What the recommender answers to each user, one by one, at its own depth."""
    dataset, recommender = world
    rows: list[Row] = []
    for user_id, state in user_states(dataset, as_of):
        exclude = no_hashes() if heard else state.heard
        answer = recommender.recommend(Query(k, state, True, exclude))
        found = answer.rows if stage == "final" else answer.candidates[:k]
        scores = answer.scores if stage == "final" else recommender.scores(state)[0][found]
        tracks = recommender.catalog.track_ids(found)
        rows += [(user_id, n, track, score) for n, (track, score) in enumerate(zip(tracks, scores, strict=True), 1)]
    return rows


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz", ".CSV"])
@pytest.mark.parametrize("stage", ["final", "retrieval"])
def test_the_file_holds_the_answers(
    world: World, installed: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, stage: str
) -> None:
    dataset, recommender = world
    installed(recommender)
    out = tmp_path / f"recs{suffix}"
    lists.write_lists(recommender, dataset, out, k=1, stage="final", as_of="now", positions=np.arange(3))
    assert main(["recommend", str(dataset.path), "s", "--out", str(out), "--k", "7", "--stage", stage]) == 0
    assert read(out) == expected_rows(world, 7, stage=stage)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", out.name]
    assert capsys.readouterr().out == f"{out}: 210 rows for 30 users, {stage} stage of fake-1\n"


@pytest.mark.parametrize("as_of", ["test", "valid", "now"])
@pytest.mark.parametrize("heard", [True, False])
def test_as_of_and_include_heard(world: World, installed: Fake, tmp_path: Path, as_of: str, heard: bool) -> None:
    dataset, recommender = world
    installed(recommender)
    out = tmp_path / "recs.csv"
    flags = ["--as-of", as_of, *(["--include-heard"] if heard else [])]
    assert main(["recommend", str(dataset.path), "s", "--out", str(out), *flags]) == 0
    assert read(out) == expected_rows(world, 10, as_of, heard=heard)


@pytest.mark.parametrize("word", ["exclude", "allow", "decay", "learnt"])
def test_policy_and_clock_reach_the_recommender(
    world: World, installed: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    dataset, recommender = world
    installed(recommender)
    command = ["recommend", str(dataset.path), "s", "--out", str(tmp_path / "recs.csv"), "--repeat", word]
    assert main([*command, "--now-s", "17"]) == 0
    assert {(query.repeat, query.now) for query in recommender.queries} == {(Repeat[word.upper()], 17)}
    assert (LEARNT_AS_DECAY[:60] in capsys.readouterr().err) is (word == "learnt")
    recommender.queries.clear()
    before = int(time.time())
    assert main(command) == 0
    (now,) = {query.now for query in recommender.queries}
    assert before <= now <= time.time()


def test_two_policies_are_refused(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["recommend", str(world[0].path), "s", "--out", str(tmp_path / "recs.csv"), "--include-heard"]
    assert main([*command, "--repeat", "decay"]) != 0
    assert (
        capsys.readouterr().err == "lhydra recommend: --repeat: found decay and --include-heard, expected one of them\n"
    )


def test_chosen_users_in_the_order_asked_and_once(world: World, installed: Fake, tmp_path: Path) -> None:
    dataset, recommender = world
    installed(recommender)
    out = tmp_path / "recs.parquet"
    assert main(["recommend", str(dataset.path), "s", "--out", str(out), "--users", "u009,u002,u009"]) == 0
    rows = expected_rows(world, 10)
    assert read(out) == [row for user in ("u009", "u002") for row in rows if row[0] == user]


def test_bundle_and_depth_reach_the_recommender(
    world: World, installed: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, recommender = world
    installed(recommender)
    out = tmp_path / "recs.csv"
    flags = ["--bundle", "b-9", "--depth", "12", "--stage", "retrieval", "--k", "3"]
    assert main(["recommend", str(dataset.path), "s", "--out", str(out), *flags]) == 0
    assert capsys.readouterr().out.endswith("retrieval stage of b-9\n")
    assert recommender.depth == 12
    assert read(out) == expected_rows(world, 3, stage="retrieval")


def test_a_small_catalogue_gives_what_there_is_and_says_so(
    tmp_path: Path, installed: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_dataset(tmp_path / "d", ["a", "b"], names("t", 3), [(0, t, TRAIN) for t in range(3)])
    installed(FakeRecommender(FakeCatalog(dataset.track_ids)))
    out = tmp_path / "recs.csv"
    assert main(["recommend", str(dataset.path), "s", "--out", str(out), "--k", "4"]) == 0
    assert [row[:2] for row in read(out)] == [("b", 1), ("b", 2), ("b", 3)]  # a has heard all three
    assert "2 users have fewer than 4 tracks: nothing more is eligible" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_no_row_at_all_is_still_a_table(tmp_path: Path, installed: Fake, suffix: str) -> None:
    dataset = write_dataset(tmp_path / "d", ["a"], names("t", 1), [(0, 0, TRAIN)])
    installed(FakeRecommender(FakeCatalog(dataset.track_ids)))
    out = tmp_path / f"recs{suffix}"
    assert main(["recommend", str(dataset.path), "s", "--out", str(out)]) == 0
    assert read(out) == []


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_rows_are_written_in_groups_and_all_arrive(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    dataset, recommender = world
    monkeypatch.setattr(lists, "_GROUP_ROWS", 32)
    out = tmp_path / f"recs{suffix}"
    positions = np.arange(30)
    counted = lists.write_lists(recommender, dataset, out, k=10, stage="final", as_of="test", positions=positions)
    assert counted == (0, 300)
    assert read(out) == expected_rows(world, 10)
    if suffix == ".parquet":
        assert pq.ParquetFile(out).num_row_groups == 8  # of 40 rows: four users at least hold 32


ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(
    users=st.lists(ids, min_size=1, max_size=3, unique=True),
    tracks=st.lists(ids, min_size=1, max_size=4, unique=True),
    suffix=st.sampled_from([".parquet", ".csv", ".csv.gz"]),
)
def test_ids_and_scores_come_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, users: list[str], tracks: list[str], suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("ids")
    dataset = write_dataset(folder / "d", users, tracks, [])
    fake = FakeRecommender(FakeCatalog(tracks))
    out = folder / f"recs{suffix}"
    positions = np.arange(len(users))
    lists.write_lists(fake, dataset, out, k=5, stage="final", as_of="now", positions=positions)
    assert read(out) == expected_rows((dataset, fake), 5, "now")


def test_the_same_lists_are_the_same_bytes(world: World, tmp_path: Path) -> None:
    dataset, recommender = world
    for suffix in (".parquet", ".csv", ".csv.gz"):
        outs = [tmp_path / f"{name}{suffix}" for name in ("a", "b")]
        for out in outs:
            lists.write_lists(recommender, dataset, out, k=3, stage="final", as_of="test", positions=np.arange(5))
        assert outs[0].read_bytes() == outs[1].read_bytes()
    assert (tmp_path / "a.csv.gz").read_bytes()[4:8] == bytes(4)  # gzip keeps no time: also true a second later


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz"])
def test_a_failure_on_the_way_leaves_the_older_file(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    dataset, recommender = world
    monkeypatch.setattr(lists, "_GROUP_ROWS", 1)
    out = tmp_path / f"recs{suffix}"
    out.write_text("older")
    calls = iter(range(100))

    def failing(query: Query) -> Any:
        if next(calls) == 20:
            raise KeyboardInterrupt
        return FakeRecommender.recommend(recommender, query)

    recommender.recommend = failing  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        lists.write_lists(recommender, dataset, out, k=3, stage="final", as_of="test", positions=np.arange(30))
    assert out.read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", out.name]


@pytest.mark.parametrize(("stage", "ranked"), [("final", "cascade"), ("retrieval", "retrieval")])
@pytest.mark.parametrize(("suffix", "as_of"), [(".parquet", "test"), (".csv", "test"), (".csv", "valid")])
def test_the_shared_tool_scores_the_file_as_evaluate_does(
    world: World, tmp_path: Path, suffix: str, as_of: Any, stage: Any, ranked: str
) -> None:
    dataset, recommender = world
    out = tmp_path / f"recs{suffix}"
    lists.write_lists(recommender, dataset, out, k=20, stage=stage, as_of=as_of, positions=np.arange(30))
    plays = dataset.plays
    split = {
        "user_ids": np.array(dataset.user_ids),
        "item_ids": np.array(dataset.track_ids),
        "u": plays.user,
        "i": plays.track,
        "fold": plays.fold,
    }
    tool = shared_tool()
    theirs = tool.evaluate(split, *tool.load_lists(str(out), split), target=as_of)
    ranking = evaluate(recommender, dataset, as_of=as_of)["ranking"][ranked]
    ours = {name: value["mean"] for name, value in ranking.items()}
    shared = set(ours) & set(theirs)
    assert len(shared) == 8
    assert {name: theirs[name] for name in shared} == pytest.approx({name: ours[name] for name in shared}, abs=1e-9)
    assert (theirs["masked_violations"], theirs["duplicates"]) == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--users", "u001,nobody"], "--users: found 'nobody', expected ids of the 30 users of "),
        (["--users", "a,b,c,d,e"], "--users: found 'a', 'b', 'c' and 2 more, expected ids of the 30 users of "),
        (["--users=-K7x"], "--users: found '-K7x', expected ids of the 30 users of "),
        (["--users", ""], "--users: found '', expected ids of the 30 users of "),
        (["--k", "0"], "--k: found 0, expected 1 to 1000"),
        (["--k", "1000000000"], "--k: found 1000000000, expected 1 to 1000"),
        (["--k", "many"], "--k: found many, expected a whole number"),
        (["--depth", "-1"], "--depth: found -1, expected 0 to 10000"),
    ],
)
def test_bad_flags_are_one_line(
    world: World,
    installed: Fake,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    installed(world[1])
    out = tmp_path / "recs.csv"
    assert main(["recommend", str(world[0].path), "s", "--out", str(out), *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"lhydra recommend: {message}")
    assert captured.err.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("recs.json", "--out: found recs.json, expected a name that ends in .parquet, .csv, .csv.gz"),
        ("recs", "--out: found recs, expected a name that ends in .parquet, .csv, .csv.gz"),
        ("nowhere/recs.csv", "--out: found no folder "),
        ("folder.csv", "--out: found the folder "),
    ],
)
def test_a_bad_destination_is_one_line(
    world: World, installed: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, message: str
) -> None:
    installed(world[1])
    (tmp_path / "folder.csv").mkdir()
    assert main(["recommend", str(world[0].path), "s", "--out", str(tmp_path / out)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"lhydra recommend: {message}")
    assert captured.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "folder.csv"]


def test_a_trained_store_recommends_to_everybody(tiny_store: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(tiny_store.parent / "dataset")
    found = {}
    for stage in ("final", "retrieval"):
        out = tmp_path / f"{stage}.parquet"
        assert main(["recommend", str(dataset.path), str(tiny_store), "--out", str(out), "--stage", stage]) == 0
        found[stage] = read(out)
    for rows in found.values():
        assert {row[0] for row in rows} == set(dataset.user_ids)
        assert len({(row[0], row[2]) for row in rows}) == len(rows) == 10 * len(dataset.user_ids)
        by_user: dict[str, list[np.float32]] = {}
        for user_id, rank, _, score in rows:
            by_user.setdefault(user_id, []).append(score)
            assert rank == len(by_user[user_id])
        assert all(scores == sorted(scores, reverse=True) for scores in by_user.values())
    assert found["final"] != found["retrieval"]
    plays, ids = dataset.plays, dataset.track_ids
    heard = {
        (dataset.user_ids[u], ids[t]) for u, t, f in zip(plays.user, plays.track, plays.fold, strict=True) if f < 2
    }
    assert not heard & {(row[0], row[2]) for row in found["final"]}


@pytest.mark.parametrize("flags", [[], ["--bundle", "20200101T000000-00000000"]])
def test_a_store_without_current_or_that_bundle_is_one_line(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    (tmp_path / "store").mkdir()
    out = tmp_path / "recs.csv"
    assert main(["recommend", str(world[0].path), str(tmp_path / "store"), "--out", str(out), *flags]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"lhydra recommend: {tmp_path / 'store'}")
    assert captured.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "store"]


ODD_IDS = ("-K7x", "a,b", "all", " b", "b ", "a\u2028c", "\ufeffd", "007", "--users", '"q"')


def test_users_of_a_file_are_any_ids_in_its_order(tmp_path: Path, installed: Fake) -> None:
    dataset = write_dataset(tmp_path / "d", sorted(ODD_IDS, key=str.encode), names("t", 9), [(0, 0, TRAIN)])
    installed(FakeRecommender(FakeCatalog(dataset.track_ids)))
    listed, out = tmp_path / "ids.txt", tmp_path / "recs.csv"
    for end in ("\n", "\r\n"):
        asked = [*ODD_IDS[::-1], ODD_IDS[0]]
        listed.write_bytes((end.join(asked) + end + end).encode())
        arguments = ["recommend", str(dataset.path), "s", "--out", str(out), "--users-file", str(listed), "--k", "1"]
        assert main(arguments) == 0
        assert [row[0] for row in read(out)] == list(ODD_IDS[::-1])
        listed.write_bytes(b"\xef\xbb\xbf" + end.join(asked).encode())
        assert main(arguments) == 0
        assert [row[0] for row in read(out)] == list(ODD_IDS[::-1])
    assert main([*arguments[:5], "--users=-K7x"]) == 0
    assert {row[0] for row in read(out)} == {"-K7x"}


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (b"", [], "--users-file {file}: found no ids, expected an id per line"),
        (b"\n\r\n", [], "--users-file {file}: found no ids, expected an id per line"),
        (b"u001\nna\xefve\n", [], "--users-file {file}: found no UTF-8 in line 2, expected an id per line, in UTF-8"),
        (b"u001\nu1\n", [], "--users-file {file}: found 'u1', expected ids of the 30 users of "),
        (b"u001,u002\n", [], "--users-file {file}: found 'u001,u002', expected ids of the 30 users of "),
        (b"u001\n", ["--users", "u002"], "--users-file: found --users as well, expected one of them"),
        (b"u001\n", ["--users", "all"], "--users-file: found --users as well, expected one of them"),
        (None, [], "No such file or directory: {file}"),
    ],
)
def test_a_wrong_file_of_users_is_one_line(
    world: World,
    installed: Fake,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
    more: list[str],
    message: str,
) -> None:
    installed(world[1])
    listed, out = tmp_path / "ids.txt", tmp_path / "recs.csv"
    if content is not None:
        listed.write_bytes(content)
    arguments = ["recommend", str(world[0].path), "s", "--out", str(out), "--users-file", str(listed), *more]
    assert main(arguments) == (2 if message.endswith("expected one of them") else 1)
    captured = capsys.readouterr()
    assert captured.err.startswith("lhydra recommend: " + message.format(file=listed))
    assert captured.err.count("\n") == 1
    assert not out.exists()


def test_a_user_that_looks_like_a_flag_leads_to_the_way_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["recommend", "d", "s", "--out", "a.csv", "--users", "-K7x"])
    assert "written --users=-VALUE, or stands in a file: --users-file FILE" in capsys.readouterr().err
    for words in (["query", "recommend", "-K7x"], ["index", "remove", "--store", "s", "-K7x"]):
        with pytest.raises(SystemExit):
            main(words)
        assert "-K7x is no flag: if it is an id, it comes last, after --" in capsys.readouterr().err


def test_a_misspelt_flag_is_told_with_the_nearest_and_the_usage_of_its_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words in (
        ["evaluate", "d", "--store", "s", "--basline", "ease"],
        ["evaluate", "--basline=ease", "--store", "s", "d"],
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert said.startswith("usage: lhydra evaluate ")
        assert said.rstrip().endswith("is no flag: the nearest is --baselines")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["evaluate", "d", "--basline", "ease", "--seed", "-5"], "--basline is no flag: the nearest is --baselines"),
        (["evaluate", "d", "--basline", "x", "--stor", "s"], "--basline is no flag: the nearest is --baselines"),
        (["evaluate", "--basline", "ease", "--", "-d"], "--basline is no flag: the nearest is --baselines"),
        (["evaluate", "d", "--log-levl", "debug"], "--log-levl is no flag: the nearest is --log-level"),
        (["recommend", "s", "-k7"], "-k7 is no flag: the nearest is --k; if it is an id, it comes last"),
        (["evaluate", "d", "---"], "--- is no flag: if it is an id, it comes last, after --"),
        (["evaluate", "d", "--a\n\x1b[31m"], "--a\\n\\x1b[31m is no flag: if it is an id"),
    ],
)
def test_the_word_that_is_no_flag_is_the_one_that_is_told(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(words)
    said = capsys.readouterr().err.splitlines()
    assert hint in said[-1]
    assert said[-1].startswith(f"lhydra {words[0]}: error: ")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["serv"], "; the nearest is serve"),
        (["index", "lst"], "; the nearest is list"),
        (["query", "recomend"], "; the nearest is recommend"),
        (["index", "nothing like it"], ")"),
    ],
)
def test_a_misspelt_command_is_told_with_the_nearest(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2
    assert said.endswith(hint)
    assert f"invalid choice: '{words[-1]}' (choose from " in said


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz"])
def test_only_lists_are_replaced_unless_told(
    world: World, installed: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    dataset, recommender = world
    installed(recommender)
    out = tmp_path / f"mine{suffix}"
    arguments = ["recommend", str(dataset.path), "s", "--out", str(out), "--k", "2"]
    plays = pq.read_table(dataset.path / "plays.parquet")
    if suffix == ".parquet":
        pq.write_table(plays, out)
    else:
        content = b"user_id,track_id\na,b\n"
        out.write_bytes(gzip.compress(content) if suffix == ".csv.gz" else content)
    for content in (out.read_bytes(), b"no table at all", b"\x1f\x8b broken"):
        out.write_bytes(content)
        assert main(arguments) == 1
        assert out.read_bytes() == content
        error = capsys.readouterr().err
        assert error.startswith(f"lhydra recommend: --out: found {out}, which holds something else, expected ")
        assert error.count("\n") == 1
    assert main([*arguments, "--overwrite"]) == 0
    assert read(out) == expected_rows(world, 2)
    out.write_bytes(b"")
    for _ in range(2):  # an empty file is nobody's, lists are its own
        assert main(arguments) == 0
        assert read(out) == expected_rows(world, 2)


def test_the_mask_train_leaves_out_what_was_heard_in_train_alone(
    tiny_dataset: Dataset, tiny_store: Path, tmp_path: Path
) -> None:
    """From end to end, with lists as long as the catalogue: a list is all tracks but those that count as heard."""
    plays, ids = tiny_dataset.plays, tiny_dataset.track_ids
    in_valid = np.unique(plays.user[plays.fold == VALID])[:5]
    users = [tiny_dataset.user_ids[user] for user in in_valid]
    lists: dict[str, dict[str, set[str]]] = {}
    for mask in ("train", "seen"):
        out = tmp_path / f"{mask}.csv"
        words = [str(tiny_dataset.path), str(tiny_store), "--out", str(out), "--users", ",".join(users)]
        assert main(["recommend", *words, "--k", str(len(ids)), "--mask", mask]) == 0
        lists[mask] = {user: set() for user in users}
        for user, _, track, _ in read(out):
            lists[mask][user].add(track)
    for user, position in zip(users, in_valid, strict=True):
        for mask, upto in (("train", TRAIN), ("seen", VALID)):
            heard = plays.track[(plays.user == position) & (plays.fold <= upto)]
            assert lists[mask][user] == set(ids) - {ids[track] for track in heard}
    assert lists["train"] != lists["seen"]
