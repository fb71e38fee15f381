"""Rules as pure functions: caps, duplicates, diversity, calibration, places; each law beside an oracle."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.bundle.row_columns import normalised_title
from lhydra.domain import F32, I64
from lhydra.lists.calibration import calibrate, error
from lhydra.lists.caps import CAPPED, DUPLICATE, FREE, admit, fill
from lhydra.lists.compose import Candidates, compose
from lhydra.lists.diversity import LEAST_ODDS, RIDGE, contenders, dpp, mmr
from lhydra.lists.labels import Several, Single
from lhydra.lists.slots import F64, chances, place, spread
from lhydra.rules import Calibration, Collapse, Diversity, Explore, Fresh, Rules

CHI2_999 = {9: 27.88, 4: 18.47}  # 99.9 % points of chi-square by degrees of freedom


def labels_of(lists: list[list[int]], size: int) -> Several:
    """Labels of tracks with these values."""
    offsets = np.cumsum([0, *map(len, lists)])
    return Several(np.array([code for codes in lists for code in codes], np.int64), offsets, size)


@st.composite
def labelled(draw: st.DrawFn, most: int = 3) -> list[list[int]]:
    """Tracks with up to `most` values of six each."""
    one = st.lists(st.integers(0, 5), max_size=most, unique=True)
    return draw(st.lists(one, min_size=1, max_size=30))


@given(labelled(), st.integers(1, 3), st.integers(0, 2))
def test_candidates_are_let_in_greedily_while_caps_hold(tracks: list[list[int]], most: int, first: int) -> None:
    counts: Counter[int] = Counter()
    expected = []
    for i, codes in enumerate(tracks):
        fits = i < first or all(counts[code] < most for code in codes)
        expected.append(FREE if fits else CAPPED)
        counts.update(codes if fits else [])
    assert admit(len(tracks), [(labels_of(tracks, 6), most)], None, first).tolist() == expected


@given(labelled(most=1), st.integers(1, 3), st.lists(st.integers(-1, 3), min_size=30, max_size=30), st.data())
def test_one_value_each_is_no_other_law(
    tracks: list[list[int]], most: int, songs: list[int], data: st.DataObject
) -> None:
    n, groups = len(tracks), np.array(songs[: len(tracks)])
    several, single = labels_of(tracks, 6), Single(np.array([[*codes, -1][0] for codes in tracks]), 6)
    for known in (None, groups):
        assert admit(n, [(single, most)], known).tolist() == admit(n, [(several, most)], known).tolist()
    chosen = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=9)), np.int64)
    for one, other in ((single, several), (single.take(chosen), several.take(chosen))):
        assert len(one) == len(other)
        assert one.lists == other.lists
        assert one.codes.tolist() == other.codes.tolist()
        assert one.shares().tolist() == pytest.approx(other.shares().tolist())
    relevance, wanted = np.sort(np.random.default_rng(n).random(n))[::-1], np.arange(6) / 15
    picked = [calibrate(relevance, labels, wanted, 9, 0.5).tolist() for labels in (single, several)]
    assert picked[0] == picked[1]


@given(labelled(), st.integers(1, 30), st.lists(st.integers(-1, 3), min_size=30, max_size=30))
def test_a_list_is_filled_up_by_duplicates_first(tracks: list[list[int]], k: int, songs: list[int]) -> None:
    groups = np.array(songs[: len(tracks)])
    caps = [(labels_of(tracks, 6), 1)]
    against = admit(len(tracks), caps, groups)
    let_in, duplicates, over = fill(against, caps, k)
    free = np.flatnonzero(against == FREE)
    assert len(free) + len(let_in) >= min(k, len(tracks))
    assert not len(let_in) or len(free) + len(let_in) == min(k, len(tracks))
    assert duplicates + over == len(let_in)
    kept = [*free.tolist(), *let_in[:duplicates].tolist()]
    assert max(Counter(code for i in kept for code in tracks[i]).values(), default=0) <= 1
    known = [songs[i] for i in free if songs[i] >= 0]
    assert len(known) == len(set(known))


def vectors_of(seed: int, n: int, dim: int) -> F32:
    """Unit vectors."""
    found: F32 = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(2, 5), st.floats(0.05, 1.0))
@settings(max_examples=60)
def test_dpp_picks_as_a_greedy_determinant_does(seed: int, n: int, dim: int, strength: float) -> None:
    scores = np.sort(np.random.default_rng(seed).uniform(0.05, 1, n))[::-1]
    vectors = vectors_of(seed, n, dim)
    kernel = vectors.astype(np.float64) @ vectors.T.astype(np.float64) + RIDGE * np.eye(n)
    picked = dpp(scores, vectors, n, strength).tolist()
    assert sorted(picked) == list(range(n))

    def objective(chosen: list[int]) -> float:
        _, logdet = np.linalg.slogdet(kernel[np.ix_(chosen, chosen)])
        return float((1 - strength) * np.log(scores[chosen]).sum() + strength * logdet)

    for t in range(n):
        best = max(objective([*picked[:t], i]) for i in range(n) if i not in picked[:t])
        assert objective(picked[: t + 1]) == pytest.approx(best, abs=1e-3)


@given(st.integers(0, 10_000), st.integers(1, 120), st.integers(2, 40), st.floats(0.05, 1.0))
@settings(max_examples=40, deadline=None)
def test_a_long_dpp_adds_what_the_determinant_says(seed: int, n: int, dim: int, strength: float) -> None:
    rng = np.random.default_rng(seed)
    odds = np.sort(rng.lognormal(0, 1, n))[::-1]
    vectors = vectors_of(seed, n, dim)
    kernel = vectors.astype(np.float64) @ vectors.T.astype(np.float64) + RIDGE * np.eye(n)
    k = min(n, 50)
    picked = dpp(odds, vectors, k, strength).tolist()
    assert len(set(picked)) == k
    left = kernel.copy()  # what tracks share besides those picked: a Schur complement, by plain elimination
    for t, best in enumerate(picked):
        gains = (1 - strength) * np.log(odds) + strength * np.log(left.diagonal())
        gains[picked[:t]] = -np.inf
        assert gains[best] == pytest.approx(gains.max(), abs=1e-3)
        left -= np.outer(left[:, best], left[best]) / left[best, best]
        left[best, best] = 1


def assert_greedy(odds: F64, vectors: F32, picked: list[int], strength: float) -> None:
    """Each pick adds the most, by determinants in float64: sums of logarithms, so nothing is too small to count."""
    kernel = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    left = kernel + RIDGE * np.eye(len(odds))  # besides those picked: a Schur complement, by plain elimination
    assert len(set(picked)) == len(picked)
    for t, best in enumerate(picked):
        gains = (1 - strength) * np.log(np.maximum(odds, LEAST_ODDS)) + strength * np.log(left.diagonal())
        gains[picked[:t]] = -np.inf
        assert gains[best] >= gains.max() - strength * 1e-3 - 1e-12
        left -= np.outer(left[:, best], left[best]) / left[best, best]
        left[best, best] = 1


STRENGTHS = st.one_of(st.floats(1e-3, 0.2), st.floats(0.001, 1.0), st.sampled_from([1e-9, 1e-300, 5e-324, 1 - 1e-9, 1]))


@given(st.integers(0, 10_000), st.integers(2, 60), st.sampled_from([0, 1, 6, 12]), st.integers(0, 5), STRENGTHS)
@settings(max_examples=150, deadline=None)
def test_a_dpp_is_greedy_whatever_lies_between_the_best_odds_and_the_rest(
    seed: int, n: int, powers: int, best: int, strength: float
) -> None:
    """Few tracks may have 10^12 times the odds of the rest, all may be equal, or one track there twice."""
    rng = np.random.default_rng(seed)
    odds = rng.permutation(10.0 ** -rng.integers(0, 2, n)) * rng.choice([1, 0.99, 0.9], n)
    odds[best:] *= 10.0**-powers
    odds = np.sort(odds)[::-1]
    vectors = vectors_of(seed, n, 4)[np.sort(rng.integers(0, n, n))]
    assert_greedy(odds, vectors, dpp(odds, vectors, n, strength).tolist(), strength)


@pytest.mark.parametrize("strength", [1e-6, 0.05, 0.5, 1 - 1e-6, 1])
def test_thousands_of_equal_scores_behind_one_are_as_diverse_as_they_can_be(strength: float) -> None:
    odds, vectors = np.full(3_000, 1e-6), vectors_of(1, 3_000, 16)
    odds[0], vectors[1_500:] = 1.0, vectors[:1_500]  # each twice
    picked = dpp(odds, vectors, 40, strength).tolist()
    assert picked[0] == 0 or strength > 0.9
    assert_greedy(odds, vectors, picked, strength)
    assert picked == dpp(odds * 1e-3, vectors, 40, strength).tolist()


@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(1, 12), st.floats(0.01, 1.0))
@settings(max_examples=100)
def test_dpp_needs_the_vectors_of_contenders_alone(seed: int, n: int, k: int, strength: float) -> None:
    odds = np.sort(np.random.default_rng(seed).lognormal(0, 2, n))[::-1]
    vectors = vectors_of(seed, n, 3)
    able = contenders(odds, k, strength)
    assert len(able) >= min(k, n)
    assert able[dpp(odds[able], vectors[able], k, strength)].tolist() == dpp(odds, vectors, k, strength).tolist()


@given(st.integers(0, 10_000), st.integers(2, 9), st.floats(0.0, 1.0))
@settings(max_examples=60)
def test_mmr_picks_what_is_good_and_unlike_the_rest(seed: int, n: int, strength: float) -> None:
    scores = np.sort(np.random.default_rng(seed).uniform(0.05, 1, n))[::-1]
    vectors = vectors_of(seed, n, 4)
    logs = np.log(scores)
    quality = (logs - logs.min()) / (logs.max() - logs.min())
    near = vectors @ vectors.T
    picked = mmr(scores, vectors, n, strength).tolist()
    assert sorted(picked) == list(range(n))
    for t in range(1, n):
        gain = (1 - strength) * quality - strength * near[:, picked[:t]].max(axis=1)
        gain[picked[:t]] = -np.inf
        assert gain[picked[t]] == pytest.approx(gain.max(), abs=1e-5)


@given(labelled(), st.integers(1, 12), st.floats(0, 1), st.integers(0, 1000))
def test_calibration_is_greedy_on_relevance_and_kl(tracks: list[list[int]], k: int, strength: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    relevance = np.sort(rng.uniform(0.01, 1, len(tracks)))[::-1]
    wanted = rng.dirichlet(np.ones(6))
    labels = labels_of(tracks, 6)
    picked = calibrate(relevance, labels, wanted, k, strength).tolist()
    k = min(k, len(tracks))
    assert len(set(picked)) == len(picked) == k
    usual = relevance[:k].mean()

    def objective(chosen: list[int]) -> float:
        have = 0.01 / 0.99 * wanted * k
        for i in chosen:
            for code in tracks[i]:
                have[code] += 1 / len(tracks[i])
        value = (1 - strength) * relevance[chosen].sum() / (usual * k)
        return float(value + strength * (wanted * np.log(have)).sum())

    for t in range(k):
        best = max(objective([*picked[:t], i]) for i in range(len(tracks)) if i not in picked[:t])
        assert objective(picked[: t + 1]) == pytest.approx(best, abs=1e-9)


@given(labelled(), st.booleans(), st.integers(1, 30), st.floats(0, 1), st.integers(0, 1000))
def test_calibration_picks_as_plain_greedy_does(
    tracks: list[list[int]], single: bool, k: int, strength: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tracks = [codes[:1] for codes in tracks] if single else tracks
    relevance = np.sort(rng.choice([0, 0.2, 0.5, 0.9], len(tracks)))[::-1]  # many are equal
    wanted, held = rng.dirichlet(np.ones(6)) * (rng.random(6) < 0.7), rng.integers(0, 3, 6).astype(float)
    k = min(k, len(tracks))
    have = [wanted[code] * k * 0.01 / 0.99 + held[code] for code in range(6)]
    usual, expected = relevance[:k].mean() or 1 / k, list[int]()
    labels = Single(np.array([[*codes, -1][0] for codes in tracks]), 6) if single else labels_of(tracks, 6)
    picked = calibrate(relevance, labels, wanted, k, strength, held).tolist()

    def gain(i: int) -> float:
        adds = [wanted[c] * np.log1p(1 / len(tracks[i]) / have[c]) for c in tracks[i] if wanted[c]]
        return float((1 - strength) * relevance[i] / (usual * k) + strength * sum(adds))

    for one in picked:
        best = max(gain(i) for i in range(len(tracks)) if i not in expected)
        assert gain(one) == pytest.approx(best, abs=1e-9)
        alike = [i for i in range(one) if tracks[i] == tracks[one] and relevance[i] == relevance[one]]
        assert set(alike) <= set(expected)  # of equals the earlier
        expected.append(one)
        for code in tracks[one]:
            have[code] += 1 / len(tracks[one])


@given(labelled(), st.integers(1, 12), st.floats(0, 1), st.floats(0, 1), st.integers(0, 1000))
def test_calibration_error_never_rises(
    tracks: list[list[int]], k: int, strength: float, spread: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    n, labels, wanted = len(tracks), labels_of(tracks, 6), rng.dirichlet(np.ones(6))
    candidates = Candidates(
        np.sort(rng.uniform(0.01, 1, n))[::-1],
        pins={0: n - 1},
        caps=[("genre", labels, 2)],
        vectors=vectors_of(seed, n, 4).__getitem__,
        mix=(labels, wanted),
        fresh=rng.random(n) < 0.3,
    )
    diverse = Diversity(spread) if spread else None
    plain = Rules(caps=(("genre", 2),), diversity=diverse, fresh=Fresh(1))
    errors = [
        error(wanted, labels.take(compose(rules, candidates, k).order).shares())
        for rules in (
            plain,
            Rules(plain.name, plain.caps, None, diverse, Calibration("genre", strength), fresh=Fresh(1)),
        )
    ]
    assert errors[1] <= errors[0] + 1e-9


def test_a_list_that_greedy_would_leave_further_from_the_mix_stays_as_it_is() -> None:
    labels = labels_of([[0], [1], [0, 2], [0, 1]], 3)
    relevance, wanted = np.array([0.97, 0.89, 0.5, 0.31]), np.array([0.52, 0.4, 0.08])
    picked = calibrate(relevance, labels, wanted, 2, 0.5)
    assert picked.tolist() == [3, 0]
    assert error(wanted, labels.take(picked).shares()) > error(wanted, labels.take(np.arange(2)).shares())
    made = compose(Rules(calibration=Calibration("genre", 0.5)), Candidates(relevance, mix=(labels, wanted)), 2)
    assert made.order.tolist() == [0, 1]
    assert [(one.rule, one.moved) for one in made.applied] == [("calibration", 0)]


def test_who_rises_is_told_not_who_makes_room() -> None:
    candidates = Candidates(np.array([0.9, 0.8, 0.7, 0.6]), factors=np.array([1.0, 1.0, 4.0, 0.5]))
    made = compose(Rules(), candidates, 3)
    assert made.order.tolist() == [2, 0, 1]
    assert made.moved_by == (("boost",), (), ())
    assert made.applied[0].moved == 1


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 500))
def test_with_every_rule_there_are_k_distinct_tracks(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tracks = [rng.permutation(6)[: rng.integers(0, 3)].tolist() for _ in range(n)]
    labels = labels_of(tracks, 6)
    pinned = rng.permutation(n)[: min(n, k, 3)].tolist()
    candidates = Candidates(
        np.sort(rng.uniform(0.01, 1, n))[::-1],
        factors=rng.choice([0.5, 1, 2], n),
        pins=dict(zip(rng.permutation(min(k, n))[: len(pinned)].tolist(), pinned, strict=True)),
        caps=[("genre", labels, 1)],
        groups=rng.integers(-1, 5, n),
        vectors=vectors_of(seed, n, 4).__getitem__,
        mix=(labels, rng.dirichlet(np.ones(6))),
        fresh=rng.random(n) < 0.3,
    )
    rules = Rules(
        "all",
        (("genre", 1),),
        Collapse(),
        Diversity(0.5),
        Calibration("genre", 0.5),
        fresh=Fresh(2),
        explore=Explore(2, pool=5),
    )
    made = compose(rules, candidates, k, seed)
    order = made.order.tolist()
    assert len(order) == len(set(order)) == min(n, k)
    assert {at: order[at] for at in candidates.pins} == dict(candidates.pins)
    assert compose(rules, candidates, k, seed).order.tolist() == order
    assert made.propensity is not None
    assert all(0 < chance <= 1 for chance in made.propensity)


def test_the_draw_has_the_stated_chances() -> None:
    rng = np.random.default_rng(1)
    scores = np.sort(rng.uniform(0.05, 1, 30))[::-1]
    explore = Explore(1, pool=10, temperature=0.7, epsilon=0.2)
    expected = chances(scores[4:14], explore)
    assert expected.sum() == pytest.approx(1)
    assert expected.min() >= 0.02
    seen: Counter[int] = Counter()
    for seed in range(4000):
        placed = place(np.arange(30), 5, scores=scores, explore=explore, seed=seed)
        assert placed.order[:4].tolist() == [0, 1, 2, 3]
        assert placed.propensity[:4].tolist() == [1, 1, 1, 1]
        last = int(placed.order[4])
        assert placed.propensity[4] == pytest.approx(expected[last - 4])
        seen[last] += 1
    counts = np.array([seen[i] for i in range(4, 14)])
    assert counts.sum() == 4000
    assert ((counts - 4000 * expected) ** 2 / (4000 * expected)).sum() < CHI2_999[9]


@given(st.integers(0, 2_000), st.integers(0, 60))
def test_places_are_spread_to_the_end_and_as_many_as_there_is_room_for(slots: int, k: int) -> None:
    places = spread(slots, k)
    assert len(places) == min(slots, k)
    assert places == sorted({at for at in places if 0 <= at < k})
    assert not places or places[-1] == k - 1


def test_places_for_new_tracks_hold_new_ones() -> None:
    fresh = np.zeros(40, np.bool_)
    fresh[[20, 30, 39]] = True
    placed = place(np.arange(40), 10, fresh=fresh, fresh_slots=2)
    assert placed.order.tolist() == [0, 1, 2, 3, 20, 4, 5, 6, 7, 30]
    assert [i for i, why in enumerate(placed.why) if why == "fresh"] == [4, 9]
    assert place(np.arange(40), 10, fresh=fresh, fresh_slots=5).unmet == 2
    fresh[:5] = True  # as many stand there already
    assert place(np.arange(40), 10, fresh=fresh, fresh_slots=2).order.tolist() == list(range(10))


def test_what_moved_is_told() -> None:
    codes = np.array([0, 0, 0, 1, 1, 2])
    candidates = Candidates(np.linspace(1, 0.5, 6), caps=[("artist", Single(codes, 3), 1)])
    made = compose(Rules(caps=(("artist", 1),)), candidates, 3)
    assert made.order.tolist() == [0, 3, 5]
    assert made.moved_by == ((), ("cap artist",), ("cap artist",))
    assert [(one.rule, one.moved, one.gave_way) for one in made.applied] == [("cap artist", 2, "")]
    assert not made.short
    made = compose(Rules(caps=(("artist", 1),)), candidates, 5)
    assert made.order.tolist() == [0, 3, 5, 1, 2]
    assert made.applied[0].gave_way.startswith("2 tracks")
    assert made.short


def test_a_list_that_others_will_be_looked_for_is_not_made() -> None:
    def vectors(chosen: I64) -> F32:
        raise AssertionError(chosen)

    codes = np.array([0, 0, 0, 1, 1, 2])
    candidates = Candidates(np.linspace(1, 0.5, 6), caps=[("artist", Single(codes, 3), 1)], vectors=vectors)
    rules = Rules(caps=(("artist", 1),), diversity=Diversity(0.5))
    early = compose(rules, candidates, 5, even_short=False)
    assert early.short
    assert early.free.tolist() == [0, 3, 5]
    with pytest.raises(AssertionError):
        compose(rules, candidates, 5)
    with pytest.raises(AssertionError):  # not short: the list is made at once
        compose(rules, candidates, 3, even_short=False)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hey Jude", "Hey Jude - Remastered 2015"),
        ("Hey Jude", "hey  jude (2015 Remaster)"),
        ("Déjà Vu", "Deja vu [Live at Wembley]"),
        ("Rehab", "Rehab (feat. Jay-Z)"),
        ("One", "One - Radio Edit"),
    ],
)
def test_versions_of_a_song_have_one_title(one: str, other: str) -> None:
    assert normalised_title(one) == normalised_title(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("Part 1", "Part 2"), ("Sign (Of The Times)", "Sign"), ("Live", "Remix"), ("雨", "夜"), ("1-800", "1")],
)
def test_other_songs_keep_their_titles(one: str, other: str) -> None:
    assert normalised_title(one) != normalised_title(other)


def test_labels_of_chosen_tracks() -> None:
    tracks = [[1, 2], [], [0], [2]]
    labels = labels_of(tracks, 3)
    chosen: I64 = np.array([3, 0, 1])
    assert labels.take(chosen).lists == [tracks[i] for i in chosen]
    assert labels.shares().tolist() == pytest.approx([1 / 3, 0.5 / 3, 1.5 / 3])
    assert all(a <= b for a, b in pairwise(labels.offsets.tolist()))
    assert CAPPED > DUPLICATE > FREE
