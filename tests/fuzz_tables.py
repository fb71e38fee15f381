"""Random tables against an independent reading: what `prepare` makes of each must be what the cells mean.

`python -m tests.fuzz_tables --tables 2000 --seed 0` is the drill; tests/test_fuzz_tables.py runs a slice of it. The
reading here shares no code with Lhydra: cells are drawn with their meaning, and Python puts the table together.
"""

import argparse
import csv
import gzip
import io
import random
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lhydra.data.dataset import Dataset
from lhydra.data.prepare import prepare
from lhydra.data.settings import PrepareSettings
from lhydra.errors import DataError

BAD = object()  # the meaning of a cell that costs its row, or of a value that is missing and told
Cell = tuple[str | None, Any]  # how it is written, what it means
IDS = (
    "007",
    "7",
    "1.0",
    "NA",
    "null",
    " a",
    "a",
    "é",
    "x,y",
    'q"q',
    "two words",
    "🎧",
    "None",
    "-1",
    "0x1F",
    "1e3",
)
WORDS = ("rock", "hip hop", "Earth, Wind & Fire", "r&b", "it's", 'say "x"', "[unknown]", "caf\u00e9", "a/b", "x")


def draw_number(rng: random.Random) -> Cell:
    value = rng.choice([0.5, 1.0, 3.0, 120.0, 2000.0])
    good = [f"{value}", f" {value} ", f"+{value}", f"{value:e}", f"{value:g}", f"\t{value}"]
    bad = ["0x10", "0b1", "1_000", "1,5", "abc", "nan", "inf", "-inf", "1e999", "--1", "5%", "٣"]
    return (rng.choice(good), value) if rng.random() < 0.85 else (rng.choice(bad), BAD)


def draw_count(rng: random.Random) -> Cell:
    if rng.random() < 0.05:
        return rng.choice([("0", None), ("-1", BAD), ("2e12", BAD), ("", BAD)])  # None: no play, and no fault
    return draw_number(rng)


def draw_year(rng: random.Random) -> Cell:
    year = rng.randrange(1960, 2024)
    good = [f"{year}", f"{year}.0", f"{year}-05-01", f" {year}-05"]
    bad = ["0x7D0", "12", "20000", "soon", "2_000"]
    return (rng.choice(good), float(year)) if rng.random() < 0.85 else (rng.choice(bad), BAD)


def draw_time(rng: random.Random) -> Cell:
    if rng.random() < 0.1:
        return rng.choice([("", 0), (" ", 0), ("0", 0)])
    at = datetime(2001, 9, 9, 2, tzinfo=UTC) + timedelta(seconds=rng.randrange(600_000_000))
    day, minute = at.replace(hour=0, minute=0, second=0), at.replace(second=0)
    east = rng.choice([120, -330, 0])
    there = at + timedelta(minutes=east)
    offset = f"{'-' if east < 0 else '+'}{abs(east) // 60:02}:{abs(east) % 60:02}"
    good = [
        (f"{int(at.timestamp())}", at),
        (f"{int(at.timestamp())}.75", at),
        (f"{at:%Y-%m-%dT%H:%M:%S}", at),
        (f"{at:%Y-%m-%d %H:%M:%S}Z", at),
        (f"{at:%Y-%m-%d %H:%M:%S.%f}", at),
        (f"{at:%Y-%m-%d %H:%M:%S} UTC", at),
        (f"{at:%Y%m%dT%H%M%S}", at),
        (f"{at:%Y%m%d%H%M%S}", at),
        (f"{there:%Y-%m-%dT%H:%M:%S}{offset}", at),
        (f"{there:%Y%m%dT%H%M%S}{offset.replace(':', '')}", at),
        (f"{minute:%Y-%m-%d %H:%M}", minute),
        (f"{day:%Y-%m-%d}", day),
        (f"{day:%Y%m%d}", day),
        (f"{day.year}-{day.month}-{day.day}", day),
    ]
    bad = [
        *(f"{at:%Y-%m}", f"{at:%Y}", f"{at:%Y-%j}", f"{at:%Y/%m/%d}", f"{at:%Y-%m-%d} 10:00 PM", "0x5E0C0000"),
        *(f"{at:%Y}-02-30", f"{at:%Y}1301", f"{int(at.timestamp())}000", "-5", "yesterday", "inf", "1_500_000_000"),
        *(f"{at:%Y-%m-%d %H:%M:%S} CET", f"{at:%Y-%m-%d %H:%M:%S} Europe/Paris", f"{at:%d.%m.%Y}", "1969-12-31"),
    ]
    if rng.random() < 0.8:
        text, when = rng.choice(good)
        return text, int(when.timestamp())
    return rng.choice(bad), BAD


def draw_artist(rng: random.Random) -> Cell:
    word = rng.choice(WORDS)
    return rng.choice([(word, word), ("", None), (" ", None)])


def draw_tags(rng: random.Random, style: str) -> Cell:
    """A cell of a `multi` column in one style; plain pieces hold nothing that divides."""
    some = [rng.choice(WORDS) for _ in range(rng.randrange(4))]
    if style == "python":
        return repr(some), some or None
    if style == "json":
        return str(pa_json(some)), some or None
    if style == "numpy":
        return "[" + " ".join(map(repr, some)) + "]", some or None
    mark = {"bar": "|", "semicolon": ";", "comma": ","}[style]
    kept = [word for word in some if mark not in word and not word.startswith("[")]
    return f"{rng.choice(['', ' '])}{mark}{rng.choice(['', ' '])}".join(kept), kept or None


def pa_json(words: list[str]) -> str:
    return "[" + ",".join('"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"' for word in words) + "]"


class Table:
    """A random flat table: its cells by column, in rows, and how it is written."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.parquet = rng, rng.random() < 0.3
        style = rng.choice(["python", "json", "numpy", "bar", "semicolon", "comma"])
        draws: dict[str, Callable[[], Cell]] = {
            "playcount": lambda: draw_count(rng),
            "timestamp": lambda: draw_time(rng),
            "artist": lambda: draw_artist(rng),
            "year": lambda: draw_year(rng),
            "tempo": lambda: draw_number(rng),
            "tags": lambda: draw_tags(rng, style),
            "age": lambda: draw_number(rng),
        }
        self.names = [name for name in draws if rng.random() < 0.6]
        users, tracks = rng.sample(IDS, 4), rng.sample(IDS, 5)
        self.rows: list[dict[str, Cell]] = []
        for _ in range(rng.randrange(2, 40)):
            user, track = rng.choice(users), rng.choice(tracks)
            row: dict[str, Cell] = {"user_id": (user, user), "track_id": (track, track)}
            for key in ("user_id", "track_id"):
                if rng.random() < 0.02:
                    row[key] = ("", BAD)
            for name in self.names:
                row[name] = draws[name]() if name == "tags" or rng.random() > 0.1 else _empty(name)
            self.rows.append(row)
        self.style = style

    def write(self, folder: Path) -> Path:
        """Writes the table as CSV or Parquet, in one of many manners."""
        rng, names = self.rng, ["user_id", "track_id", *self.names]
        rng.shuffle(names)
        shown = {name: rng.choice([name, name.upper(), name.title(), f" {name}"]) for name in names}
        if self.parquet:
            kinds = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
            arrays = {
                shown[name]: pa.array([_null(rng, row[name][0]) for row in self.rows], pa.string()).cast(
                    rng.choice(kinds)
                )
                for name in names
            }
            pq.write_table(pa.table(arrays), folder / "in.parquet", row_group_size=rng.choice([3, 1000]))
            return folder / "in.parquet"
        text = io.StringIO()
        quoting: Literal[0, 1, 2] = rng.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC])
        writer = csv.writer(text, quoting=quoting, lineterminator=rng.choice(["\n", "\r\n"]))
        writer.writerow([shown[name] for name in names])
        for row in self.rows:
            writer.writerow([row[name][0] for name in names])
            if rng.random() < 0.05:
                text.write("\n")
        raw = (b"\xef\xbb\xbf" if rng.random() < 0.2 else b"") + text.getvalue().encode()
        if rng.random() < 0.3:
            (folder / "in.csv.gz").write_bytes(gzip.compress(raw))
            return folder / "in.csv.gz"
        (folder / "in.csv").write_bytes(raw)
        return folder / "in.csv"

    def meaning(self) -> dict[str, Any] | None:
        """What the table says, put together without Lhydra; None where it must be refused."""
        kept = [row for row in self.rows if all(row[n][1] is not BAD for n in ("user_id", "track_id"))]
        if "playcount" in self.names:
            kept = [row for row in kept if row["playcount"][1] not in (BAD, None)]
        if "timestamp" in self.names:
            kept = [row for row in kept if row["timestamp"][1] is not BAD]
            filled = [row["timestamp"] for row in self.rows if str(row["timestamp"][0]).strip()]
            if filled and all(value is BAD for _, value in filled):
                return None
        if len({row["user_id"][1] for row in kept}) < 2:
            return None
        plays: dict[tuple[str, str], tuple[float, int]] = {}
        for row in kept:
            key = row["user_id"][1], row["track_id"][1]
            count, time = plays.get(key, (0.0, 0))
            more = row["playcount"][1] if "playcount" in row else 1.0
            plays[key] = count + more, max(time, row["timestamp"][1] if "timestamp" in row else 0)
        return {
            "plays": plays,
            "dropped": len(self.rows) - len(kept),
            "tracks": self._side(kept, "track_id", ("artist", "year", "tempo", "tags")),
            "users": self._side(kept, "user_id", ("age",)),
        }

    def _side(self, rows: list[dict[str, Cell]], key: str, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """Returns {id: {column: first filled value}}; a column without any value is left out."""
        found: dict[str, dict[str, Any]] = {row[key][1]: {} for row in rows}
        for name in (name for name in names if name in self.names):
            mark = {"bar": "|", "semicolon": ";", "comma": ","}.get(self.style)
            divides = name == "tags" and mark and not any(mark in str(row[name][0]) for row in rows)
            for row in rows:
                value = row[name][1]
                if divides and value and mark != ",":  # the separator is never met: a comma divides, if anything
                    value = [piece.strip() for word in value for piece in word.split(",")]
                if value is not BAD and value is not None and name not in found[row[key][1]]:
                    found[row[key][1]][name] = value
        return found


def _empty(name: str) -> Cell:
    return "", BAD if name == "playcount" else 0 if name == "timestamp" else None


def _null(rng: random.Random, text: str | None) -> str | None:
    return None if text == "" and rng.random() < 0.5 else text


def reading(source: Path, out: Path) -> dict[str, Any] | None:
    """What Lhydra makes of the table; None when it refuses in one line."""
    try:
        info = prepare(source, out, PrepareSettings(split="random", valid=0, test=0))
    except DataError as error:
        if "\n" in str(error):
            raise
        return None
    dataset = Dataset.open(out)
    users, tracks, plays = dataset.user_ids, dataset.track_ids, dataset.plays
    columns = (plays.user.tolist(), plays.track.tolist(), plays.count.tolist(), plays.time.tolist())
    return {
        "plays": {(users[u], tracks[t]): (count, time) for u, t, count, time in zip(*columns, strict=True)},
        "dropped": sum(info.dropped.values()),
        "tracks": _table(dataset.tracks, "track_id", [column.name for column in info.track_columns]),
        "users": _table(dataset.users, "user_id", [column.name for column in info.user_columns]),
    }


def _table(table: pa.Table, key: str, names: list[str]) -> dict[str, dict[str, Any]]:
    rows = table.select([key, *names]).to_pylist()
    return {row.pop(key): {name: value for name, value in row.items() if value is not None} for row in rows}


def compare(seed: int, folder: Path) -> str:
    """Returns how Lhydra's reading of the table of this seed differs from its meaning, '' where it does not."""
    table = Table(random.Random(seed))
    source = table.write(folder)
    wanted, found = table.meaning(), reading(source, folder / "out")
    if (wanted is None) != (found is None):
        return f"seed {seed}: {'read' if wanted is None else 'refused'}, expected the other"
    if wanted is None or found is None:
        return ""
    for part in ("dropped", "users", "tracks"):
        if wanted[part] != found[part]:
            return f"seed {seed}: {part}: found {found[part]}, expected {wanted[part]}"
    if wanted["plays"].keys() != found["plays"].keys():
        return f"seed {seed}: plays: found {found['plays'].keys()}, expected {wanted['plays'].keys()}"
    for pair, (count, time) in wanted["plays"].items():
        if found["plays"][pair][1] != time or abs(found["plays"][pair][0] - count) > 1e-5 * count:
            return f"seed {seed}: {pair}: found {found['plays'][pair]}, expected {(count, time)}"
    return ""


def main() -> int:
    """Runs the drill and prints the differences."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tables", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    differences = 0
    for seed in range(args.seed, args.seed + args.tables):
        with tempfile.TemporaryDirectory() as folder:
            if said := compare(seed, Path(folder)):
                differences += 1
                print(said, flush=True)
    print(f"{args.tables:,} tables, {differences} differences")
    return int(differences > 0)


if __name__ == "__main__":
    raise SystemExit(main())
