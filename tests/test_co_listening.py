"""Co-listening as a source of candidates: literal scores, the union of a request, and that nothing slips through it."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.bundle import arrays, co_listening_files
from lhydra.bundle.arrays import check_lists
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.candidates import CO_LISTENING, NEAREST
from lhydra.bundle.exact import nearest
from lhydra.bundle.strings import StringColumn
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import Condition, Query, Repeat, UserState
from lhydra.errors import BundleCorrupt
from lhydra.explain.explainer import Explainer
from lhydra.features import item_item
from lhydra.features.co_listening import NEWEST, STRONGEST, CoListening
from lhydra.features.histories import Histories, entry_features, play_weights, relative_weights
from lhydra.recommender import Recommender
from lhydra.training.candidates import Found, choose_shares
from lhydra_index_builder.build import rebuild
from lhydra_index_builder.changes import add, remove
from lhydra_index_builder.config import RebuildSettings
from tests.harness import examples

SHARE, DEPTH = 0.5, 40
REBUILD = RebuildSettings(recall_users=20, gate_users=20, force=True, recipe="flat", depth=DEPTH)


def table(seed: int, n: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    neighbours = np.stack([rng.permutation(n)[:width] for _ in range(n)]).astype(np.int32)
    return neighbours, np.round(rng.normal(0.2, 0.3, (n, width)), 1).astype(np.float16)  # many ties, some below 0


@given(st.integers(0, 1000), st.integers(3, 150), st.integers(1, 400), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@settings(deadline=None, max_examples=examples(25))
def test_candidates_are_those_with_the_highest_literal_score(seed: int, n: int, heard: int, share: float) -> None:
    rng, depth = np.random.default_rng(seed), 30
    neighbours, weights = table(seed, n, min(n, 50))
    played = rng.permutation(n)[:heard]
    histories = Histories.one(played, rng.integers(1, 9, len(played)).astype(np.float32), 1 + np.arange(len(played)))
    relative = relative_weights(play_weights(histories.counts), histories.offsets)
    entry, _ = entry_features(histories, relative)
    free = rng.random(n) < 0.7
    kept = np.zeros((n, n))  # from played to candidate
    for one in range(n):
        speaks = [(-float(w), i) for i in range(n) for j, w in zip(neighbours[i], weights[i], strict=True) if j == one]
        for negative, i in sorted(speaks)[:STRONGEST]:
            kept[one, i] = max(-negative, 0)
    counts = item_item.channel_weights(entry)[-NEWEST:, 0]
    literal = counts.astype(np.float64) @ kept[played[-NEWEST:]] if len(played) else np.zeros(n)
    touched = (kept[played[-NEWEST:]] > 0).any(0) & free
    found = CoListening.of(neighbours, weights, share).candidates(played, entry, free.take, depth)
    best = -np.sort(-literal[touched])[: round(share * depth)]
    assert len(set(found.tolist())) == len(found) == len(best)
    assert touched[found].all()
    np.testing.assert_allclose(literal[found], best, rtol=1e-5)


def test_where_every_pair_is_kept_the_score_is_that_of_the_head() -> None:
    neighbours, weights = table(5, 60, 20)
    weights = np.abs(weights)
    histories = Histories.one(np.arange(12), np.ones(12, np.float32), np.zeros(12, np.int64))
    entry, _ = entry_features(histories, relative_weights(play_weights(histories.counts), histories.offsets))
    every = item_item.scores(neighbours, weights, histories.rows, entry, np.arange(60))[:, 0]
    found = CoListening.of(neighbours, weights, 1.0, strongest=60).candidates(
        histories.rows, entry, lambda rows: np.ones(len(rows), np.bool_), 60
    )
    assert set(found.tolist()) == set(np.flatnonzero(every > 0).tolist())
    assert (np.diff(every[found]) <= 1e-6).all()


def test_tracks_named_by_other_rows_have_the_same_candidates() -> None:
    before = CoListening.of(*table(2, 50, 30), SHARE)
    to = np.random.default_rng(0).permutation(60)[:50].astype(np.int64)
    to[[3, 17]] = -1
    after = before.rearranged(to, 60)
    assert len(after) == 60
    for row in range(60):
        own = after.rows[after.offsets[row] : after.offsets[row + 1]].tolist()
        was = np.flatnonzero(to == row)
        expected = before.rows[before.offsets[was[0]] : before.offsets[was[0] + 1]] if len(was) else before.rows[:0]
        assert own == [one for one in to[expected].tolist() if one >= 0]


def test_a_share_is_taken_where_it_finds_more_targets() -> None:
    """The nearest find the first half, the source the other: of no use, then of use, then more than is there."""
    near, levels = np.arange(10), [(np.arange(100, 100 + n),) for n in (0, 3, 8)]
    options = ((0.0, 0.3, 0.8),)
    nothing = np.empty(0, np.int64)
    assert choose_shares(options, [Found(levels, near, np.arange(10), nothing)], 10) == (0.0,)
    assert choose_shares(options, [Found(levels, near, np.array([0, 1, 102]), nothing)], 10) == (0.3,)
    assert choose_shares(options, [Found(levels, near, np.array([0, 1, 107]), nothing)], 10) == (0.8,)
    assert choose_shares(options, [Found(levels, near, np.array([0, 200]), nothing)], 10) == (0.0,)
    half_more = [Found(levels, near, np.array([0, 1, 102]), nothing)]
    assert choose_shares(options, half_more, 10, least=1.5) == (0.3,)
    assert choose_shares(options, half_more, 10, least=1.51) == (0.0,)  # as if there were no such source


@pytest.fixture(scope="module")
def store(tiny_model: Path, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the tiny model, which was told to take half of its candidates by co-listening."""
    folder = tmp_path_factory.mktemp("co-listening")
    shutil.copytree(tiny_model, folder / "model")
    info = json.loads((folder / "model" / "model.json").read_text())
    info["chosen"]["co-listening share"] = SHARE
    (folder / "model" / "model.json").write_text(json.dumps(info))
    rebuild(folder / "model", tiny_dataset, folder / "store", REBUILD)
    return folder / "store"


@pytest.fixture(scope="module")
def bundle(store: Path) -> Bundle:
    return Bundle.open(store)


@pytest.fixture(scope="module")
def states(tiny_dataset: Dataset) -> list[UserState]:
    return [state for _, state in user_states(tiny_dataset, "now") if len(state.history)][:60]


def by_hand(bundle: Bundle, query: Query, eligible: np.ndarray) -> tuple[set[int], set[int]]:
    """The union and what of it co-listening brings, from the model's own table by a loop over candidates."""
    catalog, recommender = bundle.catalog, Recommender(bundle)
    user = recommender.encode(query.state)
    vector = bundle.embed(user)
    played, sums = user.histories.rows[-NEWEST:], np.zeros(len(catalog))
    weight = item_item.channel_weights(user.entry)[-NEWEST:, 0]
    co_listening = bundle.co_listening
    for row, count in zip(played.tolist(), weight.tolist(), strict=True):
        span = slice(co_listening.offsets[row], co_listening.offsets[row + 1])
        sums[co_listening.rows[span]] += co_listening.weights[span].astype(np.float64) * count
    some = np.flatnonzero((sums > 0) & eligible)
    special = some[np.lexsort((some, -sums[some]))][: round(SHARE * DEPTH)]
    near, _ = nearest(catalog.vectors, vector, DEPTH, np.flatnonzero(~eligible))
    others = near[~np.isin(near, special)][: DEPTH - len(special)]
    return {*special.tolist(), *others.tolist()}, set(special.tolist())


@pytest.mark.parametrize("repeat", list(Repeat))
@pytest.mark.parametrize("filtered", [False, True])
def test_candidates_are_the_union_and_nothing_excluded_or_filtered(
    bundle: Bundle, states: list[UserState], repeat: Repeat, filtered: bool
) -> None:
    rng, catalog, brought = np.random.default_rng(3), bundle.catalog, 0
    recommender, conditions = Recommender(bundle), (Condition("year", min=1990.0, max=2010.0),) if filtered else ()
    for state in states:
        barred = np.sort(rng.permutation(len(catalog))[: rng.integers(0, 30)])
        hashes = np.sort(catalog.hashes[np.isin(catalog.hash_rows, barred)])
        query = Query(10, state, True, hashes, filter=conditions, repeat=repeat)
        eligible = bundle.filters.mask(conditions).copy() if filtered else np.ones(len(catalog), np.bool_)
        eligible[barred] = False
        if repeat in (Repeat.EXCLUDE, Repeat.DECAY, Repeat.LEARNT):
            heard = catalog.rows(state.heard)
            if repeat is Repeat.EXCLUDE:
                eligible[heard[heard >= 0]] = False
        [traced] = recommender.trace_many([(query, lambda: None)])
        assert traced.candidates is not None
        assert traced.answer is not None
        found = set(traced.candidates[0].tolist())
        assert eligible[sorted(found)].all()
        assert len(found) == min(DEPTH, np.count_nonzero(eligible)) or repeat in (Repeat.DECAY, Repeat.LEARNT)
        if repeat in (Repeat.EXCLUDE, Repeat.ALLOW):
            union, special = by_hand(bundle, query, eligible)
            assert found == union
            assert set(traced.brought[CO_LISTENING].tolist()) == special
            brought += len(special - set(traced.brought[NEAREST].tolist()))
        assert traced.answer.candidate_scores.tolist() == sorted(traced.answer.candidate_scores.tolist(), reverse=True)
    assert brought or repeat in (Repeat.DECAY, Repeat.LEARNT)


def test_a_list_tells_which_tracks_co_listening_brought(bundle: Bundle, states: list[UserState]) -> None:
    told: set[str] = set()
    for state in states[:20]:
        query = Query(20, state, True, repeat=Repeat.EXCLUDE, explain=True)
        [found] = Explainer(Recommender(bundle)).recommend_many([(query, lambda: None)])
        assert not isinstance(found, Exception)
        for row, sources in zip(found.rows.tolist(), found.sources, strict=True):
            assert (CO_LISTENING in sources) == (row in found.brought[CO_LISTENING])
            told |= set(sources)
    assert told == {NEAREST, CO_LISTENING}


def test_company_changes_no_answer(bundle: Bundle, states: list[UserState]) -> None:
    queries = [Query(10, state, True, repeat=Repeat.EXCLUDE) for state in states[:8]]
    together = Recommender(bundle).recommend_many([(query, lambda: None) for query in queries])
    for query, answer in zip(queries, together, strict=True):
        alone = Recommender(bundle).recommend(query)
        assert not isinstance(answer, Exception)
        np.testing.assert_array_equal(answer.rows, alone.rows)
        np.testing.assert_array_equal(answer.logits, alone.logits)


def test_tracks_added_and_removed_leave_what_co_listening_brings(
    store: Path, tiny_dataset: Dataset, states: list[UserState], tmp_path: Path
) -> None:
    shutil.copytree(store, tmp_path / "store")
    before = Bundle.open(store)
    (tmp_path / "new.csv").write_text("track_id\n0-new\nzz-new\n")
    add(tmp_path / "new.csv", tmp_path / "store", REBUILD)
    after = Bundle.open(tmp_path / "store")
    assert len(after.co_listening) == len(before.co_listening) + 2

    def names(bundle: Bundle, state: UserState) -> list[str]:
        [traced] = Recommender(bundle).trace_many([(Query(10, state, True, repeat=Repeat.EXCLUDE), lambda: None)])
        return bundle.catalog.track_ids(traced.brought[CO_LISTENING])

    for state in states[:20]:
        assert names(after, state) == names(before, state)
    gone = names(after, states[0])[0]
    remove([gone], tmp_path / "store", REBUILD)
    assert gone not in names(Bundle.open(tmp_path / "store"), states[0])


def test_without_a_share_nothing_is_kept_and_the_nearest_are_served(
    tiny_store: Path, tiny_model: Path, bundle: Bundle, states: list[UserState]
) -> None:
    """A model of before says nothing of a share; its bundle is as it was."""
    info = json.loads((tiny_model / "model.json").read_text())
    assert not info["chosen"].pop("co-listening share")  # the tiny catalogue is found whole by the nearest
    plain = Bundle.open(tiny_store)
    assert not len(plain.co_listening)
    assert not co_listening_files.names_in(tiny_store / plain.bundle_id)
    answer = Recommender(plain).recommend(Query(10, states[0], True))
    assert not answer.brought
    assert len(bundle.co_listening) == len(bundle.catalog)


def test_damaged_files_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    whole = bundle.co_listening
    for broken in (
        dataclasses.replace(whole, rows=whole.rows[:-1]),
        dataclasses.replace(whole, offsets=whole.offsets[: len(whole) // 2]),
        dataclasses.replace(whole, weights=whole.weights.astype(np.float32)),
        dataclasses.replace(whole, share=np.zeros(2, np.float32)),
    ):
        co_listening_files.save(tmp_path, broken)
        with pytest.raises(BundleCorrupt):
            co_listening_files.open_co_listening(tmp_path, co_listening_files.FILES)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what is in memory of a mapped file")
def test_what_only_checks_read_is_not_in_memory(tmp_path: Path) -> None:
    n = 200_000
    rows, weights = np.arange(n, dtype=np.int32), np.ones(n, np.float16)
    made = CoListening(np.arange(n + 1), rows, weights, np.array([0.5], np.float32))
    co_listening_files.save(tmp_path, made)
    opened = co_listening_files.open_co_listening(tmp_path, co_listening_files.FILES)
    resident: dict[str, int] = {}
    name = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if not first.endswith(":"):
            name = rest.split()[-1]
        elif first == "Rss:" and name.startswith(f"{tmp_path}/"):
            resident[Path(name).name] = int(rest.split()[0])
    assert resident == dict.fromkeys(co_listening_files.FILES[:3], 0)
    assert opened.rows[-1] == n - 1  # it is there all the same


@pytest.mark.parametrize(
    ("offsets", "entries", "sound"),
    [
        ([0], 0, True),
        ([0, 2, 2, 3], 3, True),
        ([0, *[7] * 70_000, 9], 9, True),  # more than a block
        ([], 0, False),
        ([1, 3], 3, False),
        ([0, 2], 3, False),
        ([0, 2, 1, 3], 3, False),
        ([0, *[7] * 65_534, 8, 7, 9], 9, False),  # it goes down where a block begins
    ],
    ids=range(8),
)
def test_offsets_cut_entries_into_lists(offsets: list[int], entries: int, sound: bool, tmp_path: Path) -> None:
    path = tmp_path / "offsets.npy"
    np.save(path, np.array(offsets, np.int64))
    if sound:
        check_lists(path, entries)
    else:
        with pytest.raises(BundleCorrupt, match="other offsets"):
            check_lists(path, entries)


def test_offsets_take_four_bytes_where_that_is_enough_and_eight_open_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = CoListening(
        np.array([0, 1, 3]), np.array([1, 0, 1], np.int32), np.ones(3, np.float16), np.ones(1, np.float32)
    )
    texts = StringColumn.of(["a", "", "bc"])
    for name, most, width in (("narrow", arrays.MAX_NARROW, 4), ("wide", 1, 8)):
        monkeypatch.setattr(arrays, "MAX_NARROW", most)
        monkeypatch.setattr(co_listening_files, "MAX_NARROW", most)
        folder = tmp_path / name
        folder.mkdir()
        co_listening_files.save(folder, made)
        with arrays.GrowingArrays(folder) as growing:
            growing.append("texts", texts.data)
            for length in np.diff(texts.offsets):
                growing.append_lengths("texts_offsets", length[None])
        opened = co_listening_files.open_co_listening(folder, co_listening_files.FILES)
        column = StringColumn.open(folder, "texts")
        assert (opened.offsets.itemsize, column.offsets.itemsize) == (width, width)
        assert (opened.offsets.tolist(), column.at(np.arange(3))) == ([0, 1, 3], ["a", "", "bc"])
        assert sorted(path.suffix for path in folder.iterdir()) == [".npy"] * 6
