"""Rules at their edges: what contradicts, what is empty, what is huge; said or refused, never an inner error."""

from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.columns import Numbers, Words
from lhydra.bundle.manifest import current_bundle_id
from lhydra.data.dataset import Dataset, user_states
from lhydra.domain import Condition, Query, Recommendation, Repeat, UserState
from lhydra.errors import ConfigError, InvalidRequest
from lhydra.limits import MAX_DEPTH
from lhydra.lists.compose import SPREAD, Candidates, compose
from lhydra.lists.file import RuleSets, read
from lhydra.recommender import Recommender
from lhydra.ruled import rules_depth
from lhydra.rules import Boost, Calibration, Diversity, Explore, Fresh, Match, Pin, Rules
from lhydra.unmatched import unmatched
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.config import ServeSettings, WorkerSettings
from lhydra_server.files_in_force import FilesInForce
from lhydra_server.rules import to_rules
from lhydra_server.rules_file import rules_for
from lhydra_server.served import open_served
from tests.fake_serve import write_bundle
from tests.test_rules import EVERYTHING, NOW

Ask = Callable[..., Recommendation]


@pytest.fixture(scope="module")
def recommender(tiny_store: Path) -> Recommender:
    return Recommender(Bundle.open(tiny_store))


@pytest.fixture(scope="module")
def states(tiny_dataset: Dataset) -> list[UserState]:
    return [*(state for _, state in user_states(tiny_dataset, "now", positions=np.array([3]))), UserState()]


def ids_of(recommender: Recommender, rows: list[int]) -> list[str]:
    return recommender.catalog.track_ids(np.array(rows, np.int64))


def pins(ids: list[str], places: list[int]) -> tuple[Pin, ...]:
    return tuple(Pin(Match(tracks=(one,)), place) for one, place in zip(ids, places, strict=True))


def test_of_two_pins_for_one_place_the_earlier_has_it(recommender: Recommender, states: list[UserState]) -> None:
    ids = recommender.catalog.track_ids(recommender.recommend(Query(20, states[0])).rows)[-4:]
    for order in (ids, ids[::-1]):
        found = recommender.recommend(Query(10, states[0], rules=Rules(pins=pins(order, [3, 3, 1, 3]))))
        listed = recommender.catalog.track_ids(found.rows)
        assert [listed[0], *listed[2:5]] == [order[2], order[0], order[1], order[3]]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 10), st.booleans())
@example([2, 2, 3], 10, True)
@example([3, 2, 2], 3, True)
@example([9, 9, 9], 10, True)
def test_pins_stand_in_the_order_of_their_places_and_of_the_file(
    recommender: Recommender, states: list[UserState], places: list[int], k: int, known: bool
) -> None:
    ids = ids_of(recommender, list(range(len(places))))
    query = Query(k, states[0] if known else UserState(), known, repeat=Repeat.ALLOW, now=NOW)
    found = recommender.recommend(replace(query, rules=Rules(pins=pins(ids, places))))
    shown = recommender.catalog.track_ids(found.rows)
    wanted = [one for _, one in sorted(zip(places, ids, strict=True), key=itemgetter(0))][:k]
    at = [shown.index(one) for one in wanted]
    assert at == sorted(at)  # none passes another
    free = set(range(k)) - set(at)
    for i, (own, place) in enumerate(zip(at, sorted(places), strict=False)):
        want = min(place, k) - 1
        between = range(want, own) if own > want else range(own + 1, want + 1)
        assert not free & set(between), (i, at)  # each as near to its place as the others leave room


@pytest.mark.parametrize("slots", [1, 5, 6, 1_000])
def test_more_drawn_places_than_a_list_has_are_all_of_it(
    recommender: Recommender, states: list[UserState], slots: int
) -> None:
    rules = Rules(explore=Explore(slots, pool=20), pins=pins(ids_of(recommender, [0]), [2]))
    found = recommender.recommend(Query(6, states[0], True, repeat=Repeat.ALLOW, now=NOW, rules=rules))
    assert len(found.rows) == 6
    drawn = sum("explore" in moved for moved in found.moved_by)
    assert drawn == min(slots, 5)  # a pinned place is not drawn


def test_pins_for_which_there_is_no_place_are_told(recommender: Recommender, states: list[UserState]) -> None:
    ids = ids_of(recommender, [0, 1, 2])
    for state in states:
        query = Query(2, state, True, repeat=Repeat.ALLOW, now=NOW)
        found = recommender.recommend(replace(query, rules=Rules(pins=pins(ids, [1, 2, 3]))))
        assert found.rows.tolist() == [0, 1]
        assert [one.gave_way for one in found.applied] == ["1 pinned tracks had no place left"]
        twice = recommender.recommend(replace(query, rules=Rules(pins=pins([ids[0], ids[0]], [1, 2]))))
        assert twice.rows[0] == 0
        assert [one.gave_way for one in twice.applied] == [""]  # it is shown


def test_where_nothing_is_left_pins_and_all_rules_answer_nothing(
    recommender: Recommender, states: list[UserState]
) -> None:
    everyone = tuple(ids_of(recommender, list(range(len(recommender.catalog)))))
    nothing = (Condition("genre", any_of=("no such",)),)
    for state in states:
        query = Query(5, state, True, repeat=Repeat.ALLOW, now=NOW)
        pinned = replace(EVERYTHING, pins=pins(list(everyone[:2]), [1, 4]))
        for one in (
            replace(query, rules=pinned, filter=nothing),
            replace(query, rules=replace(pinned, blocks=(Match(tracks=everyone),))),
            replace(query, rules=pinned, exclude=recommender.catalog.hashes),
        ):
            found = recommender.recommend(one)
            assert len(found.rows) == 0
            assert any(said.rule == "pin" and said.gave_way for said in found.applied)
        almost = replace(query, rules=replace(pinned, blocks=(Match(tracks=everyone[1:]),)))
        assert recommender.recommend(almost).rows.tolist() == [0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_rules_give_exactly_k(recommender: Recommender, states: list[UserState], data: st.DataObject) -> None:
    draw = data.draw
    n = len(recommender.catalog)
    column = st.sampled_from(["artist", "genre", "year", "tags", "explicit", "tempo"])
    words = st.sampled_from(["artist", "genre", "tags", "explicit"])
    row = st.integers(0, n - 1)
    some = ids_of(recommender, draw(st.lists(row, max_size=6)))
    rules = Rules(
        "",
        tuple(draw(st.dictionaries(column, st.integers(1, 3), max_size=2)).items()),
        diversity=draw(st.none() | st.builds(Diversity, st.floats(0, 1), st.sampled_from(["dpp", "mmr"]))),
        calibration=draw(st.none() | st.builds(Calibration, words, st.floats(0, 1))),
        boosts=tuple(
            Boost(Match(draw(words), ("rock", "1", "")), factor)
            for factor in draw(st.lists(st.sampled_from([1e6, 1e-6, 1.0]), max_size=2))
        ),
        pins=pins(
            [*some, "no such"], draw(st.lists(st.integers(1, 99), min_size=len(some) + 1, max_size=len(some) + 1))
        ),
        blocks=tuple(Match(tracks=(one,)) for one in ids_of(recommender, draw(st.lists(row, max_size=3)))),
        fresh=draw(st.none() | st.builds(Fresh, st.integers(1, 9), st.just("year"), within=st.floats(0, 50))),
        explore=draw(st.none() | st.builds(Explore, st.integers(1, 9), st.integers(2, 9), st.floats(0.01, 100))),
    )
    query = Query(draw(st.sampled_from([1, 2, 10, n + 9])), draw(st.sampled_from(states)), True, now=NOW, rules=rules)
    found = recommender.recommend(replace(query, repeat=Repeat.ALLOW, seed=draw(st.integers(0, 2**64 - 1))))
    blocked = {one.tracks[0] for one in rules.blocks}
    shown = recommender.catalog.track_ids(found.rows)
    assert len(set(shown)) == min(query.k, recommender.catalog.n_eligible - len(blocked))
    assert not blocked & set(shown)
    if found.propensity is not None:
        assert ((found.propensity > 0) & (found.propensity <= 1)).all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_rules_name_and_no_track_has_is_said_and_nothing_else(
    recommender: Recommender, data: st.DataObject
) -> None:
    filters, catalog = recommender.bundle.filters, recommender.catalog
    words, numbers = filters.columns["genre"], filters.columns["year"]
    assert isinstance(words, Words)
    assert isinstance(numbers, Numbers)
    known = {
        "genre": words.texts.at(np.arange(len(words.texts))),
        "year": [f"{year:g}" for year in np.unique(numbers.values[~np.isnan(numbers.values)])],
        "": ids_of(recommender, [0, 1, 2]),
    }
    wrong = {"genre": ["no genre", "nor this"], "year": ["1066", "2999.5"], "": ["no track", "\u00fc"]}

    def some(column: str) -> tuple[str, ...]:
        pool = st.sampled_from([*known[column], *wrong[column]])
        return tuple(data.draw(st.lists(pool, min_size=1, max_size=2, unique=True)))

    def match(column: str) -> Match:
        return Match(column, some(column)) if column else Match(tracks=some(""))

    rules = Rules(
        boosts=(Boost(match(data.draw(st.sampled_from(sorted(known)))), 2.0),),
        blocks=(match(data.draw(st.sampled_from(sorted(known)))),),
        pins=pins(list(some("")[:1]), [1]),
    )
    line = unmatched({"home": rules}, catalog.rows, filters)
    expected = [
        f"home.{where}: " + (f"no track has {one.column} {value!r}" if one.column else f"no track {value!r}")
        for where, one in rules.matches
        for value in one.tracks + one.values
        if value in wrong[one.column]
    ]
    assert line == "; ".join(expected)


def test_a_line_of_unmatched_values_is_bounded_and_names_the_other_spelling(recommender: Recommender) -> None:
    words = recommender.bundle.filters.columns["genre"]
    assert isinstance(words, Words)
    genre, ids = words.texts.at(np.array([0]))[0], tuple(f"{i}{'x' * 200}" for i in range(3_000))
    rules = Rules(blocks=(Match("genre", (genre.upper(),)), Match(tracks=ids)))
    line = unmatched({"home": rules}, recommender.catalog.rows, recommender.bundle.filters)
    assert line.startswith(f"home.blocks: no track has genre {genre.upper()!r} ({genre!r}?); home.blocks: no track '0x")
    assert line.endswith("; and 2996 more")
    assert len(line) < 1_100


def test_a_worker_warns_of_rules_that_say_nothing(
    tiny_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served = open_served(WorkerSettings(str(tiny_store), current_bundle_id(tiny_store), ""))
    (tmp_path / "rules.yaml").write_text("sets: {home: {pin: [{track: gone}]}}")
    caplog.clear()
    assert list(rules_for(str(tmp_path), served).sets) == ["home"]
    assert caplog.messages == ["rules: home.pins: no track 'gone'"]


def test_no_k_makes_rules_cost_without_bound() -> None:
    assert rules_depth(300, 50) == 300
    assert rules_depth(300, 1_000) == 3_000
    assert rules_depth(10_000, 10_000) == MAX_DEPTH
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(4 * SPREAD, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = np.sort(rng.uniform(0.9, 1, len(vectors)))[::-1]
    for method in ("dpp", "mmr"):
        rules = Rules(diversity=Diversity(0.6, method))
        made = compose(rules, Candidates(scores, vectors=vectors.__getitem__), 2 * SPREAD)
        short = compose(rules, Candidates(scores, vectors=vectors.__getitem__), SPREAD)
        assert made.order[:SPREAD].tolist() == short.order.tolist()
        assert made.order[SPREAD:].tolist() == sorted(made.order[SPREAD:].tolist())
        assert [one.gave_way for one in (*made.applied, *short.applied)] == [f"only the first {SPREAD} places", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('sets: {a: {block: [{tracks: ["\\ud800"]}]}}', "block[0].tracks[0]: found"),
        ('sets: {a: {pin: [{track: "a\\tb"}]}}', "pin[0].track: found"),
        ('sets: {a: {block: [{column: genre, values: ["\\ud800"]}]}}', "block[0].values[0]: found"),
        ('sets: {"\\ud800": {caps: {artist: 1}}}', "sets: found"),
        ("sets: {a: {pin: [{track: t, until: 1970-01-01}]}}", "pin[0].until: found 1970-01-01, expected a date"),
        (
            "sets: {a: {pin: [{track: t, since: 2026-12-24, until: 2026-12-24}]}}",
            "pin[0].until: found 2026-12-24, expected a time after since",
        ),
        (
            "sets: {a: {boost: [{tracks: [t], factor: 2, since: 2026-12-24T01:00+02:00, until: 2026-12-23T22:00Z}]}}",
            "boost[0].until: found 2026-12-23T22:00Z, expected a time after since",
        ),
        ("sets: " + "[" * 3000, "expected a YAML file"),
        ("sets: &a {b: *a}", "unknown key"),
    ],
)
def test_a_file_that_could_never_act_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read(path)
    assert message in str(error.value)
    str(error.value).encode()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_a_number_that_no_column_holds_is_refused(value: str) -> None:
    asked = pb.RecommendRequest(rules=pb.Rules(blocks=[pb.ColumnValues(column="year", values=[value])]))
    with pytest.raises(InvalidRequest, match=r"rules.blocks"):
        to_rules(asked, RuleSets(), {"year": "year"})


def test_a_bundle_that_brings_the_column_makes_a_refused_file_good(tmp_path: Path) -> None:
    for name in ("old", "new"):
        write_bundle(tmp_path / "store", name, n=20)
    (tmp_path / "store" / "old" / "filters.json").write_text('{"tracks": 20, "columns": {"genre": "categorical"}}')
    (tmp_path / "store" / "new" / "filters.json").write_text('{"tracks": 20, "columns": {"mood": "categorical"}}')
    path = tmp_path / "rules.yaml"
    path.write_text("sets: {a: {caps: {artist: 1}}}")
    watched = FilesInForce(ServeSettings(rules=str(path)), tmp_path / "store")
    watched.open("old")
    path.write_text("sets: {a: {caps: {mood: 1}}}")
    watched.look("old")
    assert "found 'mood'" in watched.told["rules_error"]
    assert watched.failures["rules"] == 1
    watched.look("old")
    assert watched.failures["rules"] == 1  # counted once
    watched.look("new")
    assert watched.told["rules_error"] == ""
    assert read(Path(watched.in_force["rules"]) / "rules.yaml").sets["a"].caps == (("mood", 1),)
    watched.close()
