"""Plays of now that a request brings answer as if they had just been recorded; ages count from its clock."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lhydra.bundle.bundle import Bundle
from lhydra.domain import (
    COMPLETED,
    HALF_LIVES_DAYS,
    LIVE,
    MAX_HISTORY,
    MAX_RECENT,
    SKIPPED,
    History,
    Play,
    UserState,
    make_history,
    track_hashes,
)
from lhydra.limits import CLOCK_SKEW_S, MAX_SESSION
from lhydra.queries import Request, to_query
from lhydra.recommender import LEARNT_AS_DECAY, Recommender
from lhydra.repeats import add_up, at_once, merged, single_plays
from lhydra.users.record import UserRecord
from lhydra.users.store import UserStore, open_users
from lhydra_client import Client, HistoryEntry, Recommendations, SessionEntry
from lhydra_client import Play as ClientPlay
from lhydra_server.app import Listener
from lhydra_server.served import served_of
from lhydra_server.service import RecommenderService
from tests.harness import examples

BUNDLE = Path(__file__).resolve().parent / "golden" / "bundle_v4"
NOW, DAY = 1_700_000_000, 86_400
ARRAYS = ("history", "heard", "skipped", "repeats", "recent")

tracks = st.sampled_from("abcdefgh")
endings = st.none() | st.booleans()
played = st.lists(
    st.builds(SessionEntry, tracks, st.integers(NOW - 100, NOW + 20) | st.integers(1, NOW), endings, endings),
    max_size=12,
)


def plays(entries: list[SessionEntry], name: str = "e") -> list[Play]:
    return [
        Play(f"{name}{i}", "u", e.track_id, e.timestamp_s, completed=e.completed, skipped=e.skipped)
        for i, e in enumerate(entries)
    ]


def recorded(*batches: list[SessionEntry]) -> UserState:
    record = UserRecord()
    for i, batch in enumerate(batches):
        record, _ = record.with_plays(plays(batch, f"{i}-"))
    return record.state


def asked(stored: UserState | None, session: list[SessionEntry], now: int = NOW, **more: Any) -> UserState:
    return to_query(Request("u", 5, session=session, **more), stored, now).state


def same(a: UserState, b: UserState) -> None:
    assert dict(a.profile) == dict(b.profile)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)


# -- a session is a recording ------------------------------------------------------------------------------------


@settings(max_examples=examples(100), deadline=None)
@given(played, played)
def test_a_session_makes_the_state_that_recording_it_makes(before: list[SessionEntry], now: list[SessionEntry]) -> None:
    known = {(play.track_id, play.timestamp_s) for play in before}
    fresh = [play for play in now if (play.track_id, play.timestamp_s) not in known]
    same(asked(recorded(before), now), recorded(before, fresh))
    same(asked(None, now), recorded(now))


@settings(max_examples=100, deadline=None)
@given(played, played)
def test_what_is_recorded_meanwhile_counts_once(before: list[SessionEntry], now: list[SessionEntry]) -> None:
    stored = recorded(before, now)
    same(asked(stored, now), stored)
    history = [HistoryEntry(play.track_id, 1, play.timestamp_s) for play in now]
    said = asked(None, [], history=history)
    again = asked(None, [SessionEntry(play.track_id, play.timestamp_s) for play in now], history=history)
    same(again, said)


def test_a_time_too_far_ahead_is_now_as_it_is_of_recorded_plays() -> None:
    ahead = [SessionEntry("a", NOW + CLOCK_SKEW_S), SessionEntry("b", NOW + CLOCK_SKEW_S + 1)]
    state = asked(None, ahead)
    assert sorted(state.recent["time"].tolist()) == [NOW, NOW + CLOCK_SKEW_S]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([NOW - 60, NOW - 2, NOW - 1, NOW, 0]), max_size=8), st.sampled_from([0, NOW - 60, 1]))
def test_plays_without_a_time_keep_their_order_shortly_before_now(drawn: list[int], last: int) -> None:
    known = iter(sorted(time for time in drawn if time))
    times = [next(known) if time else 0 for time in drawn]
    stored = recorded([SessionEntry("z", last)]) if last else None
    state = asked(stored, [SessionEntry(f"t{i}", time) for i, time in enumerate(times)])
    found = state.recent[len(state.recent) - len(times) :]
    assert found["track"].tolist() == track_hashes(f"t{i}" for i in range(len(times))).tolist()
    after = NOW + 1
    for time, placed in zip(times[::-1], found["time"].tolist()[::-1], strict=True):
        assert placed == time if time else 0 <= after - placed <= 1
        assert placed <= NOW
        after = placed
    assert last <= min(found["time"], default=NOW)


def test_a_session_comes_after_the_history_that_a_request_brings() -> None:
    history = [HistoryEntry("a", 2, NOW - DAY), HistoryEntry("b", 1, NOW - DAY // 2)]
    state = asked(None, [SessionEntry("a"), SessionEntry("c", skipped=True)], history=history)
    names = {int(track): name for track, name in zip(track_hashes("abc"), "abc", strict=True)}
    assert [names[track] for track in state.history["track"].tolist()] == ["b", "a"]
    assert state.history["count"].tolist() == [1, 3]
    assert [names[track] for track in state.recent["track"].tolist()] == ["a", "b", "a", "c"]
    assert state.recent["flags"].tolist() == [0, 0, LIVE, LIVE | SKIPPED]
    assert [names[track] for track in state.skipped.tolist()] == ["c"]
    assert state.heard.tolist() == sorted(names)


def test_a_history_without_times_keeps_its_order_before_a_session() -> None:
    names = "qwertyuiop"
    state = asked(None, [SessionEntry("z"), SessionEntry("a")], history=[HistoryEntry(name) for name in names])
    assert state.history["track"].tolist() == track_hashes([*names, "z", "a"]).tolist()


def test_the_longest_session_is_taken() -> None:
    state = asked(None, [SessionEntry(f"t{i}") for i in range(MAX_SESSION)])
    assert len(state.history) == len(state.recent) == MAX_SESSION


@settings(max_examples=200, deadline=None)
@given(played, played)
def test_plays_merged_into_a_history_are_all_plays_added_up(a: list[SessionEntry], b: list[SessionEntry]) -> None:
    def single(entries: list[SessionEntry]) -> History:
        return single_plays(
            track_hashes(one.track_id for one in entries), [1.0] * len(entries), [one.timestamp_s for one in entries]
        )

    history, repeats = add_up(single(a), at_once(single(a)))
    found = merged(history, repeats, single(b), at_once(single(b)))
    expected = add_up(np.concatenate([history, single(b)]), np.concatenate([repeats, at_once(single(b))]))
    for one, other in zip(found, expected, strict=True):
        assert one.tobytes() == other.tobytes()


# -- histories of single plays -----------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.builds(HistoryEntry, tracks, st.sampled_from([0, 1, 2.5]), st.sampled_from([0, 5, NOW - DAY, NOW])),
        min_size=1,
        max_size=12,
    )
)
def test_a_history_of_single_plays_gives_repeats_and_the_last_plays(entries: list[HistoryEntry]) -> None:
    state = asked(None, [], history=entries)
    for entry, repeats in zip(state.history, state.repeats, strict=True):
        own = [one for one in entries if int(track_hashes([one.track_id])[0]) == int(entry["track"])]
        known = [one.timestamp_s for one in own if one.timestamp_s]
        last = max(known, default=0)
        assert entry["count"] == pytest.approx(sum(one.count or 1 for one in own))
        assert repeats["first"] == min(known, default=0)
        for days, decayed in zip(HALF_LIVES_DAYS, repeats["decayed"].tolist(), strict=True):
            total = sum((one.count or 1) * 2 ** (-(last - one.timestamp_s) / (days * DAY)) for one in own)
            assert decayed == pytest.approx(total, rel=1e-5)
    expected = sorted(entries, key=lambda one: one.timestamp_s)
    assert state.recent["track"].tolist() == track_hashes(one.track_id for one in expected).tolist()
    assert state.recent["time"].tolist() == [one.timestamp_s for one in expected]


def test_of_a_long_history_the_last_plays_are_remembered() -> None:
    state = asked(None, [], history=[HistoryEntry(f"t{i % 3000}") for i in range(6_000)])
    assert state.recent["track"].tolist() == track_hashes(f"t{i}" for i in range(3_000 - MAX_RECENT, 3_000)).tolist()
    assert len(state.history) == len(state.repeats) == MAX_HISTORY
    assert (state.repeats["decayed"] == 2).all()


def test_a_stored_history_keeps_its_own_repeats_and_plays() -> None:
    stored = recorded([SessionEntry("a", NOW - DAY), SessionEntry("a", NOW)])
    same(asked(stored, [], history=[HistoryEntry("a", 7, 5)]), stored)
    loaded = UserState({}, make_history(track_hashes(["a"]), [3], [5]), track_hashes(["a"]))
    same(asked(loaded, [], history=[HistoryEntry("a", 7, 5)]), loaded)


def test_of_a_user_who_only_skipped_the_skips_stay_among_the_last_plays() -> None:
    stored = recorded([SessionEntry("s", NOW - 50, None, True)])
    state = asked(stored, [], history=[HistoryEntry("a", 1, NOW - 60), HistoryEntry("b", 1, NOW)])
    assert state.recent["track"].tolist() == track_hashes("asb").tolist()
    assert state.skipped.tolist() == track_hashes("s").tolist()
    assert len(state.repeats) == len(state.history) == 2


# -- on a real server --------------------------------------------------------------------------------------------


class Served:
    """A server over the golden bundle; what its recommender is asked is kept."""

    def __init__(self, users: UserStore, recommender: Recommender) -> None:
        self.users, self.recommender, self.queries = users, recommender, []  # type: ignore[var-annotated]
        service = RecommenderService(served_of(recommender.bundle, recommender), users, max_k=400)
        self.listener = Listener(service, "127.0.0.1:0", max_in_flight=32, connection_age_s=600)
        self.tracks = recommender.catalog.track_ids(np.arange(40))
        many = recommender.recommend_many

        def noted(queries: Any) -> Any:
            self.queries += [query for query, _ in queries]
            return many(queries)

        recommender.recommend_many = noted  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    users = open_users(None, tmp_path_factory.mktemp("session"))
    running = Served(users, Recommender(Bundle.open_folder(BUNDLE)))
    running.listener.start()
    try:
        yield running
    finally:
        running.listener.stop(0)
        users.close()


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[Client]:
    with Client(f"127.0.0.1:{server.listener.port}", timeout_s=60) as client:
        yield client


def shown(found: Recommendations) -> list[tuple[str, float]]:
    return [(track.track_id, track.score) for track in found.tracks]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_list_of_a_session_is_the_list_once_it_is_recorded(
    server: Served, client: Client, data: st.DataObject
) -> None:
    some = st.sampled_from(server.tracks)
    entry = st.builds(SessionEntry, some, st.integers(NOW - 1000, NOW) | st.integers(1, NOW), endings, endings)
    before, now = data.draw(st.lists(entry, max_size=6)), data.draw(st.lists(entry, min_size=1, max_size=6))
    now = [one for one in now if (one.track_id, one.timestamp_s) not in {(b.track_id, b.timestamp_s) for b in before}]
    repeat: Any = data.draw(st.sampled_from(["exclude", "allow", "decay", "learnt"]))
    user = f"u{len(server.queries)}"

    def record(entries: list[SessionEntry]) -> None:
        if entries:
            client.record_plays(
                [
                    ClientPlay(user, one.track_id, one.timestamp_s, completed=one.completed, skipped=one.skipped)
                    for one in entries
                ]
            )

    record(before)
    sent = client.recommend(user, 20, session=now, now_s=NOW, repeat=repeat)
    record(now)
    assert shown(client.recommend(user, 20, now_s=NOW, repeat=repeat)) == shown(sent)
    assert shown(client.recommend(user, 20, session=now, now_s=NOW, repeat=repeat)) == shown(sent)


def test_a_session_moves_the_list_and_is_heard(server: Served, client: Client) -> None:
    history = server.tracks[:20]
    before = client.recommend("mover", 10, history=history)
    session: list[str | SessionEntry] = [
        before.tracks[0].track_id,
        SessionEntry(before.tracks[1].track_id, skipped=True),
    ]
    after = client.recommend("mover", 10, history=history, session=session)
    assert not {track.track_id for track in after.tracks} & {track.track_id for track in before.tracks[:2]}
    kept = {track.track_id: track.score for track in after.tracks}
    assert any(kept.get(track.track_id, track.score) != track.score for track in before.tracks)
    assert server.users.get("mover") is None
    assert client.recommend("only now", 10, session=session).tier == "history"


def test_a_recorded_play_is_among_the_last_plays_of_the_next_request(server: Served, client: Client) -> None:
    for i, (skipped, flags) in enumerate([(None, LIVE), (True, LIVE | SKIPPED)]):
        client.record_plays([ClientPlay("recent", server.tracks[i], NOW + i, skipped=skipped)])
        client.recommend("recent")
        (last,) = server.queries[-1].state.recent[-1:].tolist()
        assert last == (int(track_hashes([server.tracks[i]])[0]), NOW + i, flags)
    client.record_plays([ClientPlay("recent", server.tracks[5], completed=True)])
    client.recommend("recent")
    assert server.queries[-1].state.recent["flags"].tolist() == [LIVE, LIVE | SKIPPED, LIVE | COMPLETED]


def test_ages_count_from_the_clock_of_the_request(server: Served, client: Client) -> None:
    track = server.tracks[7]
    client.record_plays([ClientPlay("clock", track, NOW)])
    for now_s, back in {NOW + 7 * DAY - 1: False, NOW + 7 * DAY: True, NOW - DAY: False, 1: False, 0: True}.items():
        found = client.recommend("clock", 400, repeat="decay", now_s=now_s)
        assert (track in {one.track_id for one in found.tracks}) is back, now_s
        assert server.queries[-1].now == now_s or not now_s
    week, month = (
        dict(shown(client.recommend("clock", 400, repeat="decay", now_s=NOW + days * DAY)))[track] for days in (7, 30)
    )
    assert week / month == pytest.approx(np.expm1(-7 / 30) / np.expm1(-1), rel=1e-3)


def test_a_learnt_return_is_decay_and_says_so_while_the_model_knows_nothing_of_repeats(
    server: Served, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.record_plays([ClientPlay("learnt", track, NOW - i * 5 * DAY) for i, track in enumerate(server.tracks[:9])])

    def ask(repeat: Any) -> Recommendations:
        return client.recommend("learnt", 400, repeat=repeat, now_s=NOW)

    learnt, decay, allow = ask("learnt"), ask("decay"), ask("allow")
    assert shown(learnt) == shown(decay) != shown(allow)
    assert list(learnt.degraded) == [LEARNT_AS_DECAY]
    assert not decay.degraded
    monkeypatch.setattr(Recommender, "knows_repeats", True)
    learnt = ask("learnt")
    assert shown(learnt) == shown(allow)
    assert not learnt.degraded
