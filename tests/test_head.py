"""The head: what it is fitted on, that held users stay held, and when it leaves the retrieval order alone."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lhydra.bundle import catalog_writer
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.model import Model, ModelInfo
from lhydra.data.dataset import Dataset
from lhydra.evaluation.metrics import rank_metrics
from lhydra.features import item_item
from lhydra.features.co_listening import CoListening
from lhydra.features.histories import Histories, offsets_of
from lhydra.training import calibration, checkpoint, content, teachers
from lhydra.training import examples as examples_of
from lhydra.training import head as heads
from lhydra.training.content import RARE
from lhydra.training.data import Targets, TrainingData, load, select
from lhydra.training.examples import RANDOM_TRACKS, Examples
from lhydra.training.export import export
from lhydra.training.head import CROSS_FIT_PARTS, RETRIEVAL_ORDER, STRENGTHS, UNMEASURED_STRENGTH, Fitted
from lhydra.training.model import Head, Network
from lhydra.training.step import Tensors, embed_users
from lhydra.training.teachers import Table, Teachers
from lhydra.training.train import Run, _new, train
from lhydra.training.validate import embed_tracks
from tests.conftest import TINY_TRAINING

CONFIG = replace(TINY_TRAINING, head_epochs=2, depth=60)


@pytest.fixture(scope="module")
def data(tiny_dataset: Dataset) -> TrainingData:
    return load(tiny_dataset)


@pytest.fixture(scope="module")
def fitted_teachers(data: TrainingData) -> Teachers:
    return teachers.fit(data, CONFIG.dim, 0)


@pytest.fixture
def network(data: TrainingData, fitted_teachers: Teachers) -> Network:
    """Towers as they start, which retrieve well already, and a head that nobody has fitted."""
    torch.set_num_threads(1)
    users = np.flatnonzero(np.diff(data.train.offsets) > 0)
    return _new(Run(data, Tensors.of(data), fitted_teachers, CONFIG, users, 64))[0].eval()


def fit(network: Network, data: TrainingData, table: Table) -> Fitted:
    return heads.fit(network, data, Tensors.of(data), table, CONFIG)


def gathered(
    network: Network, data: TrainingData, table: Table, targets: Targets | None = None, share: float = 0.0
) -> Examples:
    targets = data.valid if targets is None else targets
    shown = select(data.train, targets.users)
    rng, together = np.random.default_rng(0), CoListening.of(table.neighbours, table.weights, share)
    return examples_of.gather(network, data, Tensors.of(data), table, together, targets, shown, CONFIG.depth, rng)


def want(data: TrainingData, rows: np.ndarray) -> TrainingData:
    """The same data where validation users go on to play `rows` (users, m)."""
    flat = np.sort(rows, 1).ravel()
    return replace(data, valid=Targets(data.valid.users, offsets_of(np.full(len(rows), rows.shape[1])), flat))


def random_table(n: int, seed: int, width: int = 30) -> Table:
    rng = np.random.default_rng(seed)
    neighbours = np.stack([np.sort(rng.permutation(n)[:width]) for _ in range(n)])
    return Table.of(neighbours.astype(np.int32), rng.exponential(0.1, (n, width)).astype(np.float32))


@dataclass
class Watched:
    """What `fit` did, in order: ("gate" | "deep" | "ranked", head, users, lists by strength or None)."""

    calls: list[tuple[str, Head, np.ndarray, Any]] = field(default_factory=list)

    def runs(self) -> list[list[tuple[str, Head, np.ndarray, Any]]]:
        """The calls, cut where a new head begins."""
        starts = [i for i, call in enumerate(self.calls) if call[0] == "gate"]
        return [self.calls[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    seen = Watched()

    def spy(kind: str, real: Callable[..., Any], at: int) -> Callable[..., Any]:
        def called(head: Head, *rest: Any) -> Any:
            found = real(head, *rest)
            seen.calls.append((kind, head, rest[at].copy(), found))
            return found

        return called

    monkeypatch.setattr(heads, "_fit_gate", spy("gate", heads._fit_gate, 1))
    monkeypatch.setattr(heads, "_deep_epoch", spy("deep", heads._deep_epoch, 4))
    monkeypatch.setattr(heads, "_ranked", spy("ranked", heads._ranked, 3))
    return seen


# -- what it is fitted on ---------------------------------------------------------------------------------


@torch.no_grad()
def test_candidates_are_the_nearest_unheard_tracks_and_some_random_ones(
    network: Network, data: TrainingData, fitted_teachers: Teachers
) -> None:
    found = gathered(network, data, fitted_teachers.table)
    vectors, history = (part.numpy() for part in embed_tracks(network, Tensors.of(data)))
    encoded = data.spec.encode_users(data.profiles[data.valid.users], select(data.train, data.valid.users), data.tracks)
    users = embed_users(network, encoded, torch.from_numpy(history)).numpy()
    popularity = catalog_writer.popularity(data.listeners)
    assert found.retrieved == CONFIG.depth
    assert found.rows.shape == found.labels.shape == (len(data.valid.users), CONFIG.depth + RANDOM_TRACKS)
    for i, user in enumerate(data.valid.users):
        heard = data.train.rows[data.train.offsets[user] : data.train.offsets[user + 1]]
        wanted = data.valid.rows[data.valid.offsets[i] : data.valid.offsets[i + 1]]
        cosines = vectors @ users[i]
        cosines[heard] = -2
        rows, out = found.rows[i].numpy(), found.excluded[i].numpy()
        real = rows[: CONFIG.depth][~out[: CONFIG.depth]]
        assert len(real) == min(CONFIG.depth, data.n_tracks - len(heard))
        np.testing.assert_allclose(cosines[real], -np.sort(-cosines)[: len(real)], atol=1e-6)  # best first
        extra = rows[CONFIG.depth :][~out[CONFIG.depth :]]
        everything = np.concatenate([real, extra])
        assert len(set(everything.tolist())) == len(everything)
        assert not np.isin(everything, heard).any()
        assert not np.isin(extra, wanted).any()  # every target that counts was retrieved
        assert found.labels[i].numpy().tolist() == (np.isin(rows, wanted) & ~out).tolist()
        assert int(found.wanted[i]) == len(wanted)
        entry = encoded.take(np.array([i])).entry
        together = item_item.scores(
            fitted_teachers.table.neighbours, fitted_teachers.table.weights, heard, entry, everything
        )
        signals = np.column_stack([vectors[everything] @ users[i], popularity[everything], together])
        np.testing.assert_allclose(found.signals[i].numpy()[~out], signals, atol=1e-4)


@torch.no_grad()
def test_a_share_of_the_candidates_comes_by_co_listening(network: Network, data: TrainingData) -> None:
    """As they are served: those with the highest sums of weights, the nearest, and all in the order of cosines."""
    table, share = random_table(data.n_tracks, seed=4), 0.5
    nearest, found = gathered(network, data, table), gathered(network, data, table, share=share)
    source, n = CoListening.of(table.neighbours, table.weights, share), round(share * CONFIG.depth)
    encoded = data.spec.encode_users(data.profiles[data.valid.users], select(data.train, data.valid.users), data.tracks)
    more = 0
    for i in range(len(found)):
        one = encoded.one(i)
        free = np.ones(data.n_tracks, np.bool_)
        free[one.histories.rows] = False
        brought = source.candidates(one.histories.rows, one.entry, free.take, CONFIG.depth).tolist()
        rows = found.rows[i, : CONFIG.depth][~found.excluded[i, : CONFIG.depth]].tolist()
        others = [row for row in nearest.rows[i, : CONFIG.depth].tolist() if row not in brought]
        assert len(rows) == len(set(rows)) == CONFIG.depth
        assert len(brought) <= n
        assert set(rows) == {*brought, *others[: CONFIG.depth - len(brought)]}
        cosines = found.signals[i, : CONFIG.depth, 0]
        assert bool((cosines.diff() <= 1e-6).all())
        more += len(set(rows) - set(nearest.rows[i].tolist()))
    assert more


def test_a_catalogue_smaller_than_the_depth_is_candidates_throughout(
    network: Network, data: TrainingData, fitted_teachers: Teachers
) -> None:
    shown = select(data.train, data.valid.users)
    tensors = Tensors.of(data)
    table = fitted_teachers.table
    together = CoListening.of(table.neighbours, table.weights, 0.5)
    found = examples_of.gather(
        network, data, tensors, table, together, data.valid, shown, 10**6, np.random.default_rng(0)
    )
    assert found.retrieved == data.n_tracks
    assert found.labels.sum(1).tolist() == found.wanted.tolist()  # nothing wanted is out of reach
    assert ((~found.excluded).sum(1).numpy() == data.n_tracks - np.diff(shown.offsets)).all()


def test_hidden_train_plays_stand_in_for_a_missing_validation_fold(
    network: Network, data: TrainingData, fitted_teachers: Teachers, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Targets, Histories]] = []
    gather = examples_of.gather

    def spied(*args: Any) -> Examples:
        seen.append((args[5], args[6]))
        return gather(*args)

    monkeypatch.setattr(heads, "gather", spied)
    nobody = Targets(np.empty(0, np.int64), np.zeros(1, np.int64), np.empty(0, np.int64))
    before = [p.clone() for p in network.item_tower.parameters()]
    found = fit(network, replace(data, valid=nobody), fitted_teachers.table)
    assert found == Fitted(1, UNMEASURED_STRENGTH, {})
    assert network.head.strength.item() == UNMEASURED_STRENGTH
    assert network.head.gate.bias.abs().sum() > 0
    assert network.head.out.weight.abs().sum() > 0
    for a, b in zip(before, network.item_tower.parameters(), strict=True):
        assert torch.equal(a, b)  # the towers are left alone
    ((targets, shown),) = seen
    assert len(targets.users) == (np.diff(data.train.offsets) > 0).sum()
    for i, user in enumerate(targets.users):
        wanted = targets.rows[targets.offsets[i] : targets.offsets[i + 1]]
        own = shown.rows[shown.offsets[i] : shown.offsets[i + 1]]
        assert (np.diff(wanted) > 0).all()
        assert not np.isin(wanted, own).any()
        heard = data.train.rows[data.train.offsets[user] : data.train.offsets[user + 1]]
        assert len(wanted)
        assert {*wanted.tolist(), *own.tolist()} <= set(heard.tolist())


@pytest.mark.parametrize("users", [1, CROSS_FIT_PARTS - 1, CROSS_FIT_PARTS])
def test_very_few_validation_users_are_enough(
    users: int, network: Network, data: TrainingData, fitted_teachers: Teachers
) -> None:
    few = Targets(
        data.valid.users[:users], data.valid.offsets[: users + 1], data.valid.rows[: data.valid.offsets[users]]
    )
    found = fit(network, replace(data, valid=few), fitted_teachers.table)
    assert all(p.isfinite().all() for p in network.head.parameters())
    assert found.strength in (0.0, *STRENGTHS)


# -- cross-fitting ----------------------------------------------------------------------------------------


def test_held_users_are_ranked_by_a_head_that_never_saw_them(
    network: Network, data: TrainingData, fitted_teachers: Teachers, watched: Watched
) -> None:
    data = want(data, planted_rows(network, data, fitted_teachers.table))  # such that the retrieval order does not stay
    found = fit(network, data, fitted_teachers.table)
    everybody = np.arange(len(data.valid.users))
    runs = watched.runs()
    assert len({id(run[0][1]) for run in runs}) == len(runs)  # a new head each time
    *folds, last = runs
    assert len(folds) == CROSS_FIT_PARTS
    after = [kind for kind, *_ in last]
    assert after == ["gate"] + ["deep"] * found.epochs + ["ranked"] * CROSS_FIT_PARTS * len(heads.LIFTS)
    held_by_fold: list[int] = []
    for run in folds:
        trained = np.unique(np.concatenate([users for kind, _, users, _ in run if kind != "ranked"]))
        (held,) = {tuple(users.tolist()) for kind, _, users, _ in run if kind == "ranked"}
        assert not np.isin(trained, held).any()
        assert sorted([*trained.tolist(), *held]) == everybody.tolist()
        assert len({id(head) for _, head, _, _ in run}) == 1
        assert [kind for kind, *_ in run] == ["gate", "ranked"] + ["deep", "ranked"] * CONFIG.head_epochs
        held_by_fold += held
    assert sorted(held_by_fold) == everybody.tolist()
    for kind, _, users, _ in last:  # the head that is kept is fitted on everybody, and ranks nobody
        assert kind == "ranked" or users.tolist() == everybody.tolist()
    held_again = [users.tolist() for kind, _, users, _ in last if kind == "ranked"]
    assert [user for held in held_again for user in held] == held_by_fold * len(heads.LIFTS)


def test_the_reported_cascade_is_that_of_the_held_users(
    network: Network, data: TrainingData, fitted_teachers: Teachers, watched: Watched
) -> None:
    planted = want(data, planted_rows(network, data, fitted_teachers.table))
    found = fit(network, planted, fitted_teachers.table)
    assert found.strength != 0 or found.epochs == 0
    ranked = [call for call in watched.runs()[-1] if call[0] == "ranked"]
    measured = []
    for first in range(0, len(ranked), CROSS_FIT_PARTS):  # of each lift
        lists = np.full((len(data.valid.users), 20), -1, np.int64)
        for _, _, held, by_strength in ranked[first : first + CROSS_FIT_PARTS]:
            for user, rows in zip(held, by_strength[found.strength], strict=True):
                lists[user, : len(rows)] = rows
        means = rank_metrics(lists, planted.valid.offsets, planted.valid.rows, data.n_tracks).means()
        measured.append({name: pytest.approx(means[name], abs=1e-6) for name in found.cascade})
    assert found.cascade in measured


def test_the_head_is_chosen_by_what_epochs_are_chosen_by(
    network: Network,
    data: TrainingData,
    fitted_teachers: Teachers,
    watched: Watched,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heads, "worth", lambda metrics: -metrics["ndcg@10"])  # the worst, to tell it from other rules
    planted = want(data, planted_rows(network, data, fitted_teachers.table))
    found = fit(network, planted, fitted_teachers.table)
    lists: dict[tuple[int, float], np.ndarray] = {}
    for run in watched.runs()[:CROSS_FIT_PARTS]:
        for epoch, (_, _, held, by_strength) in enumerate(call for call in run if call[0] == "ranked"):
            for strength, ranked in by_strength.items():
                whole = lists.setdefault((epoch, strength), np.full((len(data.valid.users), 20), -1, np.int64))
                for user, rows in zip(held, ranked, strict=True):
                    whole[user, : len(rows)] = rows
    quality = {
        tried: rank_metrics(whole, planted.valid.offsets, planted.valid.rows, data.n_tracks).means()["ndcg@10"]
        for tried, whole in lists.items()
    }
    assert quality[found.epochs, found.strength] == min(quality.values()) < max(quality.values())


@pytest.mark.parametrize(("worst", "chosen"), [(0.989, 0.05), (0.99, 0.5)])  # of what is found with the most lift
def test_rare_tracks_are_lifted_as_far_as_the_rest_does_not_suffer(
    network: Network,
    data: TrainingData,
    fitted_teachers: Teachers,
    monkeypatch: pytest.MonkeyPatch,
    worst: float,
    chosen: float,
) -> None:
    planted, same = want(data, planted_rows(network, data, fitted_teachers.table)), copy.deepcopy(network)
    monkeypatch.setattr(heads, "LIFTS", (0.0,))
    fit(same, planted, fitted_teachers.table)
    metrics, hits = iter([0.5, 0.499, 0.5 * worst]), iter([1, 3, 7])
    monkeypatch.setattr(heads, "LIFTS", (0.0, 0.05, 0.5))
    monkeypatch.setattr(heads, "measured", lambda *args: {"ndcg@10": next(metrics)})
    monkeypatch.setattr(heads, "hits", lambda *args: (next(hits), 10))
    fit(network, planted, fitted_teachers.table)
    assert network.head.lift.item() == pytest.approx(same.head.lift.item() + chosen * same.head.scale.item(), rel=1e-4)


def test_a_training_that_goes_on_does_not_lift_rare_tracks_again(
    network: Network, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lift of before is part of the head that it starts from: what is near the best is told without it, too."""
    table = random_table(data.n_tracks, seed=3)
    planted = want(data, planted_rows(network, data, table))
    monkeypatch.setattr(heads, "WARM_STEPS", 0)
    monkeypatch.setattr(heads, "LIFTS", (0.0, 0.05))
    hits, metrics = iter([1, 2, 1, 2, 3]), iter([1.0, 0.992, 1.0, 0.992, 0.984])
    monkeypatch.setattr(heads, "hits", lambda *args: (next(hits), 10))
    monkeypatch.setattr(heads, "measured", lambda *args: {"ndcg@10": next(metrics)})
    fit(network, planted, table)
    lifted = network.head.lift.item()
    fit(network, planted, table)
    assert network.head.lift.item() == lifted


def test_labels_of_held_users_do_not_change_how_they_are_ranked(
    network: Network, data: TrainingData, fitted_teachers: Teachers, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shuffled for the users of the first fold, the labels change every other head, and not the one that ranks them."""
    start = {name: value.clone() for name, value in network.state_dict().items()}
    fit(network, data, fitted_teachers.table)
    first = watched.runs()
    held = next(users for kind, _, users, _ in first[0] if kind == "ranked")
    gather = examples_of.gather

    def shuffled(*args: Any) -> Examples:
        found = gather(*args)
        labels = found.labels.clone()
        labels[torch.from_numpy(held)] = (
            labels[torch.from_numpy(held)].flip(1) & ~found.excluded[torch.from_numpy(held)]
        )
        assert (labels != found.labels).any()
        return replace(found, labels=labels)

    monkeypatch.setattr(heads, "gather", shuffled)
    network.head = fresh(start, network)
    watched.calls.clear()
    fit(network, data, fitted_teachers.table)
    second = watched.runs()
    for a, b in zip(first[0], second[0], strict=True):
        assert a[2].tolist() == b[2].tolist()
        if a[0] == "ranked":
            assert a[3].keys() == b[3].keys()
            for strength in a[3]:
                assert [rows.tolist() for rows in a[3][strength]] == [rows.tolist() for rows in b[3][strength]]
    assert not torch.equal(first[1][0][1].gate.weight, second[1][0][1].gate.weight)


def test_the_calibration_is_fitted_on_logits_of_heads_that_never_saw_the_user(
    tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Platt 1999, section 2.1: fitted on the logits of what the model has learnt, a sigmoid is too sure of itself."""
    learnt: list[np.ndarray] = []  # user vectors (E, D) of the examples
    asked: dict[frozenset[int], dict[int, np.ndarray]] = {}  # logits (m,) by users that a head was fitted on, and user
    calibrated: list[np.ndarray] = []
    present: list[Tensor] = []  # (B, m) of the users that are asked now

    def remembering(real: Callable[..., Any], users_at: int) -> Callable[..., Any]:
        def called(head: Head, *rest: Any) -> Any:
            seen: set[int] = head.__dict__.setdefault("fitted_on", set())  # copies of a head keep it
            head.__dict__["fitted_on"] = seen | set(rest[users_at].tolist())
            learnt[:] = [next(part for part in rest if isinstance(part, Examples)).user.numpy()]
            return real(head, *rest)

        return called

    def forward(head: Head, user: Tensor, *rest: Tensor) -> Any:
        found = real_forward(head, user, *rest)
        for one, logits, held in zip(user, found[0], present[0], strict=True):
            whose = int(np.square(learnt[0] - one.detach().numpy()).sum(1).argmin())
            own = logits.reshape(2, -1)[:, held].flatten().numpy()
            asked.setdefault(frozenset(head.__dict__["fitted_on"]), {})[whose] = own
        return found

    def pairs(*given: Any) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        for inputs, held in real_pairs(*given):
            present[:] = [held]
            yield inputs, held

    def platt(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        calibrated.append(logits)
        return real_platt(logits, labels)

    real_forward, real_platt, real_pairs = Head.forward, calibration.platt, calibration._pairs
    monkeypatch.setattr(heads, "_fit_gate", remembering(heads._fit_gate, 1))
    monkeypatch.setattr(heads, "_deep_epoch", remembering(heads._deep_epoch, 4))
    monkeypatch.setattr(calibration, "platt", platt)
    monkeypatch.setattr(calibration, "_pairs", pairs)
    monkeypatch.setattr(Head, "forward", forward)
    monkeypatch.setattr("lhydra.training.train.export", lambda *args: ModelInfo())  # whose proofs run the head, too
    train(tiny_dataset, tmp_path, replace(CONFIG, epochs=1))
    (given,) = calibrated
    everybody = range(len(learnt[0]))
    sizes = [len(asked[frozenset(everybody)][user]) // 2 for user in everybody]  # plays, and as many random tracks
    owner = np.tile(np.repeat(everybody, sizes), 2)
    covered: list[int] = []
    for fitted_on, by_user in asked.items():
        held = sorted(set(everybody) - fitted_on)
        if not held:
            continue
        theirs = np.concatenate([by_user[user].reshape(2, -1) for user in held], 1).ravel()
        mine = given[np.isin(owner, held)]
        slope, shift = np.polyfit(theirs, mine, 1)
        assert slope > 0
        np.testing.assert_allclose(slope * theirs + shift, mine, atol=1e-3)  # theirs, in the final head's scale
        covered += held
    assert sorted(covered) == list(everybody)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.5, -3.0), (4.0, 2.0)])
def test_a_head_of_another_scale_calibrates_alike(
    scale: float, shift: float, network: Network, data: TrainingData, fitted_teachers: Teachers
) -> None:
    """A pairwise loss leaves each head a constant of its own: what it gives is brought to the final head's scale."""
    tensors, targets = Tensors.of(data), data.valid
    part = np.arange(len(targets.users)) % CROSS_FIT_PARTS
    others = {number: copy.deepcopy(network.head) for number in range(CROSS_FIT_PARTS)}

    def fitted() -> tuple[float, float]:
        table = fitted_teachers.table
        return calibration.fit_calibration(network, data, tensors, table, targets, others, part, 0)

    alike = fitted()
    with torch.no_grad():
        others[0].scale.mul_(scale)
        others[0].gate.weight.mul_(scale)
        others[0].gate.bias.mul_(scale)
        others[0].out.weight.mul_(scale)
    others[0].register_forward_hook(lambda head, args, found: (found[0] + shift, found[1]))
    assert fitted() == pytest.approx(alike, rel=1e-3)


def fresh(state: dict[str, Tensor], network: Network) -> Head:
    """The head as it was, whatever has been fitted since."""
    network.head.load_state_dict({k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")})
    return network.head


# -- when it helps ----------------------------------------------------------------------------------------


def planted_rows(network: Network, data: TrainingData, table: Table) -> np.ndarray:
    """(users, 3): of each validation user the retrieved tracks with the highest co-listening score of all plays."""
    found = gathered(network, data, table)
    signal = found.signals[:, : found.retrieved, 2].masked_fill(found.excluded[:, : found.retrieved], -np.inf)
    return found.rows.gather(1, signal.topk(3, 1).indices).numpy()


def ndcg_of_retrieval(network: Network, data: TrainingData, table: Table) -> float:
    found = gathered(network, data, table)
    lists = found.rows[:, :20].masked_fill(found.excluded[:, :20], -1).numpy()
    return rank_metrics(lists, data.valid.offsets, data.valid.rows, data.n_tracks).means()["ndcg@10"]


def test_a_planted_signal_is_found(network: Network, data: TrainingData) -> None:
    """What users go on to play is what a random table says: the cascade says so too, of users it has not seen."""
    table = random_table(data.n_tracks, seed=3)
    planted = want(data, planted_rows(network, data, table))
    retrieval = ndcg_of_retrieval(network, planted, table)
    found = fit(network, planted, table)
    assert retrieval < 0.4
    assert found.cascade["ndcg@10"] > retrieval + 0.3
    with torch.no_grad():
        weights = network.head.gate(torch.zeros(1, network.head.gate.in_features))[0]
    assert weights[2] > 0


def test_rare_tracks_stand_where_listeners_put_them(network: Network, data: TrainingData) -> None:
    """Users go on to play what most and what fewest have heard: no weight of popularity says that."""
    table = random_table(data.n_tracks, seed=3)
    found = gathered(network, data, table)
    out = found.excluded[:, : found.retrieved]
    listeners = torch.from_numpy(data.listeners)[found.rows[:, : found.retrieved]].float()
    ends = [listeners.masked_fill(out, sign * np.inf).topk(2, 1, largest=sign < 0).indices for sign in (1, -1)]
    planted = want(data, found.rows.gather(1, torch.cat(ends, 1)).numpy())
    retrieval = ndcg_of_retrieval(network, planted, table)
    assert fit(network, planted, table).cascade["ndcg@10"] > retrieval + 0.2
    assert network.head.lift > 0
    few = Tensors.of(data).popularity(torch.arange(10.0)[None])
    rarity = network.head.rarity(few)[0]
    assert rarity[0] == 1
    assert (rarity[1 : RARE + 1] > 0).all()
    assert (rarity.diff() <= 0).all()
    assert not rarity[RARE + 1 :].any()


def test_a_gate_that_was_fitted_before_is_gone_on_from(
    network: Network, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no further step it is the old one, and finds what it found."""
    table = random_table(data.n_tracks, seed=3)
    planted = want(data, planted_rows(network, data, table))
    monkeypatch.setattr(heads, "LIFTS", (0.0,))  # which comes after the steps
    before, untouched = fit(network, planted, table), copy.deepcopy(network)
    gate = [parameter.clone() for parameter in network.head.linear()]
    monkeypatch.setattr(heads, "WARM_STEPS", 0)
    assert fit(untouched, planted, table).cascade["ndcg@10"] == pytest.approx(before.cascade["ndcg@10"], abs=0.05)
    for old, new in zip(gate, untouched.head.linear(), strict=True):
        assert new.equal(old)


def test_what_was_not_retrieved_is_never_ranked(network: Network, data: TrainingData, watched: Watched) -> None:
    """The random tracks are there to learn from: a cascade could not show them, however high they score."""
    table = random_table(data.n_tracks, seed=3)
    planted = want(data, planted_rows(network, data, table))
    examples = gathered(network, planted, table)
    retrieved = [set(rows.tolist()) for rows in examples.rows[:, : examples.retrieved]]
    fit(network, planted, table)
    ranked = [call for call in watched.calls if call[0] == "ranked"]
    assert len(ranked) == CROSS_FIT_PARTS * (1 + CONFIG.head_epochs + len(heads.LIFTS))
    for _, _, held, by_strength in ranked:
        for lists in by_strength.values():
            for user, rows in zip(held, lists, strict=True):
                assert set(rows.tolist()) - {-1} <= retrieved[user]


@pytest.mark.parametrize("before", [0.0, 5.0])  # of a gate that earlier plays have fitted
def test_where_signals_are_noise_the_retrieval_order_stays(network: Network, data: TrainingData, before: float) -> None:
    with torch.no_grad():
        network.head.gate.bias[2] = before
    table = random_table(data.n_tracks, seed=4)
    first = gathered(network, data, table).rows[:, :3].numpy()  # by rank, not by cosine: near ties may swap
    planted = want(data, first)  # the nearest three, and nothing else
    assert ndcg_of_retrieval(network, planted, table) == 1
    scale = network.head.scale.item()
    found = fit(network, planted, table)
    assert found.cascade["ndcg@10"] == 1
    assert found.strength == 0
    assert network.head.scale.item() == scale
    assert network.head.strength.item() == 0
    examples = gathered(network, planted, table)
    with torch.no_grad():
        logits = network.head.weighted(examples.dense, examples.signals, network.head.rarity(examples.signals[:, :, 1]))
    torch.testing.assert_close(logits, scale * examples.signals[:, :, 0])  # a cosine, scaled
    assert RETRIEVAL_ORDER not in (0.0, *STRENGTHS)


def test_the_cascade_is_never_reported_below_the_retrieval_order(
    network: Network, data: TrainingData, fitted_teachers: Teachers
) -> None:
    retrieval = ndcg_of_retrieval(network, data, fitted_teachers.table)
    assert fit(network, data, fitted_teachers.table).cascade["ndcg@10"] >= retrieval - 1e-5


def test_the_same_seed_gives_the_same_head(network: Network, data: TrainingData, fitted_teachers: Teachers) -> None:
    start = {name: value.clone() for name, value in network.state_dict().items()}
    first = fit(network, data, fitted_teachers.table)
    kept = {name: value.clone() for name, value in network.head.state_dict().items()}
    network.head = fresh(start, network)
    assert fit(network, data, fitted_teachers.table) == first
    for name, value in network.head.state_dict().items():
        assert torch.equal(value, kept[name]), name


# -- as served --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_served_scores_are_those_of_training(
    network: Network,
    data: TrainingData,
    fitted_teachers: Teachers,
    tiny_dataset: Dataset,
    tmp_path: Path,
    quick_export: None,
) -> None:
    with torch.enable_grad():
        fit(network, data, fitted_teachers.table)
    network.head.strength.fill_(0.5)
    torch.nn.init.normal_(network.head.out.weight)
    network.eval()
    export(network, data, fitted_teachers.table, tmp_path, ModelInfo())
    (tmp_path / "catalog").mkdir()
    bundle = catalog_writer.unpublished_bundle(Model.open(tmp_path), tiny_dataset, tmp_path / "catalog")
    check_served(bundle, network, data, gathered(network, data, fitted_teachers.table))


@torch.no_grad()
def test_the_graphs_that_users_get_serve_the_scores_of_training(
    network: Network, data: TrainingData, fitted_teachers: Teachers, tiny_model: Path, tiny_bundle: Bundle
) -> None:
    """Those of the tiny model, exported as for users; what it was in torch is told by its checkpoints."""
    checkpoint.load(tiny_model / "checkpoint" / "best.safetensors", network)
    with torch.enable_grad():
        content.fit(network, data, Tensors.of(data), TINY_TRAINING)
    network.head.load_state_dict(checkpoint.read_head(tiny_model / "checkpoint" / "head.safetensors"))
    network.eval()
    chosen = Model.open(tiny_model).info.chosen
    assert chosen
    assert network.head.strength > 0
    check_served(
        tiny_bundle, network, data, gathered(network, data, fitted_teachers.table, share=chosen["co-listening share"])
    )


def check_served(bundle: Bundle, network: Network, data: TrainingData, examples: Examples) -> None:
    """Candidates and signals gathered in training, scored by the exported head from the bundle's files."""
    vectors, tensors = embed_tracks(network, Tensors.of(data))[0], Tensors.of(data)
    encoded = data.spec.encode_users(data.profiles[data.valid.users], select(data.train, data.valid.users), data.tracks)
    served = torch.from_numpy(bundle.embed(encoded))
    torch.testing.assert_close(served, examples.user, atol=2e-3, rtol=0)  # history vectors are bytes
    examples.user.copy_(served)
    base, deep = heads._parts(network.head, examples, vectors, tensors, torch.arange(len(examples)))
    a, b = network.head.calibration
    logits = base + network.head.strength * deep
    probabilities = torch.sigmoid(a * logits + b).numpy()
    for i in range(0, len(examples), 5):
        user, vector = encoded.take(np.array([i])), served[i : i + 1].numpy()
        real = ~examples.excluded[i].numpy()
        logit, probability = bundle.score(vector, user, examples.rows[i].numpy()[real])
        size = max(1.0, float(logits[i].abs().max()))
        np.testing.assert_allclose(logit, logits[i].numpy()[real], atol=5e-4 * size)  # vectors are halves
        np.testing.assert_allclose(probability, probabilities[i][real], atol=2e-3)


def test_a_level_is_found_by_what_is_known_beside_the_logit() -> None:
    rng = np.random.default_rng(0)
    logits, about = rng.normal(2, 3, 20_000), rng.normal(0, 1, (20_000, 2))
    plays = rng.random(20_000) < 1 / (1 + np.exp(-0.5 * (logits + about @ [2.0, -1.0]) + 1))
    a, b, level = calibration.platt_at(logits, about, plays)
    np.testing.assert_allclose([a, b, *level], [0.5, -1, 2, -1], atol=0.1)
    alone = calibration.platt_at(logits, about[:, :0], plays)
    assert alone[:2] == calibration.platt(logits, plays)


@pytest.mark.parametrize("seed", range(40))
def test_a_calibration_is_never_worse_than_none_whatever_tails_the_logits_have(seed: int) -> None:
    """Where few logits are far out a whole step of Newton's leads to where no later one leads back from."""
    rng = np.random.default_rng(seed)
    m, k = int(rng.choice([10, 100])), int(rng.integers(1, 15))
    about = np.repeat(rng.normal(0, 1, (m, 8)), 2 * k, 0) * rng.integers(0, 2)
    plays = np.tile(np.arange(2 * k) < k, m)
    logits = rng.normal(0, 1, len(plays)) + 1.5 * plays + np.repeat(rng.standard_t(2, m) * 5, 2 * k)
    a, b, level = calibration.platt_at(logits, about, plays)
    logit = a * (logits + about @ level) + b
    assert np.logaddexp(0, np.where(plays, -logit, logit)).mean() <= np.log(2) + 1e-6


def test_logits_that_tell_nothing_have_no_level() -> None:
    """It would be what is known, divided by next to nothing: so far from 0 that logits lose their last digits."""
    rng = np.random.default_rng(0)
    logits, about = rng.normal(0, 1, 5_000), rng.normal(0, 1, (5_000, 2))
    plays = rng.random(5_000) < 1 / (1 + np.exp(-about @ [2.0, -1.0]))
    a, b, level = calibration.platt_at(logits, about, plays)
    assert not level.any()
    assert (a, b) == calibration.platt(logits, plays)
