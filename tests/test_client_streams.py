"""recommend_many of both clients: every answer once and in order, whatever becomes of the streams that carry them."""

import asyncio
import itertools
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from lhydra_client import AsyncClient, Client, ClientError, InvalidRequest, Overloaded, Timeout, Unavailable
from lhydra_client.requests import recommend_request
from lhydra_client.streams import AHEAD
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server import app, streams
from tests.fake_core import expected_ids
from tests.fake_recommender import FakeRecommender, serving
from tests.harness import free_port, until
from tests.test_query import query
from tests.test_server import MAX_K, N, Running, serve
from tests.test_streams import nothing_in_flight, open_streams

Asked = Iterable[str | pb.RecommendRequest]
Ask = Callable[..., list[Any]]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with serve(tmp_path) as running:
        yield running


def asked_sync(address: str, users: Any, timeout_s: float = 20, most: int | None = None) -> list[Any]:
    with Client(address, timeout_s=timeout_s) as client, closing(client.recommend_many(users, 3)) as answers:
        return list(itertools.islice(answers, most))


def asked_aio(address: str, users: Any, timeout_s: float = 20, most: int | None = None) -> list[Any]:
    async def ask() -> list[Any]:
        found: list[Any] = []
        async with (
            AsyncClient(address, timeout_s=timeout_s) as client,
            aclosing(client.recommend_many(users, 3)) as answers,
        ):
            async for answer in answers:
                found.append(answer)
                if len(found) == most:
                    break
        return found

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [asked_sync, asked_aio])


def at(running: Running) -> str:
    return f"127.0.0.1:{running.listener.port}"


def numbered(n: int) -> list[pb.RecommendRequest]:
    return [recommend_request("ann", 1 + i % MAX_K) for i in range(n)]


def lengths(answers: list[Any]) -> list[int]:
    return [len(answer.tracks) for answer in answers]


@both
def test_every_user_has_the_list_of_a_call_of_its_own_in_order(running: Running, ask: Ask) -> None:
    found = ask(at(running), iter(["ann", recommend_request("bob", 5), "nobody"] * 100))
    assert [[track.track_id for track in one.tracks] for one in found] == [
        expected_ids(N, 3), expected_ids(N, 5), expected_ids(N, 3)
    ] * 100  # fmt: skip
    until(lambda: nothing_in_flight(running))


@both
def test_nobody_asked_for_is_nobody_answered(running: Running, ask: Ask) -> None:
    assert ask(at(running), []) == []


@both
def test_errors_are_values_in_their_place(running: Running, ask: Ask) -> None:
    users = ["ann", "", recommend_request("ann", 0), 7, "bob", "\udc80", "ann", None]
    found = ask(at(running), users)
    assert [isinstance(one, ClientError) for one in found] == [False, True, True, True, False, True, False, True]
    assert {type(one) for one in found if isinstance(one, ClientError)} == {InvalidRequest}
    assert str(found[2]).startswith("k: found 0, expected 1 to")
    assert found[2].code == "INVALID_ARGUMENT"
    assert found[2].request_id


@both
def test_streams_that_end_lose_no_answer_and_repeat_none(
    running: Running, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    monkeypatch.setattr(streams, "STREAM_S", 0.02)
    assert lengths(ask(at(running), numbered(2_000))) == [1 + i % MAX_K for i in range(2_000)]


@both
def test_a_stream_that_breaks_in_the_middle_is_gone_on_with(ask: Ask) -> None:
    count = itertools.count(1)

    def before(request: Any, context: grpc.ServicerContext) -> None:
        if next(count) % 7 == 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    fake = FakeRecommender(before)
    with serving(fake) as address:
        assert lengths(ask(address, (f"u{i}" for i in range(40)))) == [3] * 40
    assert set(dict.fromkeys(one.user_id for one in fake.seen)) == {f"u{i}" for i in range(40)}


@both
def test_without_a_server_the_first_wait_ends_it(ask: Ask) -> None:
    with pytest.raises(Unavailable):
        ask(f"127.0.0.1:{free_port()}", ["ann"], 5)


@both
def test_no_answer_within_the_deadline_is_a_timeout(ask: Ask) -> None:
    def before(request: Any, context: grpc.ServicerContext) -> None:
        if request.user_id == "slow":
            gone = threading.Event()
            context.add_callback(gone.set)
            gone.wait(60)

    with serving(FakeRecommender(before)) as address, pytest.raises(Timeout, match=r"within 0\.3 s$"):
        ask(address, ["ann", "slow"], 0.3)


@both
def test_where_there_is_no_room_for_a_stream_it_is_waited_for(running: Running, ask: Ask) -> None:
    opened = open_streams(running, app.STREAMS)
    with pytest.raises(Overloaded):
        ask(at(running), ["ann"], 0.2)
    let_go = threading.Timer(0.1, opened[0].cancel)
    let_go.start()
    assert lengths(ask(at(running), ["ann"])) == [3]
    for call in opened:
        call.cancel()


@both
def test_answers_that_nobody_wants_any_more_leave_nothing_in_flight(running: Running, ask: Ask) -> None:
    taken = itertools.count()
    assert lengths(ask(at(running), ("ann" for _ in range(10_000) if next(taken) >= 0), most=5)) == [3] * 5
    assert next(taken) <= AHEAD + 5
    until(lambda: nothing_in_flight(running))


@both
def test_an_error_of_the_callers_own_reaches_the_caller(running: Running, ask: Ask) -> None:
    def users() -> Iterator[str]:
        yield "ann"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(at(running), users())
    until(lambda: nothing_in_flight(running))


# -- lhydra query recommend --users-file ----------------------------------------------------------------------


def test_lists_of_a_file_come_as_lines_of_json_in_its_order(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LHYDRA_ADDRESS", at(running))
    file = tmp_path / "users.txt"
    file.write_text("ann\r\n\ntwo words\n雨\nbob")
    assert query("recommend", "--users-file", str(file), "--k", "4", "--exclude", "t007", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["user_id"] for line in lines] == ["ann", "two words", "雨", "bob"]
    for line in lines:
        assert [track["track_id"] for track in line["tracks"]] == expected_ids(N, 4, {"t007"})
    assert query("recommend", "ann", "--k", "4", "--exclude", "t007", "--json") == 0
    alone = json.loads(capsys.readouterr().out)
    differ = ("request_id", "stages_us")
    assert {**lines[0], **dict.fromkeys(differ)} == {**alone, **dict.fromkeys(differ)}
    assert query("recommend", "--users-file", str(file), "--k", "2") == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("user ")][1].startswith(
        "user two words · tier "
    )


def test_a_user_without_a_list_is_told_in_place_and_by_the_exit_code(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LHYDRA_ADDRESS", at(running))
    file = tmp_path / "users.txt"
    file.write_bytes(b"ann\n" + b"x" * 300 + b"\nb\xff\nbob\n")
    assert query("recommend", "--users-file", str(file), "--json") == 1
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert ["error" in line for line in lines] == [False, True, True, False]
    assert lines[1]["error"]["code"] == "INVALID_ARGUMENT"
    assert lines[1]["error"]["message"].startswith("user_id: found 300 characters, expected")
    assert err == "lhydra query: 2 of 4 users have no list\n"


def test_a_file_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(FakeRecommender()) as address:
        assert query("recommend", "--users-file", "/nowhere/users", "--address", address) == 1
    out, err = capsys.readouterr()
    told = "--users-file /nowhere/users: found No such file or directory, expected a file of user ids, one per line"
    assert (out, err) == ("", f"lhydra query: {told} (after 0 users)\n")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["ann", "--users-file", "users"], "found user ann and --users-file, expected one of them"),
        ([], "found no user, expected USER or --users-file FILE"),
    ],
)
def test_one_user_or_a_file_of_users(argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(FakeRecommender()) as address, pytest.raises(SystemExit) as caught:
        query("recommend", *argv, "--address", address)
    assert caught.value.code == 2
    assert told in capsys.readouterr().err
