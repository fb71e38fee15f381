"""One rule for ids at every door: what one door takes, all take, and what one refuses, all refuse."""

import json
import tempfile
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lhydra.cli import main
from lhydra.data.dataset import Dataset
from lhydra.data.prepare import prepare
from lhydra.data.settings import PrepareSettings
from lhydra.data.tracks import read_tracks
from lhydra.domain import Play, UserState
from lhydra.errors import InvalidRequest
from lhydra.limits import AN_ID, is_id
from lhydra.queries import Request, check
from lhydra.users.lmdb_store import LmdbUsers
from lhydra_index_builder.diff import asking
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.translate import to_plays, to_request
from tests.test_evaluate import write_dataset

ODD = {
    "zero-width joiner": "a\u200db",
    "zero-width space": "a\u200bb",
    "soft hyphen": "a\u00adb",
    "right-to-left override": "a\u202eb",
    "byte-order mark": "\ufeffa",
    "emoji of Unicode 16": "\U0001fae9",
    "unassigned": "\u0378",
    "noncharacter": "\uffff\U0010ffff",
    "private use": "\ue000",
    "combining mark": "e\u0301",
    "line separator": "a\u2028b",
    "no-break space": "\u00a0",
    "a space": " ",
    "leading dash": "-K7x",
    "comma": "a,b",
    "the longest": "\U0001f600" * 256,
}
REFUSED = ["", "x" * 257, "a\nb", "\0", "\t", "\x1b[2J", "a\x7f", "a\x85b", "\x80", "\x9f"]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.sampled_from([*ODD.values(), *REFUSED])


def is_good(text: str) -> bool:
    """The rule, said another way."""
    return 1 <= len(text) <= 256 and not any(unicodedata.category(c) == "Cc" for c in text)


def accepts(door: object, *given: object) -> bool:
    try:
        door(*given)  # type: ignore[operator]
    except InvalidRequest:
        return False
    return True


def takers(text: str) -> dict[str, bool]:
    """What each door for single ids says."""
    entry = pb.HistoryEntry(track_id=text)
    own, history = (
        pb.RecommendRequest(user_id=text, k=1),
        pb.RecommendRequest(user_id="u", k=1, history=pb.History(entries=[entry])),
    )
    plays = [pb.Play(event_id="e", user_id=text, track_id="t"), pb.Play(event_id="e", user_id="u", track_id=text)]
    return {
        "limits": is_id(text),
        "queries": accepts(check, Request(text, 1), 10, 0),
        "server, user": accepts(to_request, own, 10, {}, None, 0),
        "server, history": accepts(to_request, history, 10, {}, None, 0),
        "server, play's user": accepts(to_plays, pb.RecordPlaysRequest(plays=plays[:1])),
        "server, play's track": accepts(to_plays, pb.RecordPlaysRequest(plays=plays[1:])),
    }


@settings(max_examples=300, deadline=None)
@given(texts)
def test_every_door_for_single_ids_says_the_same(text: str) -> None:
    assert set(takers(text).values()) == {is_good(text)}, takers(text)


@settings(max_examples=3, deadline=None)
@given(st.lists(texts, unique=True, max_size=40))
@example(list(ODD.values()) + REFUSED)
def test_tables_and_stores_take_what_the_server_takes(ids: list[str]) -> None:
    good = sorted(filter(is_good, ids), key=str.encode)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "source"
        folder.mkdir()
        plays = {
            "user_id": [*ids, *["u0"] * len(ids), "u0", "u1"],
            "track_id": [*["t0"] * len(ids), *ids, "t0", "t0"],
        }
        pq.write_table(pa.table(plays), folder / "plays.parquet")
        prepare(folder / "plays.parquet", folder.parent / "flat", PrepareSettings())
        flat = Dataset.open(folder.parent / "flat")
        assert set(flat.user_ids) == {*good, "u0", "u1"}
        assert set(flat.track_ids) == {*good, "t0"}
        pq.write_table(pa.table({"track_id": [*ids, "t0"]}), folder / "tracks.parquet")
        pq.write_table(pa.table({"user_id": [*ids, "u0", "u1"]}), folder / "users.parquet")
        prepare(folder, folder.parent / "tables", PrepareSettings())
        tables = Dataset.open(folder.parent / "tables")
        assert (set(tables.user_ids), set(tables.track_ids)) == ({*good, "u0", "u1"}, {*good, "t0"})
        assert set(read_tracks(folder / "tracks.parquet", ())[0]["track_id"].to_pylist()) == {*good, "t0"}
        users = LmdbUsers(folder.parent / "users.lmdb")
        try:
            users.load((one, UserState({"is": one})) for one in good)
            users.record([Play(f"e{i}", one, one, 1, 1.0) for i, one in enumerate(good)])
            for one in good:
                state = users.get(one)
                assert state is not None
                assert (state.profile, len(state.heard)) == ({"is": one}, 1)
        finally:
            users.close()


@settings(max_examples=200, deadline=None)
@given(texts | st.text(st.characters(), max_size=3))
def test_recorded_requests_go_by_the_same_rule(text: str) -> None:
    line = json.dumps({"user_id": text}).encode()  # JSON can say a lone surrogate, which UTF-8 cannot
    utf8 = not any("\ud800" <= c <= "\udfff" for c in text)
    assert accepts(asking._parsed, line, 1, 0) == is_id(text) == (is_good(text) and utf8)


@pytest.mark.parametrize("text", [one for one in REFUSED if "\0" not in one] + ["a\udcff"])
def test_commands_say_what_an_id_is_of_utf8_too(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["users", "show", text], ["prepare", str(tmp_path), str(tmp_path / "d"), f"--user={text}"]):
        assert main(command) == 1
        assert f"{AN_ID}\n" in capsys.readouterr().err


def test_users_load_leaves_out_and_tells_ids_that_no_request_can_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "data", ["a\n", "a\u200d", "b"], ["t0", "t1"], [(0, 0, 0), (1, 0, 0), (2, 1, 0)])
    assert main(["users", "load", str(tmp_path / "data"), "--store", str(tmp_path / "store")]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("loaded 2 users into ")
    assert "warning: 1 users left out: ids of more than 256 characters or with control characters" in err
