"""What a dataset holds, and files of separated text, in plain Python, for tests of exports."""

import csv
from pathlib import Path
from typing import Any

from lhydra.data.dataset import Dataset

Play = tuple[str, str, int, float]


def plays_of(dataset: Path) -> list[Play]:
    """Every play of a dataset, sorted: user, track, time, count."""
    opened = Dataset.open(dataset)
    events, tracks, users = opened.events, opened.track_ids, opened.user_ids
    rows = zip(events.user, events.track, events.time.tolist(), events.count.tolist(), strict=True)
    return sorted((users[user], tracks[track], time, count) for user, track, time, count in rows)


def described(dataset: Path, side: str) -> dict[str, dict[str, Any]]:
    """The columns of the tracks or users of a dataset by their ids, without the aggregates of Lhydra."""
    opened = Dataset.open(dataset)
    rows = (opened.tracks if side == "tracks" else opened.users).to_pylist()
    return {
        row.pop(f"{side[:-1]}_id"): {name: value for name, value in row.items() if not name.startswith("train_")}
        for row in rows
    }


def rows_of(path: Path, sep: str = ",", encoding: str = "utf-8-sig") -> list[list[str]]:
    """The records of a file; other separators than the comma have no quotes."""
    text = path.read_bytes().decode(encoding)
    if sep == ",":
        return [row for row in csv.reader(text.splitlines(keepends=True)) if row]
    return [line.split(sep) for line in text.replace("\r\n", "\n").split("\n") if line]
