"""The systems of the co-listening table against their definition, solved whole, one by one, in double precision."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.training import ridge

PENALTIES = [(50.0, 0.5), (1.0, 0.0)]


def plays_of(users: int, n: int, density: float, seed: int) -> sp.csr_matrix:
    """Plays with weights as those of histories, of tracks some of which nobody played and some nearly everybody."""
    rng = np.random.default_rng(seed)
    liked = rng.random(n) ** 3 * density * 3
    heard = rng.random((users, n)) < np.where(rng.random(n) < 0.3, 0, liked)
    return sp.csr_matrix(np.where(heard, rng.uniform(0.05, 3, heard.shape), 0).astype(np.float32))


def expected(plays: sp.csr_matrix, near: np.ndarray, track: int, constant: float, share: float) -> np.ndarray:
    x = plays.toarray().astype(np.float64)
    gram = x[:, near].T @ x[:, near]
    left = gram + np.diag(constant + share * np.diag(gram))
    return np.linalg.solve(left, x[:, near].T @ x[:, track])


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 60),
    st.integers(1, 50),
    st.floats(0.02, 0.9),
    st.integers(0, 2**16),
    st.integers(0, 12),
    st.sampled_from([1, 7, 6_000]),
    st.integers(1, 60),
    st.integers(1, 3),
)
def test_every_weight_solves_the_normal_equations(
    users: int, n: int, density: float, seed: int, width: int, dense: int, work: int, threads: int
) -> None:
    plays, width = plays_of(users, n, density, seed), min(width, n - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ridge, "MAX_DENSE_TRACKS", dense)
        patch.setattr(ridge, "WORK_PER_BLOCK", work)
        patch.setattr(ridge, "VALUES_PER_BATCH", 10 * work)
        found = ridge.nearest(plays, width, threads)
        solved = ridge.regressed(found, PENALTIES, threads)
    x = plays.toarray().astype(np.float64)
    gram = x.T @ x
    own = np.diag(gram).copy()
    np.testing.assert_allclose(found.own, own, rtol=1e-4, atol=1e-6)
    cosine = gram / np.sqrt(np.outer(own + ridge.COSINE_SHRINKAGE, own + ridge.COSINE_SHRINKAGE))
    np.fill_diagonal(cosine, 0)
    assert found.neighbours.shape == found.with_track.shape == (n, width)
    for track in range(n):
        real = found.with_track[track] > 0
        near = found.neighbours[track][real]
        assert len(near) == min(width, int((cosine[track] > 0).sum()))
        assert real[: len(near)].all()  # the real ones come first
        assert (np.diff(near) > 0).all()
        assert track not in near
        np.testing.assert_allclose(found.with_track[track][real], gram[track, near], rtol=1e-4)
        if len(near):
            assert cosine[track, near].min() >= np.delete(cosine[track], near).max(initial=0) - 1e-6
        for (constant, share), weights in zip(PENALTIES, solved, strict=True):
            assert (weights[track][~real] == 0).all()
            wanted = expected(plays, near, track, constant, share)
            np.testing.assert_allclose(weights[track][real], wanted, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("dense", [1, 20, 6_000])
def test_tracks_that_nobody_played_change_nothing(dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same plays in a catalogue ten times as large: the same neighbours and weights, under their new rows."""
    monkeypatch.setattr(ridge, "MAX_DENSE_TRACKS", dense)
    plays = plays_of(80, 60, 0.2, 1)
    at = np.sort(np.random.default_rng(0).permutation(600)[:60])
    wide = sp.csr_matrix((plays.data, at[plays.indices], plays.indptr), shape=(80, 600))
    few, many = ridge.nearest(plays, 8), ridge.nearest(wide, 8)
    np.testing.assert_array_equal(many.with_track[at], few.with_track)
    np.testing.assert_array_equal(many.neighbours[at], np.where(few.with_track > 0, at[few.neighbours], 0))
    (small,), (large,) = (ridge.regressed(one, PENALTIES[:1]) for one in (few, many))
    np.testing.assert_array_equal(large[at], small)
    assert not np.delete(large, at, 0).any()
    assert not np.delete(many.with_track, at, 0).any()


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 60))
def test_blocks_hold_every_track_once_and_no_more_than_their_work(work: list[int], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ridge, "WORK_PER_BLOCK", most)
        blocks = ridge._blocks(np.array(work, np.float64))
    assert [i for at in blocks for i in range(at.start, at.stop)] == list(range(len(work)))
    for at in blocks:
        assert at.stop - at.start == 1 or sum(work[at]) <= most


def test_what_a_block_takes_is_bounded_where_everybody_played_the_same() -> None:
    """A track that all played is a block of its own: its product is one row, never a block of them."""
    work = np.r_[np.full(3, 1e9), np.ones(5)]
    assert [at.stop - at.start for at in ridge._blocks(work)] == [1, 1, 1, 5]
