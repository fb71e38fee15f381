"""Similar tracks: the laws of every list, the order held to a brute-force sum, and the method on a real server."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lhydra import similar
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.columns import normalised
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import F32, Condition, Query, UserState, track_hashes
from lhydra.errors import DeadlineExceeded, InvalidRequest
from lhydra.features.sequences import NO_SEQUENCES, fit_sequences
from lhydra.recommender import Recommender
from lhydra.rules import Rules
from lhydra.similar import Similar, SimilarQuery
from lhydra_client import Client, Filter
from lhydra_client import InvalidRequest as Refused
from tests.test_query import query as asked_on_the_shell
from tests.test_supervisor import Server, running


@pytest.fixture(scope="module")
def sequenced(tiny_store: Path) -> Bundle:
    """A bundle with tables of sequences, of random sessions."""
    bundle = Bundle.open(tiny_store)
    rng, n = np.random.default_rng(5), len(bundle.catalog)
    track, session = rng.integers(0, n, 4_000), np.sort(rng.integers(0, 400, 4_000))
    return replace(bundle, sequences=fit_sequences(track, session, np.bincount(track, minlength=n)))


@pytest.fixture(scope="module")
def found(sequenced: Bundle) -> Similar:
    return Similar(Recommender(sequenced))


def ids(bundle: Bundle, rows: Any) -> list[str]:
    return bundle.catalog.track_ids(np.asarray(rows, np.int64))


def names(bundle: Bundle) -> list[str]:
    return ids(bundle, range(len(bundle.catalog)))


def asked(seeds: Any, k: int, dislikes: Any = (), personal: bool = False, **more: Any) -> SimilarQuery:
    return SimilarQuery(track_hashes(seeds), Query(k, **more), track_hashes(dislikes), personal)


def likeness(bundle: Bundle, seeds: list[int], dislikes: list[int]) -> F32:
    """The sum of the module's docstring, track by track in plain Python."""
    catalog, sequences = bundle.catalog, bundle.sequences
    vectors = np.asarray(catalog.vectors, np.float32)
    direction = vectors[seeds].mean(0) - (similar.SKIP_WEIGHT * vectors[dislikes].mean(0) if dislikes else 0)
    direction /= np.linalg.norm(direction)
    n, items = len(catalog), catalog.item_rows.tolist()
    table = [
        dict(zip(others, weights, strict=True))
        for others, weights in zip(catalog.neighbours.tolist(), catalog.neighbour_weights.tolist(), strict=True)
    ]
    pairs: list[dict[int, float]] = [{}, {}]
    for seed in seeds:
        others, of_others, _, follow = sequences.others(np.array([seed]))
        for which, part in enumerate((slice(follow), slice(follow, None))):
            rows, weights = others[part], of_others[part]
            for row, weight in zip(rows.tolist(), weights.tolist(), strict=True):
                pairs[which][row] = pairs[which].get(row, 0) + weight / len(seeds)
    out = np.empty(n, np.float32)
    for row in range(n):
        together = sum(max(table[items[seed]].get(items[row], 0), 0) for seed in seeds if items[seed] and items[row])
        together += max(sum(table[items[row]].get(items[seed], 0) for seed in seeds if items[seed] and items[row]), 0)
        follows, shares = (
            (pairs[which].get(row, 0) / max(pairs[which].values())) ** 0.5 if pairs[which] else 0.0 for which in (0, 1)
        )
        audience = np.log(catalog.share[row] + similar.RARE)
        parts = (vectors[row] @ direction, (together / len(seeds)) ** 0.5, follows, shares, audience)
        out[row] = sum(weight * part for weight, part in zip(similar.WEIGHTS, parts, strict=True))
    return out


@pytest.mark.parametrize("draw", range(12))
def test_the_most_alike_of_all_come_first(sequenced: Bundle, found: Similar, draw: int) -> None:
    rng = np.random.default_rng(draw)
    everything = names(sequenced)
    n = len(everything)
    drawn = rng.permutation(n).tolist()
    seeds, dislikes, k = drawn[: 1 + draw % 4], drawn[4 : 4 + draw % 3], int(rng.integers(1, 40))
    answer = found.find(asked([everything[one] for one in seeds], k, [everything[one] for one in dislikes], depth=n))
    expected = likeness(sequenced, seeds, dislikes)
    np.testing.assert_allclose(answer.logits, expected[answer.rows], atol=2e-3)
    rest = np.setdiff1d(np.arange(n), [*seeds, *dislikes])
    best = np.sort(expected[rest])[::-1][: len(answer.rows)]
    np.testing.assert_allclose(expected[answer.rows], best, atol=2e-3)
    assert len(answer.rows) == min(k, len(rest))


@pytest.mark.parametrize("draw", range(24))
def test_lists_keep_every_law(sequenced: Bundle, found: Similar, tiny_dataset: Dataset, draw: int) -> None:
    rng, everything = np.random.default_rng(draw), names(sequenced)
    drawn = [everything[one] for one in rng.permutation(len(everything))]
    seeds, dislikes, out = drawn[: 1 + draw % 5], drawn[2 : 2 + draw % 4], drawn[4 : 4 + 10 * (draw % 3)]
    k, personal = int(rng.integers(1, 2 * len(everything))), bool(draw % 2)
    rules = Rules(caps=(("artist", 2),)) if draw % 4 >= 2 else None
    conditions = normalised((Condition("genre", none_of=("Jazz", "Rock")),)) if draw % 3 else ()
    state = next(user_states(tiny_dataset, "test", positions=np.array([0])))[1] if personal else UserState()
    wanted = asked(
        seeds, k, dislikes, personal, exclude=track_hashes(out), filter=conditions, rules=rules, state=state, now=10**9
    )
    answer, again = found.find(wanted), found.find(wanted)
    eligible = sequenced.filters.mask(conditions) if conditions else np.ones(len(everything), np.bool_)
    left = {name for name, there in zip(everything, eligible, strict=True) if there} - {*seeds, *dislikes, *out}
    got = ids(sequenced, answer.rows)
    assert len(got) == len(set(got)) == min(k, len(left))
    assert set(got) <= left
    assert got == ids(sequenced, again.rows)
    np.testing.assert_array_equal(answer.scores, again.scores)
    assert ((answer.scores >= 0) & (answer.scores <= 1)).all()
    if rules is None:
        assert (np.diff(answer.scores) <= 0).all()


def test_a_track_that_nobody_has_played_has_similar_ones(sequenced: Bundle) -> None:
    catalog = sequenced.catalog
    unplayed = 7
    items, share = catalog.item_rows.copy(), catalog.share.copy()
    items[unplayed], share[unplayed] = 0, 0
    changed = replace(catalog, item_rows=items, share=share)
    bundle = replace(sequenced, catalog=changed, sequences=NO_SEQUENCES)
    answer = Similar(Recommender(bundle)).find(asked(ids(bundle, [unplayed]), 10))
    assert len(answer.rows) == 10
    assert unplayed not in answer.rows
    back = Similar(Recommender(bundle)).find(asked(ids(bundle, answer.rows[:1]), len(catalog)))
    assert unplayed in back.rows


def test_a_users_head_orders_the_most_alike(sequenced: Bundle, found: Similar, tiny_dataset: Dataset) -> None:
    recommender = found.recommender
    (seed,) = ids(sequenced, [3])
    alike = found.find(asked([seed], similar.PERSONAL_PLACES))
    orders = []
    for _, state in user_states(tiny_dataset, "test", positions=np.arange(5)):
        answer = found.find(asked([seed], 10, personal=True, state=state, now=10**9))
        nearest = alike.rows[: similar.PERSONAL_PLACES]
        logits, _ = recommender.score(state, nearest, 10**9)
        expected = nearest[np.lexsort((nearest, -logits))][:10]
        assert answer.rows.tolist() == expected.tolist()
        orders.append(tuple(expected))
    assert len(set(orders)) > 1


def test_unknown_seeds_are_left_out_and_without_any_it_is_refused(sequenced: Bundle, found: Similar) -> None:
    first, second = ids(sequenced, [1, 2])
    alone = found.find(asked([first, second], 10))
    assert found.find(asked([second, "nowhere", first, first], 10)).rows.tolist() == alone.rows.tolist()
    with pytest.raises(InvalidRequest, match="track_ids: found no track of this bundle, expected 1 or more"):
        found.find(asked(["nowhere"], 10))


def test_who_has_left_is_not_worked_for(sequenced: Bundle, found: Similar) -> None:
    def left() -> None:
        raise DeadlineExceeded("gone")

    with pytest.raises(DeadlineExceeded):
        found.find(asked(ids(sequenced, [1]), 10), left)


# -- on a server ---------------------------------------------------------------------------------------------


def test_every_stage_is_timed(found: Similar, sequenced: Bundle) -> None:
    answer = found.find(asked(ids(sequenced, [3, 4]), 10))
    assert list(answer.stage_us) == ["exclude", "embed", "retrieve", "rerank", "select"]


@pytest.fixture(scope="module")
def server(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("similar")
    shutil.copytree(tiny_store, folder / "store")
    serve = ("-m", "lhydra.cli", "serve", folder / "store", "--port", "0", "--workers", "1")
    with running(serve, folder / "log") as started:
        yield started


def test_the_method_answers_what_the_core_finds(server: Server, tiny_dataset: Dataset, tiny_store: Path) -> None:
    core = Similar(Recommender(Bundle.open(tiny_store)))
    bundle = core._bundle
    first, second, third = tiny_dataset.track_ids[:3]
    with Client(server.address, timeout_s=60) as client:
        answer = client.similar([first, second], 20, dislike=[third], exclude=tiny_dataset.track_ids[5:9])
        found = core.find(asked([first, second], 20, [third], exclude=track_hashes(tiny_dataset.track_ids[5:9])))
        assert [track.track_id for track in answer.tracks] == ids(bundle, found.rows)
        assert [track.score for track in answer.tracks] == pytest.approx(found.scores.tolist(), abs=1e-6)
        assert (answer.tier, answer.degraded) == ("history", ())
        user = tiny_dataset.user_ids[0]
        own = client.similar([first], 20, user_id=user, now_s=2_000_000_000)
        assert own.tier == "personal"
        stranger, nobody = client.similar([first], 20, user_id="a stranger"), client.similar([first], 20)
        assert stranger.tracks == nobody.tracks
        few = client.similar([first, "nowhere"], 5, max_per_artist=1, filter=Filter(artists=["nobody at all"]))
        assert few.tracks == ()
        unheld, unknown = few.degraded
        assert unheld == "unknown_tracks: this bundle does not hold 1 of 2 seeds"
        assert unknown == "unknown_values: no track has artist 'nobody at all'"


@pytest.mark.parametrize(
    ("request_of", "told"),
    [
        ({"track_ids": []}, "track_ids: found 0 tracks, expected 1 to 100"),
        ({"track_ids": ["t"] * 101}, "track_ids: found 101 tracks"),
        ({"track_ids": ["nowhere"]}, "track_ids: found no track of this bundle"),
        ({"track_ids": ["a", ""]}, r"track_ids\[1\]: found 0 characters"),
        ({"track_ids": ["a"], "dislike": [""]}, r"dislike_track_ids\[0\]: found 0 characters"),
        ({"track_ids": ["a"], "k": 0}, "k: found 0"),
        ({"track_ids": ["a"], "user_id": "x" * 300}, "user_id: found 300 characters"),
        ({"track_ids": ["a"], "rules": "none such"}, "rules.set: found "),
        ({"track_ids": ["a"], "diversity": 2.0}, "diversity.strength: found 2"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_its_field(server: Server, request_of: dict[str, Any], told: str) -> None:
    with Client(server.address, timeout_s=60) as client, pytest.raises(Refused, match=f"^{told}"):
        client.similar(**request_of)


def test_the_shell_asks_for_it(server: Server, tiny_dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tiny_dataset.track_ids[:2]
    flags = ["--k", "3", "--for", tiny_dataset.user_ids[0], "--dislike", second, "--address", server.address]
    assert asked_on_the_shell("similar", first, *flags) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"similar to {first} for {tiny_dataset.user_ids[0]} · tier personal")
    assert len(out) == 2 + 3
