"""Exports of ListenBrainz go in as they are: of one person, a dump of all, or a list of listens.

The samples are made up, in the shape of https://listenbrainz.readthedocs.io/en/latest/users/json.html (a listen) and
https://listenbrainz.readthedocs.io/en/latest/users/listenbrainz-dumps.html (files); listenbrainz/background/export.py
of metabrainz/listenbrainz-server writes a person's export.
"""

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lhydra.data.dataset import Dataset
from lhydra.data.history import read_listening
from lhydra.data.settings import ReadSettings
from tests.harness import examples
from tests.prepared import ALL_TRAIN, SAMPLES, Heard, heard, prepare, song_id

LISTENS = SAMPLES / "listenbrainz"


def ids_of(listens: list[dict[str, Any]]) -> list[str]:
    """The id of each listen's track: its own, else that of another listen of the same song, else one that is made."""
    own, songs = [], []
    for listen in listens:
        said = listen["track_metadata"]
        info, mapped = said.get("additional_info") or {}, said.get("mbid_mapping") or {}
        uri = re.sub(r"^https?://open\.spotify\.com/track/", "spotify:track:", info.get("spotify_id") or "")
        own.append(mapped.get("recording_mbid") or info.get("recording_mbid") or info.get("isrc") or uri)
        songs.append(song_id(said["artist_name"], said["track_name"]))
    lent: dict[str, str] = {}
    for song, given_id in zip(songs, own, strict=True):
        if given_id:
            lent[song] = min(given_id, lent.get(song, given_id))
    return [given_id or lent.get(song, song) for song, given_id in zip(songs, own, strict=True)]


def read(file: Path) -> list[dict[str, Any]]:
    text = file.read_text(encoding="utf-8")
    return list(json.loads(text)) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


def counted(listens: list[tuple[str, dict[str, Any]]]) -> list[Heard]:
    ids = ids_of([listen for _, listen in listens])
    times = [int(listen.get("listened_at") or listen["timestamp"]) for _, listen in listens]
    return sorted(Heard(user, track, time) for (user, _), track, time in zip(listens, ids, times, strict=True))


def test_exports_of_two_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = " ".join(prepare(capsys, LISTENS / "export", tmp_path / "out").split())
    names = {"ada": "Ada L.", "bo": "bo"}
    files = sorted((LISTENS / "export").glob("*/listens/*/*.jsonl"))
    assert heard(tmp_path / "out") == counted(
        [(names[file.parts[-4]], listen) for file in files for listen in read(file)]
    )
    assert "taken for listens of ListenBrainz (--format listenbrainz)" in said
    assert "listens without a user are those of Ada L., bo" in said
    assert "not read: feedback.jsonl, user.json" in said
    dataset = Dataset.open(tmp_path / "out")
    lengths = dict(zip(dataset.track_ids, dataset.tracks["duration_ms"].to_pylist(), strict=True))
    assert lengths["00000001-0000-4000-8000-000000000001"] == 187_000
    assert lengths["東京の猫 - 雨の日"] == 245_500


def test_a_user_name_that_is_empty_names_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(LISTENS / "export", tmp_path / "in")
    prepare(capsys, tmp_path / "in", tmp_path / "alone")
    for file, nobody in zip(
        sorted((tmp_path / "in").glob("*/listens/*/*.jsonl")), itertools.cycle([None, ""]), strict=False
    ):
        lines = [json.dumps({"user_name": nobody, "user_id": None, **listen}) for listen in read(file)]
        file.write_text("\n".join(lines), encoding="utf-8")
    prepare(capsys, tmp_path / "in", tmp_path / "out")
    assert heard(tmp_path / "out") == heard(tmp_path / "alone")


def test_a_dump_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(capsys, LISTENS / "dump", tmp_path / "out")
    listens = [listen for file in sorted((LISTENS / "dump").rglob("*.listens")) for listen in read(file)]
    users = [str(listen.get("user_name") or listen.get("user_id")) for listen in listens]
    assert {*users} == {"cy", "dee", "40"}
    assert heard(tmp_path / "out") == counted(list(zip(users, listens, strict=True)))


def test_a_list_of_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(capsys, LISTENS / "page.json", tmp_path / "out")
    listens = read(LISTENS / "page.json")
    assert heard(tmp_path / "out") == counted([(listen["user_name"], listen) for listen in listens])


def test_one_persons_listens_alone_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "found plays of 1 user" in prepare(capsys, LISTENS / "export" / "bo", tmp_path / "out")


def test_a_user_is_said_only_where_the_listens_do_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = prepare(capsys, LISTENS / "dump", tmp_path / "out", "--user", "ada")
    assert "expected an export of one person" in said
    assert "found plays of 1 user" in prepare(capsys, LISTENS / "export", tmp_path / "out", "--user", "ada")


def test_a_file_of_an_export_that_is_cut_short_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for cut in (20, 150, 400):
        shutil.copytree(LISTENS / "export", tmp_path / "in", dirs_exist_ok=True)
        file = tmp_path / "in" / "ada" / "listens" / "2022" / "12.jsonl"
        file.write_bytes(file.read_bytes()[:cut])
        assert "2022/12.jsonl: found an end after" in prepare(capsys, tmp_path / "in", tmp_path / "out")


def test_a_persons_export_is_read_from_its_zip(tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "listenbrainz_ada_1700000000"), "zip", LISTENS / "export" / "ada")
    plays = read_listening(tmp_path / "listenbrainz_ada_1700000000.zip", ReadSettings()).plays
    assert set(plays["user_id"].to_pylist()) == {"Ada L."}
    assert len(plays) == 8


def test_a_page_of_the_api_is_not_taken_for_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = {"payload": {"count": 3, "listens": read(LISTENS / "page.json")}}
    (tmp_path / "page.json").write_text(json.dumps(page), encoding="utf-8")
    said = prepare(capsys, tmp_path / "page.json", tmp_path / "out", "--format", "listenbrainz")
    assert "found page.json, expected listens of ListenBrainz: JSON lines or arrays of listens" in said


def test_a_listen_of_a_dump_without_a_user_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (LISTENS / "dump" / "listens" / "2020" / "1.listens").read_text(encoding="utf-8").splitlines()
    nobody = json.loads(lines[2]) | {"user_name": ""}
    (tmp_path / "1.listens").write_text("\r\n".join([*lines, json.dumps(nobody), "{}"]) + "\r\n", encoding="utf-8")
    said = " ".join(prepare(capsys, tmp_path / "1.listens", tmp_path / "out").split())
    assert "2 rows dropped: empty user_id (records 4, 5)" in said


text = st.sampled_from(["Kite", "KITE", "Kité", 'The "Knot"', "a, b", "x\\y", "Slow (feat. Ann)", "雨", "z\n\tz"])
listen = st.fixed_dictionaries(
    {
        "listened_at": st.integers(1_000_000_000, 1_700_000_000),
        "user_name": st.sampled_from(["ada", "bo", "Zoë"]),
        "track_metadata": st.fixed_dictionaries(
            {"artist_name": text, "track_name": text},
            optional={
                "mbid_mapping": st.one_of(st.none(), st.fixed_dictionaries({"recording_mbid": st.sampled_from("mno")})),
                "additional_info": st.one_of(
                    st.none(),
                    st.fixed_dictionaries(
                        {},
                        optional={
                            "recording_mbid": st.sampled_from(["m", "", None]),
                            "isrc": st.sampled_from(["i", "", None]),
                            "tags": st.lists(text),
                            "tracknumber": st.one_of(st.integers(), text),
                        },
                    ),
                ),
            },
        ),
    }
)


QUICK = settings(
    max_examples=examples(6),
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # to shrink would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@QUICK
@given(listens=st.lists(listen, min_size=6, max_size=30), lines=st.booleans(), bom=st.booleans(), ascii=st.booleans())
def test_any_listens_are_counted_as_they_are(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    listens: list[dict[str, Any]],
    *,
    lines: bool,
    bom: bool,
    ascii: bool,
) -> None:
    listens = [*listens, listens[0] | {"user_name": "ada"}, listens[0] | {"user_name": "bo"}]
    written = [json.dumps(listen, ensure_ascii=ascii) for listen in listens]
    text = "\r\n".join(written) if lines else f"[{', '.join(written)}]"
    file = tmp_path / "listens.json"
    file.write_text(text, encoding="utf-8-sig" if bom else "utf-8", newline="")
    prepare(capsys, file, tmp_path / "out", *ALL_TRAIN)
    assert heard(tmp_path / "out") == counted([(listen["user_name"], listen) for listen in listens])
