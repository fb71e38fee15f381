"""An export of Maloja goes in as it is: time, artists, lengths, and what was listened to.

The samples are made up, in the shape of what maloja/proccontrol/tasks/export.py of krateng/maloja writes; its API.md
says that the duration of a scrobble is how long the track was played for, in seconds.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from lhydra.data.dataset import Dataset
from tests.harness import examples
from tests.prepared import ALL_TRAIN, SAMPLES, Heard, heard, prepare, song_id

MALOJA = SAMPLES / "maloja"


def counted(exports: dict[str, dict[str, Any]]) -> list[Heard]:
    """An independent count of exports by user."""
    found = []
    for user, export in exports.items():
        for scrobble in export["scrobbles"]:
            track = song_id(", ".join(scrobble["track"]["artists"]), scrobble["track"]["title"])
            played = scrobble.get("duration")
            ms, skipped = (-1, -1) if played is None else (1000 * played, int(played < 30))
            found.append(Heard(user, track, scrobble["time"], skipped, ms=ms))
    return sorted(found)


def test_exports_of_two_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = " ".join(prepare(capsys, MALOJA, tmp_path / "out").split())
    exports = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in MALOJA.glob("*.json")}
    assert heard(tmp_path / "out") == counted(exports)
    assert "taken for an export of Maloja (--format maloja)" in said
    assert "several artists are joined by commas" in said
    dataset = Dataset.open(tmp_path / "out")
    row = dataset.track_ids.index("mirla vance the tin owls - paper lanterns")
    track = dataset.tracks.slice(row, 1).to_pylist()[0]
    assert (track["artist"], track["duration_ms"], track["album"]) == ("Mirla Vance, The Tin Owls", 187_000, "Lanterns")


def test_one_export_alone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "found plays of 1 user" in prepare(capsys, MALOJA / "bo.json", tmp_path / "out")


def test_an_export_that_is_cut_short_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (MALOJA / "ada.json").read_text(encoding="utf-8")
    for end in (text.rindex("}"), text.rindex("]"), text.rindex(","), len(text) // 2):
        (tmp_path / "ada.json").write_text(text[:end], encoding="utf-8")
        said = prepare(capsys, tmp_path / "ada.json", tmp_path / "out")
        assert "ada.json: found" in said
        assert "export it again" in said


def test_an_export_larger_than_what_a_record_may_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for user in ("ada", "bo"):
        text = (MALOJA / f"{user}.json").read_text(encoding="utf-8").rstrip()
        (tmp_path / "in" / f"{user}.json").parent.mkdir(exist_ok=True)
        (tmp_path / "in" / f"{user}.json").write_text(text[:-1] + " " * (1 << 25) + "}", encoding="utf-8")
    prepare(capsys, tmp_path / "in", tmp_path / "out")
    exports = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in MALOJA.glob("*.json")}
    assert heard(tmp_path / "out") == counted(exports)


def test_cells_that_cannot_be_read_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exports = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in MALOJA.glob("*.json")}
    exports["ada"]["scrobbles"][1]["duration"] = "long"
    exports["ada"]["scrobbles"][2]["time"] = "yesterday"
    exports["ada"]["scrobbles"][3]["track"] = None
    for user, export in exports.items():
        (tmp_path / "in" / f"{user}.json").parent.mkdir(exist_ok=True)
        (tmp_path / "in" / f"{user}.json").write_text(json.dumps(export), encoding="utf-8")
    said = " ".join(prepare(capsys, tmp_path / "in", tmp_path / "out").split())
    assert "ms_played: 1 not a number from 0, taken as unknown (first 'long', ada.json record 2)" in said
    assert "timestamp is neither Unix seconds nor ISO 8601 (ada.json record 3)" in said
    assert "empty track_id (ada.json record 4)" in said


names = st.sampled_from(["Kite", "KITE", "Kité", 'The "Knot"', "a, b", "Slow (feat. Ann)"])
scrobble = st.fixed_dictionaries(
    {
        "time": st.integers(1_000_000_000, 1_700_000_000),
        "track": st.fixed_dictionaries(
            {"artists": st.lists(names, min_size=1, max_size=3), "title": names},
            optional={
                "length": st.one_of(st.none(), st.integers(0, 4000)),
                "album": st.one_of(st.none(), st.fixed_dictionaries({"albumtitle": names})),
            },
        ),
    },
    optional={"duration": st.one_of(st.none(), st.integers(0, 4000)), "origin": names, "extra": st.just({"a": [1]})},
)


QUICK = settings(
    max_examples=examples(3),
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # to shrink would take minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@QUICK
@example(
    ada=[
        {
            "time": 1_000_000_007,
            "track": {"artists": ["Kite", 'The "Knot"'], "title": "Slow (feat. Ann)"},
            "duration": 7,
        },
        {"time": 1_000_000_007, "track": {"artists": ["KITE"], "title": "Kité", "length": 61, "album": None}},
    ],
    bo=[
        {"time": 1_600_000_000, "track": {"artists": ["KITE"], "title": "Kité"}, "origin": "a, b"},
        {"time": 1_600_000_000, "track": {"artists": ["Kite"], "title": "Kite", "album": {"albumtitle": "a, b"}}},
        {"time": 1_700_000_000, "track": {"artists": ["Kite"], "title": "Kite", "length": None}, "duration": None},
    ],
)
@given(ada=st.lists(scrobble, min_size=2, max_size=20), bo=st.lists(scrobble, min_size=2, max_size=20))
def test_any_scrobbles_are_counted_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ada: list[dict[str, Any]], bo: list[dict[str, Any]]
) -> None:
    exports = {"ada": {"scrobbles": ada}, "bo": {"scrobbles": bo}}
    for user, export in exports.items():
        (tmp_path / "in" / f"{user}.json").parent.mkdir(exist_ok=True)
        (tmp_path / "in" / f"{user}.json").write_text(json.dumps(export, indent=3), encoding="utf-8")
    prepare(capsys, tmp_path / "in", tmp_path / "out", *ALL_TRAIN)
    assert heard(tmp_path / "out") == counted(exports)
