"""Logged answers are given again, equal to the float, or it is said exactly what differs."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest

from lhydra.answers import folder as folders
from lhydra.answers.entry import LoggedAnswer, from_line, to_line
from lhydra.cli import main
from lhydra.data.dataset import Dataset
from lhydra.domain import Query
from lhydra.errors import UserStoreError
from lhydra.recommender import Recommender
from lhydra.users.store import UserStore
from lhydra_client import Client, Filter, Play, Rules
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server import replaying
from lhydra_server.answers import AnswerSampler
from lhydra_server.config import WorkerSettings
from lhydra_server.interceptors import REQUEST_ID_KEY, Call
from lhydra_server.outage_log import OutageLog
from lhydra_server.rules import seed_of
from lhydra_server.served import Served, open_served
from lhydra_server.service import RecommenderService
from tests.golden.make_answer_log import golden
from tests.harness import until
from tests.test_supervisor import Server, open_stub, running

RULES = """
default: home
sets:
  home: {caps: {artist: 1}, boost: [{column: genre, values: [Jazz, Rock, Pop], factor: 3}]}
  drawn: {explore: {slots: 3, pool: 10}}
"""
PLACE = Path(__file__).parent / "golden"


class Logged:
    """A server that logs every answer, and the store that it serves from."""

    def __init__(self, server: Server, store: Path, rules: Path) -> None:
        self.server, self.store, self.rules = server, store, rules
        self.answers = store / "answers"

    def read(self) -> list[LoggedAnswer]:
        return list(folders.read(self.answers, lambda line: None))


@pytest.fixture(scope="module")
def logged(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    folder = tmp_path_factory.mktemp("logged")
    store, rules = folder / "store", folder / "rules.yaml"
    shutil.copytree(tiny_store, store)
    rules.write_text(RULES)
    serve = ("-m", "lhydra.cli", "serve", store, "--port", "0", "--workers", "2", "--log-answers", "1", "--depth", "77")
    with running((*serve, "--rules", rules), folder / "log") as server:
        yield Logged(server, store, rules)


def replay(capsys: pytest.CaptureFixture[str], *flags: str | Path) -> tuple[int, str, str]:
    code = main(["query", "replay", *map(str, flags)])
    said = capsys.readouterr()
    return code, said.out, said.err


def ask_everything(client: Client, users: list[str], n: int) -> int:
    """Asks for lists of every kind, and records plays between them; returns how many lists there were."""
    seen, asked = [track.track_id for track in client.recommend(users[0]).tracks], 1
    for i, user in enumerate(users[:n]):
        lists = [
            client.recommend(user, k=1 + i % 30, repeat=("exclude", "allow", "decay", "learnt")[i % 4]),
            client.recommend(user, session=seen[i % 5 : i % 5 + 3], exclude=seen[5:]),
            client.recommend(f"nobody-{i}", history=seen[:4], profile={"age": 20 + i}),
            client.recommend(f"nobody-{i}"),
            client.recommend(user, filter=Filter(max_year=2015), rules="drawn", diversity=0.5, explain=i % 3 == 0),
            client.recommend(user, rules=Rules(off=True)),
            client.similar(seen[:2], k=5, user_id=user if i % 2 else "", dislike=seen[3:4]),
            *client.recommend_many(users[i : i + 3], k=5),
        ]  # fmt: skip
        asked += len(lists)
        client.record_plays([Play(user, seen[i % len(seen)])])
    return asked


def test_every_answer_of_a_real_server_is_given_again(
    logged: Logged, tiny_dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    users = list(tiny_dataset.user_ids)
    with Client(logged.server.address, timeout_s=60) as client:
        asked = ask_everything(client, users, 10)
        logged.rules.write_text(RULES.replace("artist: 1", "artist: 3").replace("slots: 3", "slots: 1"))
        until(lambda: len(client.recommend(users[0], k=20).tracks) and _caps(logged) == {1, 3})
        asked += ask_everything(client, users, 5)
    until(lambda: len(logged.read()) >= asked)
    found = logged.read()
    assert {one.method for one in found} == {"Recommend", "SimilarTracks"}
    assert {one.tier for one in found} == {"personal", "history", "popular"}
    assert {one.depth for one in found} == {77}
    assert any(any(one.propensities) for one in found)
    assert len({one.request_id for one in found}) == len(found)
    code, out, err = replay(capsys, logged.answers, "--store", logged.store)
    assert (code, err) == (0, "")
    assert re.fullmatch(r"([\d,]+) answers: \1 equal, 0 differ\n", out)
    assert int(out.partition(" ")[0].replace(",", "")) >= len(found)


def _caps(logged: Logged) -> set[int]:
    """The caps by artist of the default set, as answers were given under them."""
    rules = [one.rules for one in logged.read() if one.rules is not None and one.rules.name == "home"]
    return {most for one in rules for _, most in one.caps}


@pytest.fixture(scope="module")
def some(logged: Logged, tiny_dataset: Dataset) -> list[LoggedAnswer]:
    """Three answers of the log, of three users."""
    users = list(tiny_dataset.user_ids[-3:])
    with open_stub(logged.server.address) as stub:
        for user in users:
            call = pb.RecommendRequest(user_id=user, k=4)
            stub.Recommend(call, timeout=60, metadata=((REQUEST_ID_KEY, f"shop/{user}"),))
    until(lambda: {f"shop/{user}" for user in users} <= {one.request_id for one in logged.read()})
    return [one for user in users for one in logged.read() if one.request_id == f"shop/{user}"]


def test_one_answer_is_found_by_its_request_id(
    logged: Logged, some: list[LoggedAnswer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    equal = "1 answer: 1 equal, 0 differ\n"
    assert replay(capsys, some[1].request_id, "--store", logged.store) == (0, equal, "")
    shutil.copytree(logged.answers, tmp_path / "elsewhere")
    flags = "--store", logged.store, "--answers", tmp_path / "elsewhere"
    assert replay(capsys, some[1].request_id, *flags) == (0, equal, "")
    code, out, err = replay(capsys, "unheard-of", *flags)
    assert (code, out) == (1, "")
    expected = f"one in {tmp_path / 'elsewhere'}; --answers FOLDER names another log, and only a sample is logged"
    assert err == f"lhydra query: request id: found unheard-of, expected {expected}\n"
    code, _, err = replay(capsys, "unheard-of", "--store", logged.store, "--answers", tmp_path / "none")
    assert code == 1
    assert f"{tmp_path / 'none'}: found no such folder, expected an answer log for unheard-of: `lhydra serve" in err


def changed(answer: LoggedAnswer, **what: Any) -> bytes:
    return json.dumps(json.loads(to_line(answer)) | what).encode() + b"\n"


def test_what_differs_is_said_exactly(
    logged: Logged, some: list[LoggedAnswer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, three = some
    file = tmp_path / "changed.jsonl"
    nudged = float(np.nextafter(np.float32(two.scores[3]), np.float32(2)))
    swapped = [one.tracks[1], one.tracks[0], *one.tracks[2:]]
    lines = [
        changed(one, tracks=swapped),
        changed(two, scores=[*two.scores[:3], nudged], tier="history"),
        changed(three, tracks=[*three.tracks, "t"], scores=[*three.scores, 0.5]),
        to_line(three),
    ]
    file.write_bytes(b"".join(lines))
    code, out, err = replay(capsys, file, "--store", logged.store)
    assert (code, err) == (1, "")
    assert out.splitlines() == [
        f"{one.request_id} of user {one.user_id}, bundle {one.bundle_id}:",
        f"  place 1: was {one.tracks[1]} with score {one.scores[0]!r}, is {one.tracks[0]} with score {one.scores[0]!r}",
        f"  place 2: was {one.tracks[0]} with score {one.scores[1]!r}, is {one.tracks[1]} with score {one.scores[1]!r}",
        f"{two.request_id} of user {two.user_id}, bundle {two.bundle_id}:",
        "  tier: was 'history', is 'personal'",
        f"  place 4: was {two.tracks[3]} with score {nudged!r}, is {two.tracks[3]} with score {two.scores[3]!r}",
        f"{three.request_id} of user {three.user_id}, bundle {three.bundle_id}:",
        "  place 5: was t with score 0.5, is nothing",
        "4 answers: 1 equal, 3 differ",
    ]
    code, out, _ = replay(capsys, file, "--store", logged.store, "--json")
    said = json.loads(out)
    assert (code, said["answers"], said["equal"], said["not_answered"]) == (1, 4, 1, [])
    assert said["differ"][0] == {
        "request_id": one.request_id,
        "user_id": one.user_id,
        "bundle_id": one.bundle_id,
        "differences": [
            {
                "place": place + 1,
                "was": {"track_id": one.tracks[1 - place], "score": one.scores[place], "propensity": 0.0},
                "is": {"track_id": one.tracks[place], "score": one.scores[place], "propensity": 0.0},
            }
            for place in range(2)
        ],
    }


def test_another_state_or_rule_set_is_noticed(logged: Logged, some: list[LoggedAnswer]) -> None:
    """Else a replay that looks at what is stored now would pass too."""
    served = replaying.Opened(logged.store).of(some[0])
    assert all(replaying.differences(one, served) == [] for one in some)
    for what in ({"state": None}, {"rules": None}, {"state": json.loads(to_line(some[1]))["state"]}):
        assert replaying.differences(from_line(changed(some[0], **what), "here"), served) != []


def test_ages_count_from_the_clock_of_the_answer(
    logged: Logged, some: list[LoggedAnswer], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, whole, asked = replaying.Opened(logged.store).of(some[0]), Recommender.recommend_many, list[Query]()

    def noted(self: Recommender, queries: Sequence[tuple[Query, Any]]) -> Any:
        asked.extend(query for query, _ in queries)
        return whole(self, queries)

    monkeypatch.setattr(Recommender, "recommend_many", noted)
    for now in (some[0].now, some[0].now - 86_400):
        replaying.answered(replace(some[0], now=now), served)
    assert [query.now for query in asked] == [some[0].now, some[0].now - 86_400]
    assert [query.seed for query in asked] == [seed_of(0, some[0].request_id)] * 2


def test_a_bundle_that_is_gone_is_named(
    logged: Logged, some: list[LoggedAnswer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = "20200101T000000-0123abcd"
    file = tmp_path / "gone.jsonl"
    file.write_bytes(changed(some[0], bundle_id=gone) * 2 + to_line(some[1]))
    code, out, err = replay(capsys, file, "--store", logged.store)
    assert (code, err) == (1, "")
    first, last = out.splitlines()
    assert first.startswith("2 not answered again: ")
    assert gone in first
    assert last == "3 answers: 1 equal, 0 differ, 2 not answered again"
    file.write_bytes(changed(some[0], bundle_id=gone))
    code, out, err = replay(capsys, file, "--store", logged.store)
    assert (code, out) == (1, "")
    assert err.startswith("lhydra query: ")
    assert gone in err
    assert err.count("\n") == 1


def test_what_is_no_log_is_one_line(tmp_path: Path, logged: Logged, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("what\n")
    (tmp_path / "empty").mkdir()
    expected = "expected an answer log"
    for what, found in (
        (tmp_path / "notes.txt", f"{tmp_path / 'notes.txt'}: found no entries, {expected}"),
        (tmp_path / "empty", f"{tmp_path / 'empty'}: found no entries, {expected}"),
        (tmp_path / "none.jsonl.gz", f"{tmp_path / 'none.jsonl.gz'}: found no such file, expected a file of an answer"),
    ):
        code, out, err = replay(capsys, what, "--store", logged.store)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith(f"lhydra query: {found}")


def test_a_torn_end_is_told_and_the_rest_is_given_again(
    logged: Logged, some: list[LoggedAnswer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "torn.jsonl"
    file.write_bytes(to_line(some[0]) + to_line(some[1])[:-9])
    code, out, err = replay(capsys, file, "--store", logged.store)
    assert (code, out) == (0, "1 answer: 1 equal, 0 differ\n")
    assert err == f"{file}: ends within entry 2: its server was killed, or writes; kept up to it\n"


class _Kept:
    """An answer log in memory."""

    def __init__(self) -> None:
        self.answers: list[LoggedAnswer] = []

    def wants(self, request_id: str) -> bool:
        return request_id != "not this one"

    def put(self, made: Any, seen_ns: int, n_bytes: int) -> None:
        self.answers.append(made())

    def close(self) -> None: ...


class _Out:
    def get(self, user_id: str, deadline_s: float = 0) -> None:
        raise UserStoreError("out")


def test_an_answer_without_the_user_store_is_given_again_without_it(tiny_store: Path) -> None:
    served: Served = open_served(WorkerSettings(str(tiny_store), (tiny_store / "CURRENT").read_text().strip(), ""))
    kept = _Kept()
    sampler = AnswerSampler(cast(Any, kept), served, 1000)
    service = RecommenderService(served, cast(UserStore, _Out()), max_k=1000, answers=sampler)
    for name in ("this one", "not this one"):
        call = Call(cast(grpc.ServicerContext, replaying._Context()), name, OutageLog())
        service.Recommend(pb.RecommendRequest(user_id="u", k=5), call)
    (answer,) = kept.answers
    assert (answer.request_id, answer.degraded, answer.state) == ("this one", ("user_store",), None)
    assert replaying.differences(answer, served) == []


def test_the_golden_log_is_given_again() -> None:
    served = golden()
    for then in folders.read(PLACE / "answer_log_v1.jsonl", pytest.fail):
        now = replaying.answered(then, served)
        assert now.tracks == then.tracks
        assert now.scores == pytest.approx(then.scores, abs=1e-3)
        assert now.propensities == pytest.approx(then.propensities, abs=1e-3)


def test_deleting_a_person_reaches_a_server_that_logs(
    logged: Logged, some: list[LoggedAnswer], capsys: pytest.CaptureFixture[str]
) -> None:
    user, other = some[0].user_id, some[1].user_id
    assert main(["users", "show", user, "--store", str(logged.store)]) == 0
    n = sum(one.user_id == user for one in logged.read())
    assert f"answers           {n} in {logged.answers}, the newest of 20" in capsys.readouterr().out
    assert main(["users", "export", user, "--store", str(logged.store)]) == 0
    exported = json.loads(capsys.readouterr().out)["answers"]
    assert [one["user_id"] for one in exported] == [user] * n
    assert main(["users", "delete", user, "--store", str(logged.store)]) == 0
    assert f"deleted {n} of their answers from {logged.answers}\n" in capsys.readouterr().out
    left = {one.user_id for one in logged.read()}
    assert user not in left
    assert other in left
    with open_stub(logged.server.address) as stub:
        call = pb.RecommendRequest(user_id=user, k=4)
        stub.Recommend(call, timeout=60, metadata=((REQUEST_ID_KEY, "back"),))
    until(lambda: "back" in {one.request_id for one in logged.read()})
    (back,) = [one for one in logged.read() if one.user_id == user]
    assert (back.request_id, back.state, back.tier) == ("back", None, "popular")
