"""The compiled user tower: the user tower's own vectors, whatever the company, and nothing read that is not there."""

import itertools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.bundle import folded_head
from lhydra.bundle.arrays import write_npz
from lhydra.bundle.bundle import Bundle, Golden
from lhydra.bundle.history_vectors import HistoryVectors
from lhydra.bundle.manifest import current_bundle_id
from lhydra.domain import F32, I64
from lhydra.errors import BundleMismatch, ModelError
from lhydra.training.folded import weights_of_tower
from lhydra.training.model import UserTower
from lhydra.training.shape import Shape
from tests.compiled_kernels import plain, where_a_compiler_is
from tests.test_bundle import reseal

if TYPE_CHECKING:
    from lhydra.kernels.compiled import CompiledTower

pytestmark = where_a_compiler_is
USER_IDS = (("gender", 3), ("region", 6), ("country", 7))
N = 50  # tracks
Users = tuple[F32, I64, I64, I64, F32]  # dense, ids, offsets, rows, entry


def tower_of(seed: int, dim: int = 16, hidden: int = 24, dense: int = 9, columns: int = 3) -> UserTower:
    torch.manual_seed(seed)
    tower = UserTower(Shape(dim, hidden, 0.1, 5, (("track_id", 9),), 1, dense, USER_IDS[:columns], (0, 5)), 3).eval()
    with torch.no_grad():
        for value in tower.parameters():
            value.copy_(0.5 * torch.randn(value.shape))
    return tower


def compiled(tower: UserTower, history: HistoryVectors, columns: int = 3) -> "CompiledTower":
    starts = np.cumsum([0, *(size for _, size in USER_IDS[:columns])])
    found = folded_head.compiled_tower(weights_of_tower(tower) | {"user_id_starts": starts}, history.table)
    assert found is not None
    return found


def users_of(rng: np.random.Generator, lengths: list[int], dense: int = 9, columns: int = 3) -> Users:
    n, offsets = len(lengths), np.cumsum([0, *lengths])
    ids = np.stack([rng.integers(0, size, n) for _, size in USER_IDS[:columns]], 1) if columns else np.zeros((n, 0))
    rows, entry = rng.integers(0, N, offsets[-1]), 3 * rng.normal(size=(offsets[-1], 3)).astype(np.float32)
    return rng.normal(size=(n, dense)).astype(np.float32), ids.astype(np.int64), offsets, rows, entry


def by_network(tower: UserTower, history: HistoryVectors, users: Users) -> F32:
    dense, ids, offsets, rows, entry = users
    found = []
    for i, (begin, end) in enumerate(itertools.pairwise(offsets)):
        own = torch.from_numpy(history.at(rows[None, begin:end]))
        parts = torch.from_numpy(dense[i : i + 1]), torch.from_numpy(ids[i : i + 1])
        with torch.no_grad():
            entries = torch.from_numpy(entry[None, begin:end])
            found.append(tower(*parts, own, entries, torch.ones(1, end - begin))[0].numpy())
    return np.stack(found)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    dim=st.integers(1, 40),
    hidden=st.integers(1, 40),
    dense=st.integers(1, 12),
    columns=st.integers(0, 3),
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4),
)
def test_it_gives_what_the_network_gives(
    seed: int, dim: int, hidden: int, dense: int, columns: int, lengths: list[int]
) -> None:
    rng, tower = np.random.default_rng(seed), tower_of(seed, dim, hidden, dense, columns)
    vectors = rng.normal(size=(N, dim)).astype(np.float32) * 10.0 ** rng.integers(-3, 2, (N, 1))
    history, users = HistoryVectors.of(vectors.astype(np.float32)), users_of(rng, lengths, dense, columns)
    found = compiled(tower, history, columns).embed(*users)
    np.testing.assert_allclose(found, by_network(tower, history, users), atol=2e-5)


def test_a_vector_depends_on_no_other_user() -> None:
    rng, tower = np.random.default_rng(0), tower_of(0)
    history = HistoryVectors.of(rng.normal(size=(N, 16)).astype(np.float32))
    dense, ids, offsets, rows, entry = users = users_of(rng, [3, 0, 50, 1, 12])
    loop = compiled(tower, history)
    together = loop.embed(*users)
    for i, (begin, end) in enumerate(itertools.pairwise(offsets)):
        one = dense[i : i + 1], ids[i : i + 1], np.array([0, end - begin]), rows[begin:end], entry[begin:end]
        assert (loop.embed(*one) == together[i]).all()


def test_what_does_not_fit_is_refused_before_anything_is_read() -> None:
    rng, tower = np.random.default_rng(0), tower_of(1)
    history = HistoryVectors.of(rng.normal(size=(N, 16)).astype(np.float32))
    weights = weights_of_tower(tower) | {"user_id_starts": np.cumsum([0, 3, 6, 7])}
    for name, array in weights.items():
        for axis in range(array.ndim):
            for other in (np.delete(array, 0, axis), np.concatenate([array, array.take([0], axis)], axis)):
                if (name, axis) == ("tower_dense", 0):
                    continue  # told from the users'
                with pytest.raises(ValueError, match="do not fit"):
                    folded_head.compiled_tower({**weights, name: other}, history.table)
        if name != "tower_weigh":
            with pytest.raises(KeyError):
                folded_head.compiled_tower({key: value for key, value in weights.items() if key != name}, history.table)
    dense, ids, offsets, rows, entry = users = users_of(rng, [2, 3])
    loop, wrong = compiled(tower, history), list[tuple[Users, type[Exception]]]()
    for bad in (-1, N):
        wrong.append(((dense, ids, offsets, np.where(rows == rows[1], bad, rows), entry), IndexError))
    for bad in (-1, 7):
        wrong.append(((dense, np.full_like(ids, bad), offsets, rows, entry), IndexError))
    wrong += [
        ((dense, ids, other, rows, entry), ValueError) for other in (offsets[:-1], offsets + 1, offsets[::-1].copy())
    ]
    wrong += [((dense[:, 1:].copy(), ids, offsets, rows, entry), ValueError)]
    wrong += [
        ((dense, ids[:1], offsets, rows, entry), ValueError),
        ((dense, ids, offsets, rows, entry[1:]), ValueError),
    ]
    wrong += [((dense, ids, offsets, rows, entry[:, :2].copy()), ValueError)]
    wrong += [((dense * np.float32("nan"), ids, offsets, rows, entry), FloatingPointError)]
    wrong += [((dense, ids, offsets, rows, entry * np.float32("nan")), FloatingPointError)]
    for given_users, error in wrong:
        with pytest.raises(error):
            loop.embed(*given_users)
    assert loop.embed(*users).shape == (2, 16)


@pytest.fixture
def copy(tiny_store: Path, tmp_path: Path) -> Path:
    """A bundle of one's own, in a store."""
    bundle_id = current_bundle_id(tiny_store)
    (tmp_path / "CURRENT").write_text(f"{bundle_id}\n")
    return Path(shutil.copytree(tiny_store / bundle_id, tmp_path / bundle_id))


def test_a_bundle_embeds_as_by_its_graph(tiny_bundle: Bundle, copy: Path) -> None:
    users = Golden.open(copy / "golden.npz").users
    assert tiny_bundle._compiled_tower is not None
    graph = tiny_bundle.user_tower.embed(users, tiny_bundle.catalog.history)
    assert np.abs(tiny_bundle.embed(users) - graph).max() > 0  # of the loop
    np.testing.assert_allclose(tiny_bundle.embed(users), graph, atol=1e-6)
    with plain():
        opened = Bundle.open(copy.parent)
        assert (opened.embed(users) == graph).all()


def test_weights_of_a_head_alone_leave_the_tower_to_its_graph(copy: Path) -> None:
    """As they were before the tower was among them; and history vectors of before are no int8."""
    now, users = Bundle.open(copy.parent), Golden.open(copy / "golden.npz").users
    weights = folded_head.read(copy, [folded_head.FILE])
    assert weights
    halves = now.catalog.history.at(np.arange(len(now.catalog))[None])[0]
    assert folded_head.compiled_tower(weights, halves) is None
    write_npz(copy / folded_head.FILE, {name: one for name, one in weights.items() if not name.startswith("tower_")})
    reseal(copy)
    before = Bundle.open(copy.parent)
    assert before._compiled_tower is None
    assert (before.embed(users) == now.user_tower.embed(users, now.catalog.history)).all()


def test_weights_of_another_tower_are_refused(copy: Path) -> None:
    weights = folded_head.read(copy, [folded_head.FILE])
    assert weights
    for name, other, message in (
        ("tower_second_bias", weights["tower_second_bias"] + 1, "golden vectors"),
        ("tower_bias", weights["tower_bias"][1:], "weights of a user tower that do not fit"),
    ):
        write_npz(copy / folded_head.FILE, {**weights, name: other})
        reseal(copy)
        with pytest.raises(BundleMismatch, match=message):
            Bundle.open(copy.parent)
    write_npz(copy / folded_head.FILE, {**weights, "tower_bias": np.full_like(weights["tower_bias"], 3e38)})
    reseal(copy)
    with pytest.raises(ModelError, match=r"head\.npz: found a user vector that is not finite"):
        Bundle.open(copy.parent)
