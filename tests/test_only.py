"""Rows that are plays, of a log of other events too: the dataset is that of a log without the others."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.cli import main
from lhydra.data.dataset import Dataset
from lhydra.data.prepare import prepare
from lhydra.data.settings import PrepareSettings
from lhydra.errors import ConfigError, DataError
from tests.harness import examples

KINDS = ("play", "Play", " play ", "complete", "like", "it's", "", "no=1")
Row = dict[str, Any]


def row(n: int, kind: str, **more: Any) -> Row:
    return {
        "user_id": f"u{n % 3}",
        "track_id": f"t{n % 4}",
        "timestamp": 1_700_000_000 + n,
        "kind of event": kind,
    } | more


def written(path: Path, rows: list[Row]) -> Path:
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def plays(folder: Path) -> list[tuple[str, str, int]]:
    dataset = Dataset.open(folder)
    events = dataset.events
    columns = zip(events.user.tolist(), events.track.tolist(), events.time.tolist(), strict=True)
    return sorted((dataset.user_ids[user], dataset.track_ids[track], time) for user, track, time in columns)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@settings(max_examples=examples(6), deadline=None)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=30),
    kept=st.lists(st.sampled_from(KINDS[:6]), min_size=1),
)
def test_the_dataset_is_that_of_a_log_of_plays_alone(
    tmp_path_factory: pytest.TempPathFactory, ending: str, kinds: list[str], kept: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("only")
    rows = [row(n, kind) for n, kind in enumerate(kinds)]
    wanted = {value.strip().lower() for value in kept}
    left = [one for one in rows if one["kind of event"].strip().lower() in wanted]
    source, only = written(folder / f"all{ending}", rows), PrepareSettings(only=f"Kind of Event={','.join(kept)}")
    if len({one["user_id"] for one in left}) < 2:
        with pytest.raises(DataError, match="expected plays of at least 2 users" if left else "expected one of them"):
            prepare(source, folder / "a", only)
        return
    info = prepare(source, folder / "a", only)
    prepare(written(folder / f"plays{ending}", left), folder / "b")
    assert plays(folder / "a") == plays(folder / "b")
    assert sum(info.dropped.values()) == len(rows) - len(left)


def test_what_is_no_play_is_no_fault(tmp_path: Path) -> None:
    rows = [row(0, "play"), row(1, "search", track_id=""), row(2, "like", timestamp="never"), row(4, "play")]
    source = written(tmp_path / "log.csv", rows)
    prepare(source, tmp_path / "a", PrepareSettings(only="kind of event=play", strict=True))
    assert len(plays(tmp_path / "a")) == 2
    with pytest.raises(DataError, match="expected no bad row"):
        prepare(source, tmp_path / "a", PrepareSettings(only="kind of event=play,like", strict=True))


def test_several_columns_must_all_agree(tmp_path: Path) -> None:
    of_each = [("play", "track"), ("play", "ad"), ("like", "track"), ("like", "ad")] * 3
    source = written(tmp_path / "log.csv", [row(n, kind, type=of) for n, (kind, of) in enumerate(of_each)])
    prepare(source, tmp_path / "a", PrepareSettings(only="kind of event=play,type=track"))
    assert len(plays(tmp_path / "a")) == 3


def test_it_is_used_up_where_more_plays_are_added(tmp_path: Path) -> None:
    first = written(tmp_path / "first.csv", [row(n, "play" if n % 2 else "like") for n in range(10)])
    more = written(tmp_path / "more.csv", [row(n, "play" if n % 2 else "like") for n in range(20, 30)])
    argv = ["--only", "kind of event=like", "--only", "Kind of event=play"]
    assert main(["prepare", str(first), str(tmp_path / "a"), *argv[:2]]) == 0
    assert main(["prepare", str(more), str(tmp_path / "a"), *argv, "--append"]) == 0
    assert len(plays(tmp_path / "a")) == 5 + 10


def test_a_column_of_kinds_is_told_until_it_is_used(tmp_path: Path) -> None:
    rows = [{**row(n, "x"), "event": "play"} for n in range(9)]
    source = written(tmp_path / "log.csv", rows)
    hint = "every row is a play, whatever its event: if some are none, --only event=VALUE keeps the others"
    assert hint in prepare(source, tmp_path / "a").warnings
    told = "\n".join(prepare(source, tmp_path / "a", PrepareSettings(only="event=play,complete")).warnings)
    assert "every row" not in told
    assert "not used: event" not in told
    assert "log.csv: event: no row is complete: play (9)" in told


@pytest.mark.parametrize("only", ["play", "=play", "event=", "event=play,", ",event=play", "", "event= ,play"])
def test_what_cannot_be_read_is_refused(only: str) -> None:
    with pytest.raises(ConfigError, match="--only: found"):
        PrepareSettings(only=only)


def test_refusals_say_what_is_there(tmp_path: Path) -> None:
    source = written(tmp_path / "log.csv", [row(n, f"k{n % 8}") for n in range(20)])
    with pytest.raises(
        DataError, match="--only event: found the columns user_id, track_id, timestamp, kind of event in"
    ):
        prepare(source, tmp_path / "a", PrepareSettings(only="event=play"))
    found = r"kind of event=play: found k0 \(3\), k1 \(3\), .*k5 \(2\), \.\.\. in .*log.csv, expected one of them"
    with pytest.raises(DataError, match=found):
        prepare(source, tmp_path / "a", PrepareSettings(only="kind of event=play"))
    assert not (tmp_path / "a").exists()
    with pytest.raises(DataError, match="--format lastfm: found it with --columns, --sep, --no-header or --only"):
        prepare(source, tmp_path / "a", PrepareSettings(only="event=play", format="lastfm"))
