"""What comes next, end to end: learnt from a world whose rule is known, published, served, and added to."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lhydra import cli, kernels
from lhydra.bundle import sequence_files
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.candidates import StateRows, encode_states, listening_of, moment_of
from lhydra.bundle.model import Model
from lhydra.data.dataset import TRAIN, VALID, Dataset, user_states
from lhydra.data.plays import with_plays
from lhydra.data.prepare import prepare
from lhydra.data.settings import PrepareSettings
from lhydra.domain import I64, Query, Recent, Repeat, Repeats, UserState, no_repeats, track_hashes
from lhydra.errors import BundleCorrupt
from lhydra.evaluation.lists import write_lists
from lhydra.explain.explainer import Explainer
from lhydra.features.moment import _LAWS, CONTEXT, N_OWN, SIGNALS, Moment
from lhydra.queries import Request, to_query
from lhydra.recommender import Recommender
from lhydra.repeats import repeats_of
from lhydra.training.config import TrainSettings
from lhydra.training.data import Targets, load
from lhydra.training.moment_head import (
    LEAST_JUDGED,
    LEVELLED,
    LIFTS,
    MOST_PAIRS,
    Prepared,
    _calibrate,
    _ndcg,
    _pairs,
    _rare_lift,
)
from lhydra.training.moment_network import MomentHead
from lhydra.training.moments import MIN_MOMENTS, find, listenings, sequences_of
from lhydra.training.progress import MomentsFitted, Progress
from lhydra.training.train import train
from lhydra.training.warm import _moments, parent_of
from lhydra_index_builder import depth as depths
from lhydra_index_builder.build import rebuild
from lhydra_index_builder.changes import add, remove
from lhydra_index_builder.config import RebuildSettings
from tests.compiled_kernels import where_a_compiler_is
from tests.quick_export import quickly

USERS, TRACKS, SESSIONS, SESSION = 80, 60, 14, 5
DAY, BEGIN = 86_400, 1_600_000_000
K = 10


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sessions that go round in circles of six: after track t comes the next of its circle; each user keeps to one."""
    folder = tmp_path_factory.mktemp("moments")
    (folder / "source").mkdir()
    rng = np.random.default_rng(0)
    with (folder / "source" / "plays.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["user_id", "track_id", "timestamp"])
        for user in range(USERS):
            own = rng.integers(0, TRACKS // 6, 2)
            for session in range(SESSIONS):
                circle, place = own[session % 2], rng.integers(0, 6)
                for i in range(SESSION):
                    track = 6 * circle + (place + i) % 6 if rng.random() < 0.9 else rng.integers(0, TRACKS)
                    table.writerow([f"u{user}", f"t{track:02}", BEGIN + session * 3 * DAY + i * 200 + user])
    options = PrepareSettings(split="next-session", valid_sessions=2, test_sessions=2)
    prepare(folder / "source", folder / "dataset", options)
    return Dataset.open(folder / "dataset")


@pytest.fixture(scope="module")
def model(world: Dataset) -> Path:
    """A model of the world; its head has learnt what comes next."""
    folder = world.path.parent / "model"
    with quickly():
        train(world, folder, TrainSettings(epochs=2, dim=16, hidden=16, head_epochs=1, depth=30, threads=1))
    return folder


@pytest.fixture(scope="module")
def store(world: Dataset, model: Path) -> Path:
    """A store with a bundle of the model."""
    folder = world.path.parent / "store"
    rebuild(model, world, folder, RebuildSettings(recall_users=20, gate_users=20))
    return folder


@pytest.fixture(scope="module")
def recommender(store: Path) -> Recommender:
    return Recommender(Bundle.open(store), depth=30)


@pytest.fixture(scope="module")
def states(world: Dataset) -> list[UserState]:
    return [state for _, state in with_plays(world, "test", user_states(world, "test"))]


def fitted_to(inputs: torch.Tensor, context: torch.Tensor) -> MomentHead:
    """A part of inputs without padding."""
    return MomentHead.fitted_to(inputs, torch.ones(inputs.shape[:2], dtype=torch.bool), context)


def listed(recommender: Recommender, state: UserState, repeat: Repeat, now: int, k: int = K) -> list[str]:
    answer = recommender.recommend(Query(k, state, True, repeat=repeat, now=now))
    return recommender.catalog.track_ids(answer.rows)


def session_of(tracks: list[str], now: int, repeat: Repeat) -> Request:
    class Entry:
        def __init__(self, track_id: str) -> None:
            self.track_id, self.timestamp_s, self.skipped, self.completed = track_id, 0, None, None

    return Request("u", K, session=[Entry(track) for track in tracks], now=now, repeat=repeat)


def test_what_follows_in_the_session_comes_first(recommender: Recommender, states: list[UserState]) -> None:
    """After three tracks of a circle the fourth is right 9 times in 10; chance would be 1 in 60."""
    now, right, top = BEGIN + 60 * DAY, 0, 0
    for n, state in enumerate(states):
        most = state.history["track"][[np.argmax(state.history["count"])]]
        [favourite] = recommender.catalog.track_ids(recommender.catalog.rows(most))
        circle, place = int(favourite[1:]) // 6, n % 6
        played = [f"t{6 * circle + (place + i) % 6:02}" for i in range(3)]
        query = to_query(session_of(played, now, Repeat.ALLOW), state, now)
        found = recommender.catalog.track_ids(recommender.recommend(query).rows)
        right += found[0] == f"t{6 * circle + (place + 3) % 6:02}"
        top += f"t{6 * circle + (place + 3) % 6:02}" in found[:3]
    assert right >= 0.5 * len(states)
    assert top >= 0.8 * len(states)


def test_a_play_moves_the_next_list_of_an_experienced_user(recommender: Recommender, states: list[UserState]) -> None:
    now, moved = BEGIN + 60 * DAY, []
    for state in states:
        before = set(listed(recommender, state, Repeat.ALLOW, now))
        query = to_query(session_of(["t07"], now, Repeat.ALLOW), state, now)
        moved.append(len(before - set(recommender.catalog.track_ids(recommender.recommend(query).rows))))
    assert np.mean(moved) >= 1.5


def test_new_tracks_stand_in_the_same_order_with_and_without_repeats(
    recommender: Recommender, states: list[UserState]
) -> None:
    """One score for all: a list with repeats holds the new tracks in the order of the list without, not pasted."""
    now = BEGIN + 60 * DAY
    for state in states[:40]:
        heard = set(recommender.catalog.track_ids(recommender.catalog.rows(state.heard)))
        everything = listed(recommender, state, Repeat.ALLOW, now, TRACKS)
        assert len(set(everything)) == TRACKS  # exactly k, or all that are eligible
        fresh = [track for track in everything if track not in heard]
        assert fresh == listed(recommender, state, Repeat.EXCLUDE, now, TRACKS)
        assert everything == listed(recommender, state, Repeat.LEARNT, now, TRACKS)
        assert 0 < len(fresh) < TRACKS


def test_the_depth_is_measured_on_the_candidates_that_are_served(
    recommender: Recommender, states: list[UserState], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows the last plays is among them, so a small depth loses less than the nearest alone would say."""
    monkeypatch.setattr(depths, "DEPTHS", (30,))
    found = depths.lists(recommender, states, 1)
    for state, rows in zip(states, found.by_depth[30], strict=True):
        served = recommender.recommend(Query(K, state, True, repeat=Repeat.EXCLUDE)).rows
        assert rows[rows >= 0].tolist() == served.tolist()


def test_company_changes_no_answer(recommender: Recommender, states: list[UserState]) -> None:
    queries = [Query(K, state, True, repeat=Repeat.ALLOW, now=BEGIN + 60 * DAY) for state in states[:8]]
    together = recommender.recommend_many([(query, lambda: None) for query in queries])
    for query, answer in zip(queries, together, strict=True):
        alone = Recommender(recommender.bundle, depth=30).recommend(query)
        assert not isinstance(answer, Exception)
        np.testing.assert_array_equal(answer.rows, alone.rows)
        np.testing.assert_array_equal(answer.logits, alone.logits)


@pytest.mark.parametrize("repeat", list(Repeat))
def test_the_sources_of_a_list_are_those_of_the_request(
    recommender: Recommender, states: list[UserState], repeat: Repeat
) -> None:
    shares = np.array([0.3, 0.3, 0.2], np.float32)  # with so few tracks none were worth it
    bundle = replace(recommender.bundle, sequences=replace(recommender.bundle.sequences, shares=shares))
    explainer, now, told = Explainer(Recommender(bundle)), BEGIN + 60 * DAY, set()
    for state in states[:20]:
        query = Query(TRACKS, state, True, repeat=repeat, now=now, depth=TRACKS, explain=True)
        (found,) = explainer.recommend_many([(query, lambda: None)])
        assert not isinstance(found, Exception)
        moment = moment_of(bundle, state, encode_states(bundle, [state]), now)
        assert moment is not None
        own, following, together = moment.candidates(
            bundle.sequences.told_shares, TRACKS, repeats=repeat is not Repeat.EXCLUDE
        )
        for row, sources in zip(found.rows.tolist(), found.sources, strict=True):
            assert {"own", "following", "together"} & set(sources) == {
                *(["own"] if row in own else []),
                *(["following"] if row in following else []),
                *(["together"] if row in together else []),
            }
            told |= set(sources)
    assert told == {"nearest", "following", "together"} | ({"own"} if repeat is not Repeat.EXCLUDE else set())


@where_a_compiler_is
def test_a_moment_of_records_is_that_of_the_listening_that_they_tell(
    recommender: Recommender, states: list[UserState]
) -> None:
    """Also where the catalogue lacks some of the tracks, and nothing is known of repeats."""
    bundle, rng = recommender.bundle, np.random.default_rng(0)
    rows = rng.permutation(len(bundle.catalog))[:40]
    for state in [*states[:5], UserState()]:
        history, recent = state.history.copy(), state.recent.copy()
        history["track"][::3] += 1
        recent["track"][1::2] += 1
        for repeats in (repeats_of(state), no_repeats()):
            less = replace(state, history=history, recent=recent, repeats=repeats)
            of = StateRows.of(bundle.catalog, less)
            user = encode_states(bundle, [less], [of])
            moment, told = moment_of(bundle, less, user, 0), listening_of(bundle.catalog, less, user, 0, of)
            assert moment is not None
            expected = Moment(told, bundle.sequences)
            np.testing.assert_array_equal(moment.signals(rows), expected.signals(rows))
            np.testing.assert_array_equal(moment.context(), expected.context())
            for one, other in zip(moment.candidates((1, 1, 1), 9), expected.candidates((1, 1, 1), 9), strict=True):
                np.testing.assert_array_equal(one, other)
            np.testing.assert_array_equal(moment.without(rows[0]).context(), expected.without(rows[0]).context())


@where_a_compiler_is
def test_records_that_do_not_fit_are_an_error(recommender: Recommender, states: list[UserState]) -> None:
    bundle, state = recommender.bundle, next(state for state in states if len(state.history) > 1)
    of = StateRows.of(bundle.catalog, state)
    known, held, last = encode_states(bundle, [state], [of]).histories, repeats_of(state), state.recent
    cases: list[tuple[I64, Repeats, Recent]] = [
        (known.rows, held, last[1:]),
        (known.rows, held, state.history[: len(last)]),
        (known.rows, held[1:], last),
        (known.rows[1:], held, last),
    ]
    for rows, repeats, plays in cases:
        n, tables = len(bundle.catalog), bundle.sequences.compiled
        with pytest.raises(ValueError, match=r"not|differ in length"):
            kernels.compiled.CompiledMoment(_LAWS, tables, n, 0).recorded(
                rows, known.counts, known.times, of.history, repeats, of.recent, plays
            )


def test_exclusions_hold_for_every_source(recommender: Recommender, states: list[UserState]) -> None:
    rng = np.random.default_rng(1)
    for state in states[:30]:
        barred = [f"t{n:02}" for n in rng.permutation(TRACKS)[:40]]
        query = Query(TRACKS, state, True, exclude=track_hashes(barred), repeat=Repeat.ALLOW, now=BEGIN + 60 * DAY)
        found = recommender.catalog.track_ids(recommender.recommend(query).rows)
        assert set(found) == {f"t{n:02}" for n in range(TRACKS)} - set(barred)


def test_places_inside_sessions_are_asked_for_as_far_as_the_limit_leaves_room(world: Dataset) -> None:
    sessions = 2 * USERS  # of the validation fold, with five plays each
    for at_most, expected in ((100, 100), (3 * sessions, 3), (4 * sessions, 4), (10**6, SESSION)):
        asked = find(world, at_most, 0)
        assert asked is not None
        assert len(asked) == (expected if expected == at_most else expected * sessions)
        assert len(set(asked.cut.tolist())) == len(asked)


def test_what_is_known_at_a_moment_is_what_a_user_store_would_hold(world: Dataset) -> None:
    asked = find(world, 6_000, 0)
    assert asked is not None
    for i, known in enumerate(listenings(world, asked)[:20]):
        begin = int(np.searchsorted(world.events.user, asked.user[i]))
        before = world.events.track[begin : asked.cut[i]]
        assert known.counts.sum() == len(before)
        assert set(known.rows) == set(before.tolist())
        np.testing.assert_array_equal(known.recent, before[-256:])
        assert set(asked.targets[i]) <= set(world.events.track[asked.cut[i] :].tolist())
        assert world.events.fold[asked.cut[i]] == VALID


def test_the_tables_of_the_bundle_are_those_of_the_train_fold(world: Dataset, store: Path) -> None:
    fitted, bundle = sequences_of(world, load(world), 0), Bundle.open(store)
    rows = bundle.catalog.rows(world.hashes)
    for track in range(world.n_tracks):
        ours, theirs = fitted.others(np.array([track])), bundle.sequences.others(rows[[track]])
        np.testing.assert_array_equal(rows[ours[0]], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])
        assert ours[3] == theirs[3]
    assert bundle.sequences.shares.any()


def test_tracks_added_and_removed_leave_the_others_answers(
    world: Dataset, store: Path, states: list[UserState], tmp_path: Path
) -> None:
    """A new track sorts among the old: rows move, and what follows what moves with them."""
    now, settings = BEGIN + 60 * DAY, RebuildSettings(recall_users=20, gate_users=20, force=True)
    before = {repeat: listed(Recommender(Bundle.open(store), 30), states[0], repeat, now) for repeat in Repeat}
    (tmp_path / "new.csv").write_text("track_id\na-new\nt30-new\n")
    add(tmp_path / "new.csv", store, settings)
    bundle = Bundle.open(store)
    assert len(bundle.sequences) == TRACKS + 2
    for repeat in (Repeat.ALLOW, Repeat.EXCLUDE):
        found = [track for track in listed(Recommender(bundle, 32), states[0], repeat, now, 12) if "new" not in track]
        assert found[:8] == before[repeat][:8]
    gone = before[Repeat.ALLOW][0]
    remove([gone], store, settings)
    assert gone not in listed(Recommender(Bundle.open(store), 30), states[0], Repeat.ALLOW, now, TRACKS)


def test_a_damaged_table_is_refused(store: Path, model: Path, tmp_path: Path) -> None:
    sequences = Model.open(model).sequences
    for broken in (
        replace(sequences, rows=sequences.rows[:-1]),
        replace(sequences, offsets=sequences.offsets[:-1]),
        replace(sequences, weights=sequences.weights.astype(np.float32)),
        replace(sequences, shares=sequences.shares[:2]),
    ):
        sequence_files.save(tmp_path, broken)
        with pytest.raises(BundleCorrupt):
            sequence_files.open_sequences(tmp_path, sequence_files.FILES)


def test_of_whoever_has_played_nothing_the_rest_of_the_head_decides() -> None:
    torch.manual_seed(0)
    inputs, context = torch.rand(40, 7, MomentHead.PAIR + len(SIGNALS)), torch.rand(40, len(CONTEXT)) + 0.1
    context[1, CONTEXT.index("tracks")] = 0
    part = fitted_to(inputs, context)
    part.calibration.copy_(torch.tensor([2.0, -1.0]))
    logit, calibration = torch.rand(40, 7), torch.tensor([0.5, 0.25])
    pair, signals = inputs[:, :, : MomentHead.PAIR], inputs[:, :, MomentHead.PAIR :]
    ranked, probability = part.ranked(logit, pair, signals, context, calibration)
    torch.testing.assert_close(ranked[1], logit[1])
    torch.testing.assert_close(probability[1], torch.sigmoid(0.5 * logit[1] + 0.25))
    for known in (0, 2):
        torch.testing.assert_close(ranked[known], part(pair, signals, context)[known])
        torch.testing.assert_close(probability[known], torch.sigmoid(2.0 * ranked[known] - 1.0))


def test_what_is_served_is_what_is_trained_on_scaled_inputs() -> None:
    torch.manual_seed(1)
    inputs = torch.rand(40, 7, MomentHead.PAIR + len(SIGNALS)) * 10.0 ** torch.randint(
        -3, 4, (MomentHead.PAIR + len(SIGNALS),)
    )
    context = torch.rand(40, len(CONTEXT)) * 5
    inputs[:, ::2, MomentHead.PAIR : MomentHead.PAIR + N_OWN] = 0  # never heard
    inputs[:, 1::2, MomentHead.PAIR] = 1
    part = fitted_to(inputs, context)
    torch.nn.init.normal_(part.out.weight)
    part.level.normal_()
    logits = part.logits(part.scaled(inputs), part.about(context))
    assert logits.std() > 0.1
    pair, signals = inputs[:, :, : MomentHead.PAIR], inputs[:, :, MomentHead.PAIR :]
    torch.testing.assert_close(part(pair, signals, context), logits, atol=1e-4, rtol=1e-4)


def test_a_model_without_moments_answers_learnt_as_decay(
    world: Dataset, capsys: pytest.CaptureFixture[str], tmp_path: Path, quick_export: None
) -> None:
    flags = ["--moments", "0", "--epochs", "1", "--dim", "16", "--hidden", "16", "--head-epochs", "0", "--threads", "1"]
    assert cli.main(["train", str(world.path), str(tmp_path / "model"), *flags]) == 0
    assert "next:" not in capsys.readouterr().err.replace("next: lhydra", "")
    info = json.loads((tmp_path / "model" / "model.json").read_text())
    assert not set(info["files"]) & set(sequence_files.FILES)
    assert not Model.open(tmp_path / "model").head.knows_moments


def test_a_warm_head_starts_as_the_part_for_moments_of_before(
    world: Dataset, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_export: None
) -> None:
    """With no further step it is the old one, number by number; only level and calibration are fitted again."""
    monkeypatch.setattr("lhydra.training.moment_head.WARM_EPOCHS", 0)
    told: list[Progress] = []
    config = TrainSettings(epochs=2, dim=16, hidden=16, head_epochs=1, depth=30, threads=1)
    train(world, tmp_path, config, warm=model, report=told.append)
    before, after = (load_file(folder / "checkpoint" / "head.safetensors") for folder in (model, tmp_path))
    again = "moments.calibration", "moments.level"
    same = [name for name in before if name.startswith("moments.") and name not in again]
    for name in same:
        assert after[name].equal(before[name]), name
    assert len(same) > 10
    (moments,) = [line for line in told if isinstance(line, MomentsFitted)]
    assert not moments.joined  # sessions of a circle of one's own each: what follows stays inside them
    shares = [
        sequence_files.open_sequences(folder, sequence_files.FILES).shares.tolist() for folder in (model, tmp_path)
    ]
    assert (moments.ndcg, moments.epochs, shares[0]) == (0.0, 0, shares[1])


def test_sessions_are_joined_where_one_track_each_would_tell_nothing_of_order(
    tmp_path: Path, quick_export: None
) -> None:
    """A track a day: any one, then the one that belongs after it. The validation play is the second of such two."""
    (tmp_path / "source").mkdir()
    rng = np.random.default_rng(0)
    with (tmp_path / "source" / "plays.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["user_id", "track_id", "timestamp", "split"])
        for user in range(120):
            first = 2 * rng.permutation(TRACKS // 2)[:5]
            played = np.stack([first, first + 1], 1).ravel()[:9].tolist()
            for day, (track, fold) in enumerate(zip(played, ["train"] * 7 + ["valid", "test"], strict=True)):
                table.writerow([f"u{user}", f"t{track:02}", BEGIN + day * DAY + user, fold])
    prepare(tmp_path / "source", tmp_path / "dataset", PrepareSettings(split="column"))
    dataset = Dataset.open(tmp_path / "dataset")
    config = TrainSettings(epochs=2, dim=16, hidden=16, head_epochs=1, depth=20, threads=1)
    told: list[Progress] = []
    refit = train(dataset, tmp_path / "model", config, refit=True, report=told.append)
    warm = train(dataset, tmp_path / "warm", config, warm=tmp_path / "model")
    assert [info.chosen and info.chosen["sessions joined"] for info in (refit, warm)] == [True, True]
    (moments,) = [line for line in told if isinstance(line, MomentsFitted)]
    assert moments.ndcg > 0.8
    for name, upto in (("model", VALID), ("warm", TRAIN)):  # the tables of a refitted model know the validation plays
        expected = sequences_of(dataset, load(dataset, upto=upto), upto, joined=True)
        np.testing.assert_array_equal(Model.open(tmp_path / name).sequences.weights, expected.weights)
    assert not len(sequences_of(dataset, load(dataset), VALID).rows)  # apart they tell nothing


def test_a_part_for_moments_of_other_inputs_is_learnt_anew(world: Dataset, model: Path) -> None:
    """As it was before rarity was among the inputs."""
    file = model / "checkpoint" / "head.safetensors"
    head, config = load_file(file), TrainSettings(epochs=2, dim=16, hidden=16, head_epochs=1, depth=30, threads=1)
    assert parent_of(model, model.parent / "other", world, config).moments is not None
    for name in ("mean", "spread"):
        head[f"moments.{name}"] = head[f"moments.{name}"][1:].clone()
    kept = file.read_bytes()
    save_file(head, file)
    try:
        assert parent_of(model, model.parent / "other", world, config).moments is None
    finally:
        file.write_bytes(kept)


def test_lists_as_of_a_fold_know_the_order_of_plays(
    recommender: Recommender, world: Dataset, states: list[UserState], tmp_path: Path
) -> None:
    """Where the split is in time, what a server knew by then is what is asked with: the last plays in order."""
    positions = np.arange(USERS)
    write_lists(recommender, world, tmp_path / "lists.csv", k=K, stage="final", as_of="test", positions=positions)
    found: dict[str, list[str]] = {}
    with (tmp_path / "lists.csv").open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["user_id"], []).append(row["track_id"])
    for user_id, state in zip(world.user_ids, states, strict=True):
        answer = recommender.recommend(Query(K, state, True, repeat=Repeat.EXCLUDE))
        assert found.get(user_id, []) == recommender.catalog.track_ids(answer.rows)


@pytest.mark.parametrize("moments", [0, MIN_MOMENTS - 1, MIN_MOMENTS])
@pytest.mark.parametrize("name", CONTEXT)
def test_what_too_few_moments_are_like_counts_nothing_later(name: str, moments: int) -> None:
    """A log of a play a day: whoever then plays two in a row is as hardly a moment was, and is ranked as always."""
    torch.manual_seed(0)
    inputs, context = torch.rand(400, 3, MomentHead.PAIR + len(SIGNALS)), torch.rand(400, len(CONTEXT))
    column = CONTEXT.index(name)
    context[:, column], context[:moments, column] = 7.3, 10.7
    part = fitted_to(inputs, context)
    torch.nn.init.normal_(part.out.weight)
    pair, signals = inputs[:, :, : MomentHead.PAIR], inputs[:, :, MomentHead.PAIR :]
    before = part(pair, signals, context)
    context[:, column] = 10.7
    assert torch.allclose(part(pair, signals, context), before, atol=1e-4) is (moments < MIN_MOMENTS)


def test_a_part_of_before_is_closed_to_what_it_never_told() -> None:
    """Until now what never differed had a spread of 1, and weights of the draw, through every warm start."""
    torch.manual_seed(0)
    inputs, context = torch.rand(100, 3, MomentHead.PAIR + len(SIGNALS)), torch.rand(100, len(CONTEXT))
    inputs[..., MomentHead.PAIR] = 1
    skipped = MomentHead.PAIR + SIGNALS.index("skipped")
    inputs[..., skipped] = 0
    before = fitted_to(inputs, context)
    torch.nn.init.normal_(before.out.weight)
    before.spread[skipped] = 1
    part = before.reopened(fitted_to(inputs, context))
    one = inputs[:, :1].clone()
    one[..., skipped] = 1
    moved = [m(one[..., : m.PAIR], one[..., m.PAIR :], context) for m in (before, part)]
    still = part(inputs[:, :1, : part.PAIR], inputs[:, :1, part.PAIR :], context)
    assert (moved[0] - still).abs().max() > 0.01
    torch.testing.assert_close(moved[1], still, atol=1e-5, rtol=0)


def test_a_part_of_before_that_has_no_level_goes_on_at_0() -> None:
    part = fitted_to(torch.rand(40, 7, MomentHead.PAIR + len(SIGNALS)), torch.rand(40, len(CONTEXT)))
    part.level.normal_()
    head = {f"moments.{name}": value for name, value in part.state_dict().items() if name != "level"}
    found = _moments(head)
    assert found is not None
    assert not found.level.any()
    assert found.linear.weight.equal(part.linear.weight)


def test_as_many_moments_as_are_needed_tell_what_they_are_like() -> None:
    torch.manual_seed(0)
    part = fitted_to(torch.rand(MIN_MOMENTS, 3, MomentHead.PAIR + len(SIGNALS)), torch.rand(MIN_MOMENTS, len(CONTEXT)))
    assert (part.context_spread < 1).all()


@pytest.mark.parametrize("moments", [0, MIN_MOMENTS - 1, MIN_MOMENTS])
@pytest.mark.parametrize("name", SIGNALS[1:])
def test_a_signal_of_tracks_at_too_few_moments_counts_nothing_later(name: str, moments: int) -> None:
    """A log without skips: the weight that a live skip meets is still that of the draw."""
    torch.manual_seed(0)
    inputs, context = torch.rand(400, 3, MomentHead.PAIR + len(SIGNALS)), torch.rand(400, len(CONTEXT))
    inputs[:, :, MomentHead.PAIR] = 1
    column = MomentHead.PAIR + SIGNALS.index(name)
    inputs[:, :, column], inputs[:moments, 1, column] = 0, 1
    inputs = torch.cat([inputs, torch.rand(400, 1, inputs.shape[2])], 1)  # padding, and different everywhere
    real = torch.ones(400, 4, dtype=torch.bool).index_fill(1, torch.tensor([3]), False)
    part = MomentHead.fitted_to(inputs, real, context)
    torch.nn.init.normal_(part.out.weight)
    pair, signals = inputs[:, :3, : MomentHead.PAIR], inputs[:, :3, MomentHead.PAIR :]
    before = part(pair, signals, context)
    signals[:, 0, SIGNALS.index(name)] = 1
    assert torch.allclose(part(pair, signals, context), before, atol=1e-4) is (moments < MIN_MOMENTS)


def test_a_warm_part_takes_up_what_enough_moments_tell_by_now() -> None:
    """The first log had neither skips nor sessions; since then they are recorded. All else stays as it was learnt."""
    torch.manual_seed(0)
    inputs, context = torch.rand(100, 3, MomentHead.PAIR + len(SIGNALS)), torch.rand(100, len(CONTEXT))
    later, since = inputs.clone(), context.clone()
    inputs[..., MomentHead.PAIR], later[..., MomentHead.PAIR] = 1, 1
    skipped, session = MomentHead.PAIR + SIGNALS.index("skipped"), CONTEXT.index("in session")
    inputs[..., skipped], context[:, session] = 0, 0
    before = fitted_to(inputs, context)
    torch.nn.init.normal_(before.out.weight)
    part = before.reopened(fitted_to(later, since))

    def logits(part: MomentHead) -> torch.Tensor:
        return part.logits(part.scaled(later), part.about(since))

    torch.testing.assert_close(logits(part), logits(before))
    weights = part.linear.weight, part.of_pair.weight, part.of_context.weight
    slopes = torch.autograd.grad(logits(part).square().sum(), weights)
    for slope, at in zip(slopes, (skipped, skipped, session), strict=True):
        assert slope[:, at].abs().max() > 1e-3


def test_a_catalogue_smaller_than_the_list_is_measured() -> None:
    """As it was at ten tracks and more: here the second of three, and the first and third of two targets."""
    wanted = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    real = torch.ones(2, 3, dtype=torch.bool)
    prepared = Prepared(wanted, wanted, wanted, real, ~real, wanted.sum(1).long(), np.arange(2))
    found = _ndcg(torch.tensor([[3.0, 2.0, 1.0]]).repeat(2, 1), prepared, torch.arange(2))
    discounts = 1 / np.log2([2, 3, 4])
    assert found == pytest.approx((discounts[1] + (discounts[0] + discounts[2]) / discounts[:2].sum()) / 2)


@pytest.mark.parametrize("cost", ["nothing", "too much", "no rare target"])
def test_rare_tracks_are_lifted_as_far_as_lists_of_the_unheard_allow(world: Dataset, cost: str) -> None:
    """A common target leads 20 fillers; behind them waits a rare target, before rare tracks that are none."""
    loaded = load(world)
    listeners = np.full_like(loaded.listeners, 100)
    listeners[30:40] = 0
    data = replace(loaded, listeners=listeners)
    # The common target and fillers; the rare target and rare tracks that are none; what the user has heard, above all.
    rows = np.r_[0:22, 30:36, 40:60]
    logits = torch.full((1, len(rows)), 0.3)
    logits[0, 0], logits[0, 22], logits[0, 23:28], logits[0, 28:] = 1.0, 0.0, -0.05, 5.0
    if cost == "too much":
        logits[0, 0], logits[0, 22], logits[0, 23:28] = 0.35, -2.3, -1.7
    rarity, listed = torch.zeros_like(logits), torch.ones_like(logits, dtype=torch.bool)
    rarity[0, 22:28], listed[0, 28:] = 1, False
    targets = np.array([0, 30] if cost != "no rare target" else [0])
    found = _rare_lift(
        logits, rarity, listed, [rows], Targets(np.zeros(1, np.int64), np.array([0, len(targets)]), targets), data
    )
    assert found == {"nothing": 0.5, "too much": 0.0, "no rare target": 0.0}[cost]
    assert found in LIFTS


def test_a_score_is_as_sure_as_moments_that_were_held_out_allow() -> None:
    """Whatever the scale of the final part, and however high it puts all candidates of some moments."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    inputs, context = torch.rand(300, 40, MomentHead.PAIR + len(SIGNALS)), torch.rand(300, len(CONTEXT)) + 0.1
    others = fitted_to(inputs, context)
    for parameter in others.parameters():
        parameter.data *= 5
    others.level.copy_(torch.randn(len(CONTEXT)) * torch.tensor(LEVELLED))
    real, users = torch.ones(300, 40, dtype=torch.bool), np.arange(300)
    scaled, about = others.scaled(inputs), others.about(context)
    prepared = Prepared(scaled, about, real.float(), real, ~real, real.sum(1), users)
    both, judged = users[:100], users[100:]
    with torch.no_grad():
        logits = others.logits(scaled, about).double().numpy()
    plays = rng.random((200, 40)) < 1 / (1 + np.exp(logits[100:].mean(1, keepdims=True) - logits[100:]))
    sizes = np.minimum(plays.sum(1), (~plays).sum(1))
    pairs = torch.zeros(200, 2 * int(sizes.max()), inputs.shape[2])
    for i, size in enumerate(sizes):
        at = np.r_[rng.permutation(np.flatnonzero(plays[i]))[:size], rng.permutation(np.flatnonzero(~plays[i]))[:size]]
        pairs[i, : 2 * size] = inputs[100 + i, at]
    place = np.arange(pairs.shape[1])
    filled, wanted = place < 2 * sizes[:, None], place < sizes[:, None]

    def scores(stretched: float, level: torch.Tensor) -> np.ndarray:
        part = fitted_to(inputs, context)
        part.load_state_dict(others.state_dict())
        for parameter in (*part.linear.parameters(), *part.out.parameters()):
            parameter.data *= stretched
        part.level.copy_(level)
        with torch.no_grad():
            _calibrate(part, others, prepared, both, pairs, judged, sizes)
            a, b = part.calibration.tolist()
            return torch.sigmoid(a * part.logits(part.scaled(pairs), about[100:]) + b).numpy()

    few = sizes.copy()
    few[LEAST_JUDGED - 1 :] = 0
    part = fitted_to(inputs, context)
    with torch.no_grad():
        _calibrate(part, others, prepared, both, pairs, judged, few)
    assert not part.level.any()
    found = scores(1.0, torch.zeros(len(CONTEXT)))
    np.testing.assert_allclose(scores(3.0, torch.randn(len(CONTEXT)) * torch.tensor(LEVELLED) * 9), found, atol=0.02)
    for column in about[100:].numpy().T[LEVELLED]:  # as many plays as others at moments of every kind
        for kind in (column > np.median(column), column <= np.median(column)):
            assert found[kind][filled[kind]].mean() == pytest.approx(0.5, abs=0.02)
    logit = np.clip(found, 1e-6, 1 - 1e-6)
    loss = -np.where(wanted, np.log(logit), np.log(1 - logit))[filled].mean()
    assert loss < 0.65  # of nothing known: 0.69


def test_a_score_is_calibrated_on_what_lists_are_made_of() -> None:
    """Plays of tracks not heard before, beside as many that are neither; heard ones only where there are no others."""
    rng = np.random.default_rng(0)
    targets, heard = [np.array([7, 3, 5]), np.array([8, 9])], [np.array([3, 4]), np.array([8, 9])]
    for first, nothing in (pair.tolist() for pair in _pairs(targets, heard, 20, rng)):
        if not first:
            assert not nothing
            continue
        assert set(first) == {5, 7}
        assert len(set(nothing)) == 2
        assert not set(nothing) & {3, 4, 5, 7}
    seldom = _pairs([*targets, *targets[1:] * 99], [*heard, *heard[1:] * 99], 20, rng)
    assert all(pair.shape[1] > 1 for pair in seldom)  # one moment of 101 does not stand for all
    (many,) = _pairs([np.arange(500)], [np.arange(0)], 2_000, rng)
    assert many.shape == (2, MOST_PAIRS)
    (again,) = _pairs(targets[1:], heard[1:], 20, rng)
    assert set(again[0]) == {8, 9}
    assert not set(again[1]) & {8, 9}
    (none,) = _pairs(targets[:1], [np.arange(20)], 20, rng)
    assert none.shape == (2, 0)
