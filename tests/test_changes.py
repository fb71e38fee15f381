"""Tracks added and removed between rebuilds: new ones are retrievable, removed ones never return, all else stays."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lhydra.bundle import listed
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.exact import nearest
from lhydra.bundle.history_vectors import HistoryVectors
from lhydra.bundle.manifest import FORMAT, Manifest, current_bundle_id
from lhydra.bundle.networks import ItemTower
from lhydra.bundle.title_words import FILES, TitleWords
from lhydra.cli import main
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import Condition, Query, UserState, track_hashes
from lhydra.errors import DataError
from lhydra.recommender import Recommender
from lhydra_index_builder import changes
from lhydra_index_builder.build import rebuild
from lhydra_index_builder.config import RebuildSettings
from lhydra_protos.v1 import recommender_pb2 as pb
from tests.test_bundle import reseal

CONFIG = RebuildSettings(recall_users=20, gate_users=20, max_shrink=1.0, max_changed_lists=1.0, max_recall_miss=0.5)


@pytest.fixture(params=["flat", "IVF8,SQ8", "HNSW8"], scope="module")
def base(
    request: pytest.FixtureRequest, tiny_model: Path, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store with one bundle of each kind of index."""
    store = tmp_path_factory.mktemp("base") / "store"
    rebuild(tiny_model, tiny_dataset, store, replace(CONFIG, recipe=request.param, depth=150))
    return store


@pytest.fixture
def store(base: Path, tmp_path: Path) -> Path:
    shutil.copytree(base, tmp_path / "store")
    return tmp_path / "store"


def tracks_file(dataset: Dataset, folder: Path, ids: Iterable[str], like: int = 0) -> Path:
    """A Parquet file of tracks with these ids and the content of tracks of the dataset, from `like` on."""
    ids = list(ids)
    table = dataset.tracks.slice(like, len(ids)).drop_columns(["train_plays", "train_listeners"])
    pq.write_table(table.set_column(0, "track_id", pa.array(ids)), folder / "tracks.parquet")
    return folder / "tracks.parquet"


def answers(bundle: Bundle, states: Iterable[UserState], k: int = 1000) -> list[list[str]]:
    """Every user's list by track id, everything reranked."""
    recommender = Recommender(bundle, depth=2000)
    lists = (recommender.recommend(Query(k, state, True, state.heard)).rows for state in states)
    return [bundle.catalog.track_ids(rows) for rows in lists]


def some_states(dataset: Dataset, n: int = 12) -> list[UserState]:
    return [state for _, state in user_states(dataset, "test", positions=np.arange(n))]


NEW = ("A-first", "T0000123-between", "T0000123-between2", "Zz-last", "é-after")


def test_added_tracks_are_where_their_ids_belong_with_their_content(
    store: Path, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    before = Bundle.open(store)
    built, added, restored = changes.add(tracks_file(tiny_dataset, tmp_path, NEW, like=40), store, CONFIG)
    bundle = Bundle.open(store)
    assert (added, restored, built.bundle_id) == (len(NEW), 0, bundle.bundle_id)
    catalog = bundle.catalog
    ids = catalog.track_ids(np.arange(len(catalog)))
    assert ids == sorted([*tiny_dataset.track_ids, *NEW], key=str.encode)
    assert len(catalog) == len(bundle.index) == len(before.catalog) + len(NEW)
    # what was there is what it was
    was = before.catalog.rows(track_hashes(ids))
    old = np.flatnonzero(was >= 0)
    for name in ("vectors", "dense", "ids", "item_rows", "popularity", "share"):
        np.testing.assert_array_equal(getattr(catalog, name)[old], getattr(before.catalog, name)[was[old]])
    np.testing.assert_array_equal(catalog.history.table[old], before.catalog.history.table[was[old]])
    assert catalog.titles(old) == before.catalog.titles(was[old])
    assert catalog.artists(old) == before.catalog.artists(was[old])
    # what is new is the item tower on its content, the id unknown to training
    spec, tower = bundle.spec, ItemTower(store / bundle.bundle_id / "item_tower.onnx")
    columns = {name: values[: len(NEW)] for name, values in tiny_dataset.track_columns(40, len(NEW)).items()}
    encoded = spec.encode_tracks({**columns, "track_id": list(NEW)})
    rows = catalog.rows(track_hashes(NEW))
    vectors, history = tower.embed(encoded)
    np.testing.assert_allclose(catalog.vectors[rows], vectors, rtol=2**-10, atol=1e-4)  # rounded to halves
    np.testing.assert_array_equal(
        catalog.history.at(rows[None]), HistoryVectors.of(history).at(np.arange(len(NEW))[None])
    )
    # and so are their parts of replies and their columns to filter on
    assert bundle.replies is not None
    parts = pb.RecommendResponse.FromString(b"".join(bundle.replies.raw()))
    assert [part.track_id for part in parts.tracks] == catalog.track_ids(np.arange(len(catalog)))
    assert [part.title for part in parts.tracks] == catalog.titles(np.arange(len(catalog)))
    genres = {*columns["genre"]}
    mask = bundle.filters.mask((Condition("genre", any_of=tuple(genres)),))
    assert mask[rows].all()
    fresh = np.zeros(len(catalog), np.bool_)
    fresh[rows] = True
    assert mask[~fresh].tolist() == before.filters.mask((Condition("genre", any_of=tuple(genres)),)).tolist()
    for country in before.catalog.charts.at(np.arange(len(before.catalog.charts))):
        (then, _), (now, _) = before.catalog.chart(country), catalog.chart(country)
        assert catalog.track_ids(now) == before.catalog.track_ids(then)
    assert not catalog.item_rows[rows].any()
    assert catalog.titles(rows) == tiny_dataset.tracks["name"].to_pylist()[40 : 40 + len(NEW)]
    # popularity has them last, ties by row
    shares = catalog.share[catalog.popular]
    order = np.lexsort((catalog.popular, -shares))
    assert order.tolist() == list(range(len(order)))
    assert built.manifest.changes == {"base": before.bundle_id, "added": 5, "removed": 0, "due": ""}
    assert pq.read_table(store / bundle.bundle_id / "added.parquet")["track_id"].to_pylist() == sorted(
        NEW, key=str.encode
    )


def test_added_tracks_are_retrieved(store: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    """A new track is found by its own vector, by every recipe; and it may stand in a history."""
    changes.add(tracks_file(tiny_dataset, tmp_path, NEW, like=40), store, CONFIG)
    bundle = Bundle.open(store)
    for row in bundle.catalog.rows(track_hashes(NEW)):
        found, _ = bundle.index.search(bundle.catalog.vectors[row], 20)
        assert row in found
    lists = answers(bundle, some_states(tiny_dataset))
    assert all(set(NEW) <= set(own) for own in lists)


def test_lists_without_the_new_tracks_are_the_lists_of_before(
    store: Path, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    states = some_states(tiny_dataset)
    before = answers(Bundle.open(store), states)
    changes.add(tracks_file(tiny_dataset, tmp_path, NEW, like=40), store, CONFIG)
    after = answers(Bundle.open(store), states)
    assert [[track for track in own if track not in NEW] for own in after] == before


def test_removed_tracks_never_return_and_still_count_in_histories(store: Path, tiny_dataset: Dataset) -> None:
    states = some_states(tiny_dataset)
    before = Bundle.open(store)
    gone = {track for own in answers(before, states, k=10) for track in own[:5]}
    gone |= {before.catalog.track_ids(before.catalog.rows(states[0].history["track"]))[0]}
    built, removed = changes.remove(sorted(gone), store, CONFIG)
    assert removed == len(gone) == built.manifest.changes["removed"]
    bundle = Bundle.open(store)
    lists = answers(bundle, states)
    assert not gone & {track for own in lists for track in own}
    assert [[t for t in own if t not in gone] for own in answers(before, states)] == lists
    nobody = Recommender(bundle).recommend(Query(500)).rows
    assert len(nobody) == bundle.catalog.n_eligible == len(before.catalog) - len(gone)
    assert not gone & set(bundle.catalog.track_ids(nobody))
    # the user vector is what it was: the history still holds what was removed
    old, new = Recommender(before).encode(states[0]), Recommender(bundle).encode(states[0])
    np.testing.assert_array_equal(old.histories.rows, new.histories.rows)
    # exactly k, or all that are eligible, through the exact fallback too
    vector = before.embed(old)
    exact, _ = nearest(bundle.catalog.vectors, vector, 30, bundle.catalog.removed)
    if built.manifest.recipe == "flat":
        assert bundle.index.search(vector, 30)[0].tolist() == exact.tolist()


def test_adding_after_removing_and_bringing_back(store: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Rows move under tombstones and the map; a removed track that is added again is as it was before."""
    states = some_states(tiny_dataset)
    first = answers(Bundle.open(store), states)
    ids = tiny_dataset.track_ids
    gone = [ids[3], ids[200], ids[-1]]
    changes.remove(gone, store, CONFIG)
    changes.add(tracks_file(tiny_dataset, tmp_path, NEW[:3], like=40), store, CONFIG)
    changes.remove([NEW[1]], store, CONFIG)
    changes.add(tracks_file(tiny_dataset, tmp_path, NEW[3:], like=60), store, CONFIG)
    bundle = Bundle.open(store)
    assert bundle.catalog.track_ids(bundle.catalog.removed) == sorted([*gone, NEW[1]])
    lists = answers(bundle, states)
    assert all(not {*gone, NEW[1]} & set(own) for own in lists)
    back = pa.table({"track_id": [gone[1], NEW[1], "Q-new"]})
    pq.write_table(back, tmp_path / "back.parquet")
    built, added, restored = changes.add(tmp_path / "back.parquet", store, CONFIG)
    assert (added, restored) == (1, 2)
    assert built.manifest.changes | {"due": ""} == {
        **{"added": 6, "removed": 2, "due": ""},
        "base": listed.entries(store)[-1].bundle_id,
    }
    changes.add(write_ids(tmp_path, [gone[0], gone[2]]), store, CONFIG)
    last = Bundle.open(store)
    assert not len(last.catalog.removed)
    assert [[t for t in own if t in set(ids)] for own in answers(last, states)] == first


def write_ids(folder: Path, ids: list[str]) -> Path:
    path = folder / "ids.csv"
    path.write_text("track_id\n" + "".join(f"{track}\n" for track in ids))
    return path


def test_files_that_stay_the_same_are_the_same_files(store: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    first = store / current_bundle_id(store)
    changes.remove([tiny_dataset.track_ids[0]], store, CONFIG)
    second = store / current_bundle_id(store)
    shared = {path.name for path in second.iterdir() if path.samefile(first / path.name)}
    assert set(Manifest.read(second).files) - shared == {"removed.npy"}
    shutil.rmtree(first)  # self-contained all the same
    Bundle.open(store)


def assert_words_of_its_texts(bundle: Bundle) -> None:
    made = TitleWords.of(bundle.catalog.title_texts, bundle.catalog.artist_texts)
    assert bundle.words is not None
    assert bundle.words.words.raw() == made.words.raw()
    np.testing.assert_array_equal(bundle.words.offsets, made.offsets)
    np.testing.assert_array_equal(bundle.words.rows, made.rows)


def test_a_changed_bundle_holds_the_words_of_its_own_texts(store: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Added ones too; and an older bundle without words gets them with its first change."""
    changes.add(tracks_file(tiny_dataset, tmp_path, NEW, like=40), store, CONFIG)
    assert_words_of_its_texts(Bundle.open(store))
    folder = store / current_bundle_id(store)
    manifest = Manifest.read(folder)
    replace(manifest, files={name: info for name, info in manifest.files.items() if name not in FILES}).write(folder)
    for name in FILES:
        (folder / name).unlink()
    assert Bundle.open(store).words is None
    changes.remove([tiny_dataset.track_ids[0]], store, CONFIG)
    assert_words_of_its_texts(Bundle.open(store))


def test_a_rebuild_is_due_when_much_has_changed(store: Path, tiny_dataset: Dataset) -> None:
    built, _ = changes.remove(tiny_dataset.track_ids[:10], store, CONFIG)
    assert built.manifest.changes["due"] == ""
    built, _ = changes.remove(tiny_dataset.track_ids[10:30], store, CONFIG)
    base = listed.entries(store)[-1].bundle_id
    assert built.manifest.changes["due"] == f"8% of the tracks were added or removed since {base}"


def test_a_rebuild_does_not_bring_back_what_was_removed(
    store: Path, tiny_model: Path, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    gone = tiny_dataset.track_ids[7:10]
    recipe = Bundle.open(store).index.recipe
    changes.add(tracks_file(tiny_dataset, tmp_path, NEW, like=40), store, CONFIG)
    changes.remove([*gone, NEW[0]], store, CONFIG)
    built = rebuild(tiny_model, tiny_dataset, store, replace(CONFIG, recipe=recipe, depth=150))
    bundle = Bundle.open(store)
    assert bundle.catalog.track_ids(bundle.catalog.removed) == gone  # what was added is not in the dataset
    assert built.manifest.changes == {"base": "", "added": 0, "removed": 3, "due": ""}
    assert not set(gone) & {track for own in answers(bundle, some_states(tiny_dataset)) for track in own}
    changes.add(write_ids(tmp_path, gone), store, CONFIG)
    assert not len(Bundle.open(store).catalog.removed)


# -- what is refused --------------------------------------------------------------------------------------------


def test_a_rebuild_over_a_bundle_that_no_longer_opens_does_not_bring_back_either(
    store: Path, tiny_model: Path, tiny_dataset: Dataset
) -> None:
    """As after an upgrade: CURRENT is of an earlier format, its list of removed tracks still counts."""
    gone = tiny_dataset.tracks["track_id"].to_pylist()[3:6]
    built, _ = changes.remove(gone, store, CONFIG)
    manifest = store / built.bundle_id / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"format": {FORMAT}', '"format": 3'))
    again = rebuild(tiny_model, tiny_dataset, store, CONFIG)
    bundle = Bundle.open(store, again.bundle_id)
    assert bundle.catalog.track_ids(bundle.catalog.removed) == gone


def test_what_cannot_be_added_or_removed_is_one_line(
    tiny_store: Path, tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_store, tmp_path / "store", ignore=shutil.ignore_patterns("users.lmdb"))
    store, ids = tmp_path / "store", tiny_dataset.track_ids
    before = sorted(path.name for path in store.iterdir() if not path.name.startswith("."))
    bad = tmp_path / "bad.csv"
    cases: list[tuple[list[str], str]] = [
        (
            ["add", str(write_ids(tmp_path, [ids[0], "new"]))],
            f"found 1 tracks of the catalogue ({ids[0]}), expected new",
        ),
        (["add", str(tmp_path / "nowhere.csv")], "found no such file or folder"),
        (["add", str(tmp_path)], "found no tracks.* in it"),
        (["add", str(bad)], "found the columns name, expected a column track_id"),
        (["remove", ids[0], "nobody"], "found 1 unknown ('nobody'), expected tracks of the catalogue"),
        (["remove"], "ID: found none, expected track ids, as words or by --from FILE"),
    ]
    bad.write_text("name\nx\n")
    for words, expected in cases:
        assert main(["index", *words, "--store", str(store)]) == (2 if words == ["remove"] else 1)
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1
    assert sorted(path.name for path in store.iterdir() if not path.name.startswith(".")) == before
    bad.write_text('track_id,name\n"",x\n')
    with pytest.raises(DataError, match=r"no usable row \(bad.csv: 1 row dropped: empty track_id \(line 2\)\)"):
        changes.add(bad, store, CONFIG)
    said: list[str] = []
    bad.write_text("track_id,foo\nfresh,x\n")
    changes.add(bad, store, CONFIG, log=said.append)
    assert any("bad.csv: columns not used: foo; known are " in line for line in said)


def test_the_commands_say_what_they_did(
    tiny_store: Path, tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the users of the store's own user store before the gate."""
    shutil.copytree(tiny_store, tmp_path / "store")
    store = str(tmp_path / "store")
    new = tmp_path / "new.csv"
    new.write_text(
        "track_id,name,artist,genre,tags,energy,unheard_of\nN1,Song,Ana Sol,Rock,rock|indie,.5,x\nN2,,,,,,\n"
    )
    assert main(["index", "add", str(new), "--store", store]) == 0
    printed = capsys.readouterr().out
    assert "2 tracks added" in printed
    assert "changed lists  passed" in printed  # real users were asked
    ids = tmp_path / "gone.txt"
    ids.write_text(f"{tiny_dataset.track_ids[5]}\nN2\n")
    assert main(["index", "remove", "N1", "--from", str(ids), "--store", store]) == 0
    assert "3 tracks removed" in capsys.readouterr().out
    assert main(["index", "list", "--store", store]) == 0
    assert "+2 -3" in capsys.readouterr().out.splitlines()[1]
    assert main(["index", "verify", "--store", store]) == 0
    capsys.readouterr()
    assert main(["index", "add", str(write_ids(tmp_path, ["N1"])), "--store", store, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changes"]["removed"] == 2


def test_a_bundle_of_before_answers_alike_and_tracks_are_added_to_it_in_its_own_way(
    store: Path, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    """Its history vectors are halves: here those that bytes are widened to, so that its golden users hold."""
    before = Bundle.open(store)
    folder, rows = store / before.bundle_id, np.arange(len(before.catalog))
    (folder / "history.npy").unlink()  # bundles share files by hard links
    np.save(folder / "history.npy", before.catalog.history.at(rows[None])[0])
    reseal(folder)
    halves = Bundle.open(store)
    assert halves.catalog.history.table.dtype == np.float16
    for _, state in list(user_states(tiny_dataset, "valid"))[:20]:
        found, expected = (Recommender(bundle).recommend(Query(k=20, state=state)) for bundle in (halves, before))
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)  # by the graph, which halves are for
    changes.add(tracks_file(tiny_dataset, tmp_path, NEW, like=40), store, CONFIG)
    history = Bundle.open(store).catalog.history.table
    assert history.dtype == np.float16
    assert history.shape == (len(rows) + len(NEW), halves.catalog.history.dim)
