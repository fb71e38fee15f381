"""The drill of the loop: laws of its listeners, and that both services meet the same people with the same luck."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.loop.command import Drill, past_of
from benchmarks.loop.figures import compared, figures, page
from benchmarks.loop.listeners import (
    MOST_PLAYS,
    WEEK_S,
    Draws,
    K,
    Past,
    Taste,
    best_list,
    draw_week,
    expected_liking,
    first_day,
    listen,
    position_bias,
    taste_of,
)
from benchmarks.loop.plot import write_plot
from benchmarks.loop.service import TWINS, serve_week
from benchmarks.machine import machine, versions
from lhydra.data.world import CELLS, START, World, make_world
from lhydra_client import Client

USERS, TRACKS, SEED = 40, 200, 3


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(USERS, TRACKS, 10 * USERS, SEED)


@pytest.fixture(scope="module")
def taste(world: World) -> Taste:
    return taste_of(world, 0)


@pytest.fixture(scope="module")
def draws(world: World) -> Draws:
    return draw_week(world, 0, SEED)


@pytest.fixture
def past(world: World) -> list[Past]:
    return past_of(world, SEED)


@dataclass
class Shelf:
    """A client of a service that shows everybody the first tracks not heard before."""

    first: int = 0
    heard: dict[str, set[int]] = field(default_factory=dict)
    recorded: list[Any] = field(default_factory=list)

    def recommend_many(self, requests: Iterable[Any]) -> Iterable[Any]:
        for request in requests:
            known = self.heard.setdefault(request.user_id, set())
            rows = [row for row in range(self.first, TRACKS) if row not in known][: request.k]
            tracks = [SimpleNamespace(track_id=f"T{row:07}") for row in rows]
            yield SimpleNamespace(tracks=tracks, degraded=(), request_id=f"about-{request.user_id}-{request.now_s}")

    def record_plays(self, plays: Sequence[Any]) -> Any:
        self.recorded += plays
        for play in plays:
            self.heard.setdefault(play.user_id, set()).add(int(play.track_id[1:]))
        return SimpleNamespace(duplicates=0)


def service(past: Sequence[Past], first: int = 0) -> Shelf:
    return Shelf(first, {f"U{user:06}": set(own.tracks) for user, own in enumerate(past)})


def test_taste_is_the_chance_that_the_world_plays_by(world: World, taste: Taste) -> None:
    day = first_day(0)
    cells = world.taste(slice(0, USERS))[:, day * 8 // 731]
    user = int(np.flatnonzero(~world.audience.noisy)[0])
    by_hand = np.zeros(TRACKS)
    for cell in range(CELLS):
        own = np.flatnonzero((world.catalog.cell == cell) & (world.catalog.release_day <= day))
        by_hand[own] = cells[user, cell] * world.catalog.weight[own] / world.catalog.weight[own].sum()
    np.testing.assert_allclose(np.diff(taste.own[user], prepend=0), by_hand, atol=1e-12)
    np.testing.assert_allclose(taste.own[:, -1], 1)
    assert (np.argsort(-taste.liking[user], kind="stable") == np.argsort(-by_hand, kind="stable")).all()


def test_nothing_is_played_before_its_release(world: World, draws: Draws, past: list[Past]) -> None:
    released = START + 86_400 * world.catalog.release_day
    for week in range(2):
        client = cast(Client, service(past))
        played, _ = serve_week(client, taste_of(world, week), draw_week(world, week, SEED), past, week)
        assert all(one.place or one.time >= released[one.track] for one in played)
    for own in past:
        assert own.times == sorted(set(own.times))


def test_looking_falls_with_the_place() -> None:
    bias = position_bias(K)
    assert bias[0] == 1
    assert (np.diff(bias) < 0).all()
    assert bias[-1] > 0


def test_plays_of_a_list_fall_with_the_place(taste: Taste, draws: Draws) -> None:
    even = replace(taste, liking=np.full_like(taste.liking, 0.3))
    patient = draws._replace(plays=np.full_like(draws.plays, MOST_PLAYS))
    counts = np.zeros(K + 1)
    for user in range(USERS):
        for session in range(6):
            for play in listen(even, patient, user, session, range(K), Past()):
                counts[play.place] += 1
    first, last = counts[1:4].sum(), counts[-3:].sum()
    assert first > 1.5 * last > 0  # 2.1 times by the law


def test_the_best_list_has_no_regret_and_no_list_is_better(taste: Taste, past: list[Past]) -> None:
    rng = np.random.default_rng(0)
    for user in range(USERS):
        best = best_list(taste, user, past[user]).tolist()
        eligible = sorted(set(np.flatnonzero(taste.released).tolist()) - set(past[user].tracks))
        assert len(set(best)) == K
        assert set(best) <= set(eligible)
        liking = expected_liking(taste.liking[user], best)
        assert 0 < liking <= 1
        for _ in range(20):
            assert expected_liking(taste.liking[user], rng.choice(eligible, K, replace=False).tolist()) <= liking
        assert expected_liking(taste.liking[user], best[::-1]) <= liking


def test_the_same_lists_give_both_services_the_same_week(taste: Taste, draws: Draws, world: World) -> None:
    found = []
    for _ in TWINS:
        past = past_of(world, SEED)
        found.append(serve_week(cast(Client, service(past)), taste, draws, past, 0))
    assert found[0] == found[1]
    played, shown = (dict(zip(TWINS, part, strict=True)) for part in zip(*found, strict=True))
    row = figures(played, shown, [], 0)["rows"][0]
    for what in ("share", "regret", "liking"):
        assert (row[what]["difference"], row[what]["low"], row[what]["high"]) == (0, 0, 0)
        assert row[what]["learning"] == row[what]["never"] > 0


def test_another_list_changes_neither_sessions_nor_what_is_played_without_it(
    taste: Taste, draws: Draws, world: World
) -> None:
    weeks = []
    for first in (0, 50):
        past = past_of(world, SEED)
        played, shown = serve_week(cast(Client, service(past, first)), taste, draws, past, 0)
        weeks.append({(one.user, one.time): one for one in played})
        assert all(0 <= one.liking <= one.best for one in shown)
        assert len(shown) == draws.sessions.sum()
    a, b = weeks
    assert a.keys() == b.keys()
    assert {one.place > 0 for one in a.values()} == {True, False}
    same = [a[key].track == b[key].track for key in a if not (a[key].place or b[key].place)]
    assert np.mean(same) > 0.8  # all but repeats, which look back at different plays


def test_plays_name_the_answer_that_they_came_from(taste: Taste, draws: Draws, past: list[Past]) -> None:
    client = service(past)
    played, _ = serve_week(cast(Client, client), taste, draws, past, 0)
    assert [one.track_id for one in client.recorded] == [f"T{one.track:07}" for one in played]
    assert len({one.event_id for one in client.recorded}) == len(played)
    assert [one.request_id for one in client.recorded] == [one.request_id for one in played]
    for one in played:
        asked = draws.start[one.user, one.session]
        assert one.request_id == (f"about-U{one.user:06}-{asked}" if one.place else "")
        assert 0 <= one.time - asked < WEEK_S


def test_a_list_with_a_heard_track_ends_the_drill(taste: Taste, draws: Draws, past: list[Past]) -> None:
    forgetful = Shelf()
    for own in past:
        own.tracks[:1] = [0]
    with pytest.raises(RuntimeError, match="not heard before"):
        serve_week(cast(Client, forgetful), taste, draws, past, 0)


def test_a_difference_that_all_share_has_an_interval_without_width() -> None:
    counts = np.array([1.0, 4.0, 0.0, 5.0])
    found = compared({"learning": 0.5 * counts, "never": 0.2 * counts}, counts, 0)
    assert found == pytest.approx({"learning": 0.5, "never": 0.2, "difference": 0.3, "low": 0.3, "high": 0.3})


def test_the_picture_is_xml_with_a_line_for_each_service(
    taste: Taste, draws: Draws, past: list[Past], tmp_path: Path
) -> None:
    played, shown = serve_week(cast(Client, service(past)), taste, draws, past, 0)
    found = figures(dict.fromkeys(TWINS, played), dict.fromkeys(TWINS, shown), [], 0)
    write_plot(tmp_path / "loop.svg", {**found, "rows": 3 * found["rows"]})
    lines = ElementTree.parse(tmp_path / "loop.svg").iter("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [3, 3, 3, 3]
    judged = {"a": 0.1, "b": 0.2, "difference": 0.1, "low": 0.05, "high": 0.15}
    turn = {"outcome": "published", "why": "", "judged": judged}
    document = {"command": "", "settings": {"users": USERS, "tracks": TRACKS, "seed": SEED}, "seconds": 1, **found}
    document |= {"machine": machine(), "versions": versions()}
    document["turns"] = [turn]
    assert "| 1 | published | 0.100 | 0.200 | +0.100 (+0.050 to +0.150) |" in page(document)
    assert page(document).count("| 0 | the first |") == 1


def test_a_drill_goes_on_after_a_week_and_never_within_one(tmp_path: Path) -> None:
    path, settings = tmp_path / "state.json", {"users": USERS}
    drill = Drill(settings, weeks=2, begun=2)
    drill.write(path)
    assert Drill.read(path, settings) == drill
    with pytest.raises(SystemExit, match="expected"):
        Drill.read(path, {"users": USERS + 1})
    drill.begun = 3
    drill.write(path)
    with pytest.raises(SystemExit, match="stopped in week 2"):
        Drill.read(path, settings)
