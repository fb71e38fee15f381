"""The compiled head: it gives what the network gives, to rounding, and nothing of one track depends on another."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra import kernels
from lhydra.bundle import folded_head
from lhydra.bundle.arrays import write_npz
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.manifest import current_bundle_id
from lhydra.bundle.model import Model
from lhydra.data.dataset import Dataset
from lhydra.domain import F32, I64, Query, UserState
from lhydra.errors import BundleMismatch, ModelError
from lhydra.features import item_item
from lhydra.features.histories import Histories
from lhydra.features.listening import Listening
from lhydra.features.moment import CONTEXT, N_OWN, SIGNALS, Moment
from lhydra.features.sequences import NO_SEQUENCES
from lhydra.recommender import Recommender
from lhydra.training.folded import weights_of
from lhydra.training.model import Head
from lhydra.training.moment_network import MomentHead
from lhydra.training.shape import Shape
from lhydra_index_builder.build import rebuild
from lhydra_index_builder.config import RebuildSettings
from tests.compiled_kernels import plain, where_a_compiler_is
from tests.test_bundle import put, reseal

pytestmark = where_a_compiler_is
USER_IDS = (("gender", 3), ("region", 6), ("age_group", 4), ("top_genre", 9), ("top_quadrant", 5), ("country", 7))
TRACK_IDS = (("track_id", 40), ("artist", 30), ("genre*", 9), ("quadrant", 5))


@dataclass(frozen=True)
class Case:
    """A head of random weights, and all that it scores n tracks by for one user."""

    head: Head
    user: tuple[F32, F32, I64]  # vector, dense, ids
    tables: list[npt.NDArray[Any]]  # vectors, dense, ids, popularity
    together: npt.NDArray[np.float32]
    moment: list[npt.NDArray[np.float32]]  # signals and context, or nothing

    @property
    def n(self) -> int:
        return len(self.together)

    def by_network(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        tables = [table if table.dtype != np.int32 else table.astype(np.int64) for table in self.tables]
        parts = [torch.from_numpy(part[None]) for part in (*self.user, *tables, self.together, *self.moment)]
        with torch.no_grad():
            logits, probabilities = self.head(*parts)
        return logits[0].numpy(), probabilities[0].numpy()

    def compiled(self, rows: Any = None) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        rows = np.arange(self.n) if rows is None else rows
        signals, context = (self.moment[0][rows], self.moment[1]) if self.moment else (None, None)
        head = folded_head.compiled(weights_of(self.head), *self.tables)
        return head.score(*self.user, rows, self.together[rows], signals, context)


def case(
    seed: int, *, dim: int = 16, hidden: int = 24, width: int = 5, n: int = 21, crosses: bool = True, moments: int = 2
) -> Case:
    """Makes one; moments: 0 of a head that knows nothing of them, 1 of a user who has played nothing, 2 of others."""
    rng, _ = np.random.default_rng(seed), torch.manual_seed(seed)
    user_ids = USER_IDS if crosses else USER_IDS[:1]
    user_dense = width + 7
    head = Head(Shape(dim, hidden, 0.1, width, TRACK_IDS, 1, user_dense, user_ids, (3, 3 + width))).eval()

    def halves(*shape: int) -> npt.NDArray[np.float16]:
        return rng.normal(size=shape).astype(np.float16)

    def floats(*shape: int) -> npt.NDArray[np.float32]:
        return rng.normal(size=shape).astype(np.float32)

    if moments:
        inputs, context = torch.rand(50, 2, MomentHead.PAIR + len(SIGNALS)), torch.rand(50, len(CONTEXT))
        head.moments = MomentHead.fitted_to(inputs, torch.ones(50, 2, dtype=torch.bool), context).eval()
    with torch.no_grad():
        for value in (*head.parameters(), *head.buffers()):
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape) + 0.1 if value.ndim == 0 else 0.4 * torch.randn(value.shape))
        for positive in [head.moments.spread, head.moments.context_spread] if head.moments else []:
            positive.abs_().add_(0.5)
        assert head.norm.running_var is not None
        head.norm.running_var.abs_().add_(0.1)
    tracks = np.stack([rng.integers(0, size, n) for _, size in TRACK_IDS], 1).astype(np.int32)
    signals = rng.exponential(size=(n, len(SIGNALS))).astype(np.float32)
    heard = rng.random(n) < 0.4
    signals[:, 0] = heard
    signals[~heard, :N_OWN] = 0
    signals[rng.random(n) < 0.5, N_OWN:] = 0
    at = floats(len(CONTEXT))
    at[CONTEXT.index("tracks")] = moments - 1
    return Case(
        head,
        (floats(dim), floats(user_dense), np.array([rng.integers(0, size) for _, size in user_ids])),
        [halves(n, dim), halves(n, width), tracks, rng.random(n).astype(np.float32)],
        rng.exponential(size=(n, 2)).astype(np.float32),
        [signals, at] if moments else [],
    )


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    dim=st.integers(1, 40),
    hidden=st.integers(4, 70),
    width=st.integers(0, 12),
    n=st.integers(0, 40),
    crosses=st.booleans(),
    moments=st.integers(0, 2),
)
def test_it_gives_what_the_network_gives(
    seed: int, dim: int, hidden: int, width: int, n: int, crosses: bool, moments: int
) -> None:
    one = case(seed, dim=dim, hidden=hidden, width=width, n=n, crosses=crosses, moments=moments)
    if not n:
        assert [len(part) for part in one.compiled()] == [0, 0]
        return
    for ours, theirs in zip(one.compiled(), one.by_network(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * max(1, float(np.abs(theirs).max())))


@pytest.mark.parametrize("moments", [0, 1, 2])
def test_a_score_depends_on_no_other_track(moments: int) -> None:
    one = case(3, moments=moments)
    rng = np.random.default_rng(0)
    logits, probabilities = one.compiled()
    for size in range(1, one.n):
        rows = rng.permutation(one.n)[:size]
        again = one.compiled(rows)
        assert (again[0] == logits[rows]).all()
        assert (again[1] == probabilities[rows]).all()


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), n=st.integers(0, 40), played=st.integers(0, 9), moments=st.booleans())
def test_what_it_looks_up_is_what_it_would_be_told(seed: int, n: int, played: int, moments: bool) -> None:
    """Co-listening, signals and context, block by block: the same bits as from arrays."""
    assert kernels.compiled is not None
    one, rng = case(seed, n=max(n, 12), moments=2 * moments), np.random.default_rng(seed)
    total, width = one.n, 7
    neighbours = rng.integers(0, total + 1, (total + 1, width)).astype(np.int32)
    weights = rng.normal(size=neighbours.shape).astype(np.float16)
    items, rows = rng.integers(0, total + 1, total).astype(np.int32), rng.permutation(total)[:n]
    history = np.sort(rng.permutation(total)[:played])
    times, counts = rng.integers(1, 10**6, played), rng.integers(1, 9, played).astype(np.float32)
    entry = rng.random((played, 3)).astype(np.float32)
    recent = rng.choice(history, 2 * played) if played else history
    flags = rng.integers(0, 8, len(recent))
    decayed = rng.random((played, 3)).astype(np.float32)
    told = Listening(
        total, history, counts, times, times, decayed, recent, np.sort(rng.integers(1, 10**6, len(recent))), flags, 0
    )
    moment = Moment(told, NO_SEQUENCES) if moments else None
    head = folded_head.compiled(weights_of(one.head), *one.tables)
    table = item_item.table_of(neighbours, weights, items)
    sums = Moment(told, NO_SEQUENCES).compiled  # also given to a head that knows nothing of moments
    found = head.score_for(*one.user, rows, table, history, entry, sums)
    together = item_item.scores(neighbours, weights, items[history], entry, items[rows])
    signals, context = (None, None) if moment is None else (moment.signals(rows), moment.context())
    expected = head.score(*one.user, rows, together, signals, context)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_score_that_is_not_finite_and_what_was_not_played_here_are_refused() -> None:
    one = case(4)
    with pytest.raises(FloatingPointError, match="not finite"):
        replace(one, user=(np.full_like(one.user[0], np.inf), *one.user[1:])).compiled()
    head, nothing = folded_head.compiled(weights_of(one.head), *one.tables), np.zeros((0, 3), np.float32)
    near, weights = np.zeros((2, 3), np.int32), np.zeros((2, 3), np.float16)
    nobody = Histories.one(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64))
    sums = Moment(Listening.of_history(nobody, one.n), NO_SEQUENCES).compiled
    some = np.arange(5)
    for items, rows, played, entry, error in (
        (np.full(one.n, 2), some, some[:0], nothing, "row 2 of a table of 2"),
        (np.full(one.n, -1), some, some[:0], nothing, "row -1 of a table of 2"),
        (np.zeros(3), some, some[:0], nothing, "row 3 of 3"),
        (np.zeros(one.n), some, np.array([one.n]), nothing, f"row {one.n} of {one.n}"),
        (np.zeros(one.n), some, np.array([-1]), nothing, f"row -1 of {one.n}"),
        (np.zeros(one.n), some, some[:1], nothing, "arrays that do not fit"),
        (np.zeros(one.n), np.array([one.n]), some[:0], nothing, f"row {one.n} of {one.n}"),
    ):
        table = item_item.table_of(near, weights, items.astype(np.int32))
        with pytest.raises((IndexError, ValueError), match=error):
            head.score_for(*one.user, rows, table, played, entry, sums)
    table = item_item.table_of(near, weights, np.zeros(one.n, np.int32))
    with pytest.raises(ValueError, match="moment"):
        head.score_for(*one.user, some, table, some[:0], nothing, None)
    with pytest.raises(ValueError, match="do not fit each other"):
        item_item.table_of(near, weights[:1], np.zeros(one.n, np.int32))


@pytest.mark.parametrize("moments", [0, 2])
def test_what_does_not_fit_is_refused_before_anything_is_read(moments: int) -> None:
    one = case(1, moments=moments)
    weights = weights_of(one.head)
    for name, array in weights.items():
        for axis in range(array.ndim):
            for other in (np.delete(array, 0, axis), np.concatenate([array, array.take([0], axis)], axis)):
                if len(array) == 1 < len(other):
                    continue  # a number of its own: the first counts
                with pytest.raises((ValueError, IndexError, KeyError)):
                    folded_head.compiled({**weights, name: other}, *one.tables)
        if name == "moment":
            continue  # a head without a part for moments, which its graph would tell from this one
        with pytest.raises((KeyError, ValueError)):
            folded_head.compiled({key: value for key, value in weights.items() if key != name}, *one.tables)
    for name in ("cross_user_columns", "cross_track_columns", "cross_track_pairs", "preference"):
        for value in (-1, 10**6):
            with pytest.raises((ValueError, OverflowError)):
                folded_head.compiled({**weights, name: np.full_like(weights[name], value)}, *one.tables)


def test_a_part_for_moments_of_fewer_inputs_than_every_one_has_is_refused() -> None:
    one = case(1)
    weights = weights_of(one.head)
    own = np.repeat(weights["moment_own"][:1], len(SIGNALS) + 2, 0)  # fits the signals where strengths are -2
    with pytest.raises(ValueError, match="moments that do not fit"):
        folded_head.compiled({**weights, "moment": weights["moment"][:0], "moment_own": own}, *one.tables)


def test_rows_and_ids_beyond_their_tables_are_refused() -> None:
    one = case(2)
    for row in (-1, one.n, 2**40):
        with pytest.raises(IndexError, match=f"row {row}"):
            folded_head.compiled(weights_of(one.head), *one.tables).score(
                *one.user, np.array([row]), one.together[:1], one.moment[0][:1], one.moment[1]
            )
    for column in range(len(USER_IDS)):
        for value in (-1, USER_IDS[column][1]):
            ids = one.user[2].copy()
            ids[column] = value
            with pytest.raises(IndexError, match=f"id {value}"):
                replace(one, user=(*one.user[:2], ids)).compiled()
    for column, value in ((1, 30), (2, -1), (3, 5)):
        tracks = one.tables[2].copy()
        tracks[7, column] = value
        with pytest.raises(IndexError, match="an id of a track"):
            replace(one, tables=[*one.tables[:2], tracks, one.tables[3]]).compiled()
    for which in range(3):
        parts: list[Any] = list(one.user)
        parts[which] = parts[which][:-1]
        with pytest.raises(ValueError, match="columns"):
            replace(one, user=(parts[0], parts[1], parts[2])).compiled()
    with pytest.raises(ValueError, match="moment"):
        replace(one, moment=[one.moment[0][:, 1:], one.moment[1]]).compiled()
    with pytest.raises(ValueError, match="moment"):
        replace(one, moment=[]).compiled()


# -- in a bundle --------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tiny_store: Path, tmp_path: Path) -> Path:
    """A bundle of one's own, in a store."""
    bundle_id = current_bundle_id(tiny_store)
    (tmp_path / "CURRENT").write_text(f"{bundle_id}\n")
    return Path(shutil.copytree(tiny_store / bundle_id, tmp_path / bundle_id))


def test_a_bundle_answers_as_by_its_graph(tiny_bundle: Bundle) -> None:
    head, graph = tiny_bundle.head, tiny_bundle.head.by_graph()
    assert head.weights
    assert not graph.weights
    history = np.zeros(9, UserState().history.dtype)
    history["track"], history["count"] = tiny_bundle.catalog.hashes[:9], np.arange(1, 10)
    for state in (UserState(), UserState({}, history)):
        ours, theirs = (
            Recommender(replace(tiny_bundle, head=one)).recommend(Query(k=50, state=state)) for one in (head, graph)
        )
        assert (ours.rows == theirs.rows).all()
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-5)
    with plain():
        assert folded_head.read(Path("nowhere"), [folded_head.FILE]) is None


def test_a_bundle_of_before_answers_by_its_graph(copy: Path) -> None:
    now = Bundle.open(copy.parent)
    document = json.loads((copy / "manifest.json").read_text())
    del document["files"][folded_head.FILE]
    put(copy, json.dumps(document))
    (copy / folded_head.FILE).unlink()
    before = Bundle.open(copy.parent)
    assert now.head.weights
    assert before.head.weights is None
    query = Query(k=20)
    assert (Recommender(before).recommend(query).rows == Recommender(now).recommend(query).rows).all()


def test_weights_of_another_head_are_refused(copy: Path) -> None:
    weights = folded_head.read(copy, [folded_head.FILE])
    assert weights
    write_npz(copy / folded_head.FILE, {**weights, "gate_bias": weights["gate_bias"] + 1})
    reseal(copy)
    with pytest.raises(BundleMismatch, match="golden scores"):
        Bundle.open(copy.parent)
    write_npz(copy / folded_head.FILE, {**weights, "bias": weights["bias"][1:]})
    reseal(copy)
    with pytest.raises(BundleMismatch, match="weights that do not fit"):
        Bundle.open(copy.parent)


@pytest.mark.parametrize("bad", ["no archive", "a NaN", "objects"])
def test_weights_that_are_none_are_refused_by_name(copy: Path, bad: str) -> None:
    path, weights = copy / folded_head.FILE, folded_head.read(copy, [folded_head.FILE])
    assert weights
    if bad == "no archive":
        path.write_bytes(b"nothing")
    elif bad == "a NaN":
        write_npz(path, {**weights, "bias": np.full_like(weights["bias"], np.nan)})
    else:
        np.savez(path, bias=np.array([{}], object))
    reseal(copy)
    with pytest.raises(ModelError, match=r"head\.npz: found .*expected the weights of head\.onnx"):
        Bundle.open(copy.parent)


def test_weights_that_nobody_sealed_are_not_read(
    copy: Path, tiny_dataset: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    """Those of another training, left beside a model or a bundle of before."""
    for folder, name in (
        (copy, "manifest.json"),
        (Path(shutil.copytree(tiny_model, tmp_path / "model")), "model.json"),
    ):
        document = json.loads((folder / name).read_text())
        del document["files"][folded_head.FILE]
        put(folder, json.dumps(document)) if folder == copy else (folder / name).write_text(json.dumps(document))
        (folder / folded_head.FILE).write_bytes(b"of another head")
    assert Bundle.open(copy.parent).head.weights is None
    assert Model.open(tmp_path / "model").head.weights is None
    rebuild(tmp_path / "model", tiny_dataset, tmp_path / "new", RebuildSettings(recall_users=20, gate_users=20))
    assert not list((tmp_path / "new").rglob(folded_head.FILE))


def test_it_is_what_answers(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.compiled is not None
    monkeypatch.setattr(type(tiny_bundle.head), "score", None)  # the graph is not run
    assert len(Recommender(tiny_bundle).recommend(Query(k=5)).rows) == 5
