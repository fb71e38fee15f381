"""The page of a dataset: what its log is like, what was made of its columns and rows, how it was divided."""

import calendar
import time
from collections.abc import Sequence

import numpy as np

from lhydra.data.dataset import TEST, TRAIN, VALID, Dataset
from lhydra.data.distributions import Returns, doubling, over_time, returns
from lhydra.data.summary import F64, session_plays, sums
from lhydra.page import page
from lhydra.page.blocks import Block, Chart, Facts, Folded, Grid, Messages, Notice, Panel, Read, Table, Tile, Tiles, Top
from lhydra.page.charts import columns, line_series, log_lines
from lhydra.page.page import Section
from lhydra.page.words import count, plain, share

KIND = "dataset"  # what the title of such a page ends with
_AGES = {
    "1 min": 60,
    "10 min": 600,
    "1 h": 3_600,
    "6 h": 21_600,
    "1 day": 86_400,
    "1 week": 604_800,
    "1 month": 2_629_800,
    "1 year": 31_557_600,
    "10 years": 315_576_000,
}


def render(dataset: Dataset) -> str:
    """Renders what a dataset is like.

    Args:
        dataset: with a summary, as `prepare` has written it. Its plays are read.

    Returns:
        One HTML page.

    Raises:
        MissingExtra: plotly or Jinja2 is not installed.
    """
    sections = (
        Section("time", "When", _when(dataset)),
        Section("plays", "How much", _how_much(dataset)),
        Section("repeats", "What comes back", _repeats(dataset)),
        Section("rows", "Rows", _rows(dataset)),
        Section("columns", "Columns", _columns(dataset)),
        Section("split", "The split", _split(dataset)),
    )
    footer = (
        f"Made by Lhydra {dataset.info.lhydra_version}. The figures are also in dataset.json, as its summary; "
        "times are in UTC."
    )
    return page.render(KIND, _top(dataset), sections, footer)


def _top(dataset: Dataset) -> Top:
    found = dataset.info.summary
    plays, users, tracks = (_count(found[name]) for name in ("plays", "users", "tracks"))
    span, sessions, listened = (found.get(name) for name in ("time", "sessions", "listened"))
    tiles = [
        Tile("Plays", plays, [f"in {count(found['kept'])} rows" if found["kept"] != found["plays"] else ""], main=True),
        Tile("Users", users, [f"half of them have {_count(found['per_user']['median'])} plays or fewer"]),
        Tile("Tracks", tracks, [f"half of them have {_count(found['per_track']['median'])} or fewer"]),
        Tile("Repeats", share(found["repeats"]), ["of the plays are of a track that the user had played before"]),
    ]
    if sessions:
        half = f"half of them have {_count(sessions['per_session']['median'])} plays or fewer"
        tiles.append(Tile("Sessions", count(sessions["count"]), [half]))
    for name, label in (("skipped", "Skipped"), ("completed", "Played to the end")):
        if told := found.get(name):
            tiles.append(Tile(label, share(told["share"]), [f"of the {_count(told['known'])} plays that tell"]))
    if listened:
        tiles.append(
            Tile("Listened", f"{listened['hours']:,.0f} h", [f"in the {count(listened['known'])} rows that tell"])
        )
    ends = dict.fromkeys(_day(span[end]) for end in ("oldest", "newest")) if span else ["Without times"]
    lines = [f"{' to '.join(ends)}."]
    lines.append(f"Prepared from {dataset.info.source}.")
    dropped = [str(message) for message in found["dropped"]]
    notice = (
        Notice("warning", "Rows that were dropped", dropped) if dropped else Notice("ok", "", ["No row was dropped."])
    )
    verdict = f"{plays} plays of {tracks} tracks by {users} users"
    across = len(tiles) if len(tiles) < 6 else 4
    return Top(dataset.path.resolve().name, verdict, lines, [Tiles(tiles, across)], [notice])


def _when(dataset: Dataset) -> list[Block]:
    found = over_time(dataset.events)
    if found is None:
        return [Read("The source tells no times: neither days nor the age of what comes back is known.")]
    steps = [start.replace("T", " ") for start in found.starts]
    if found.step in ("month", "year"):
        steps = [start[: 7 if found.step == "month" else 4] for start in steps]
    notes = [f"{start}: {_count(plays)} plays" for start, plays in zip(steps, found.plays.tolist(), strict=True)]
    chart = columns(steps, found.plays.tolist(), notes, "", "plays")
    monday = ", from its Monday" if found.step == "week" else ""
    how = f"Each column is one {found.step}{monday}; the log may begin and end in the middle of one."
    unknown = dataset.info.summary["time"]["unknown"]
    how += f" {count(unknown)} rows have no time and are not shown." if unknown else ""
    return [
        Read("Is it the span of time that you think it is, and without holes?"),
        Panel(f"Plays by {found.step}", chart, how),
    ]


def _how_much(dataset: Dataset) -> list[Block]:
    events, found = dataset.events, dataset.info.summary
    per_user, per_track = (sums(key, events.count) for key in (events.user, events.track))
    panels = [
        Panel("Plays per user", _histogram(per_user, "users")),
        Panel("Plays per track", _histogram(per_track, "tracks", log=True), "The axis upwards is logarithmic."),
    ]
    rows = [("users", "per_user", found), ("tracks", "per_track", found)]
    how = "Each column goes to twice as many plays as the one before."
    if sessions := found.get("sessions"):
        panels.append(Panel("Plays per session", _histogram(session_plays(events), "sessions"), _origin(dataset)))
        rows.append(("sessions", "per_session", sessions))
    else:
        how += " The source tells neither sessions nor the times that would show them."
    table = [[name, *(_count(of[key][one]) for one in ("median", "p90", "most"))] for name, key, of in rows]
    panels.append(Panel("Plays of each", Table(["", "median", "nine in ten have at most", "most"], table)))
    return [Read(how), Grid(panels)]


def _origin(dataset: Dataset) -> str:
    found = dataset.info.summary
    named = found["sessions"]["named"]
    if not named:
        return "The source names no sessions: one ends where its user plays nothing for 30 minutes."
    rest = "; the others end where their user plays nothing for 30 minutes" if named < found["kept"] else ""
    return f"As the source names them{rest}."


def _histogram(values: F64, what: str, log: bool = False) -> Chart:
    heights = doubling(values[values > 0]).tolist()
    starts = [1 << place for place in range(len(heights))]
    notes = []
    for start, height in zip(starts, heights, strict=True):
        span = f"{start:,}" if start == 1 else f"{start:,} to {2 * start - 1:,}"
        notes.append(f"{span} plays: {height:,} {what}")
    return columns(list(map(_short, starts)), heights, notes, "plays", what, log)


def _repeats(dataset: Dataset) -> list[Block]:
    found = dataset.info.summary
    how = f"{share(found['repeats'])} of the plays are of a track that its user had played before."
    life = returns(dataset.events) if found.get("time") else None
    drawn = life is not None and not np.isnan(life.per_day).all()
    if life is None or not drawn:
        why = (
            "Too few come back at a known age to draw how soon."
            if found.get("time")
            else "Without times it is not known how soon."
        )
        return [Read(f"{how} {why}")]
    chart, rows = _by_age(life)
    note = (
        "How often a day a track is played again, by the time since its last play, while its user still listens. "
        "A straight line down is a power law, as forgetting is (Anderson & Schooler 1991)."
    )
    numbers = Table(["time since its last play", "returns", "returns a day"], rows)
    return [Read(how), Panel("Returns by age", chart, note), Folded("As numbers", [numbers])]


def _by_age(life: Returns) -> tuple[Chart, list[list[str]]]:
    middles = np.sqrt(life.youngest.astype(np.float64) * life.oldest)
    rates = [None if np.isnan(rate) else rate for rate in life.per_day.tolist()]
    ticks = {name: at for name, at in _AGES.items() if life.youngest[0] <= at <= life.oldest[-1]}
    series = [line_series("", middles.tolist(), rates, marked=True)]
    chart = log_lines("time since its last play", "returns a day", series, ticks)
    rows = [
        [f"{_age(low)} to {_age(high)}", f"{came:,}", "–" if rate is None else f"{rate:.2g}"]
        for low, high, came, rate in zip(
            life.youngest.tolist(), life.oldest.tolist(), life.returns.tolist(), rates, strict=True
        )
    ]
    return chart, rows


def _rows(dataset: Dataset) -> list[Block]:
    info, found = dataset.info, dataset.info.summary
    facts = {f"rows of {name}": count(rows) for name, rows in found["rows"].items()}
    facts |= {f"dropped: {reason}": count(rows) for reason, rows in info.dropped.items()}
    facts["rows of plays kept"] = count(found["kept"])
    facts |= {
        f"{side} of the plays that have a row of their own": f"{count(one['with_row'])} of {count(one['ids'])}"
        for side, one in found["matched"].items()
    }
    facts["rows again of the same user, track and second"] = count(found["again"])
    panels = [Panel("Counts", Facts(facts)), *([Panel("To know", _messages(info.notes))] if info.notes else [])]
    return [Read("What was read, and what was left out."), Grid(panels)]


def _columns(dataset: Dataset) -> list[Block]:
    info, rows = dataset.info, []
    for side, used, table in (
        ("tracks", info.track_columns, dataset.tracks),
        ("users", info.user_columns, dataset.users),
    ):
        for column in used:
            filled = 1 - table[column.name].null_count / table.num_rows
            rows.append([column.name, side, column.kind, share(filled)])
    blocks: list[Block] = []
    if rows:
        blocks.append(Panel("Used", Table(["", "of", "kind", "filled"], rows, numbers=3)))
    else:
        blocks.append(Read("None but the ids: nothing is known of tracks and users but who played what."))
    for title, key in (("Not used", "columns"), ("Cells of several values", "lists")):
        if messages := info.summary[key]:
            blocks.append(Panel(title, _messages(messages)))
    return blocks


def _split(dataset: Dataset) -> list[Block]:
    info, fold = dataset.info, dataset.events.fold
    rows = []
    for name, number in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        plays = float(dataset.events.count[fold == number].sum(dtype=np.float64))
        rows.append([name, _count(plays), share(plays / info.summary["plays"]), count(info.counts[name])])
    told = {name: plain(info.split[name]) for name in ("protocol", "seed", "valid", "test", "hash")}
    if cuts := info.split.get("cuts"):
        told |= {f"last second of {name}": _second(second) for name, second in cuts.items()}
    head = ["", "plays", "share", "pairs of user and track"]
    return [Grid([Panel("Folds", Table(head, rows)), Panel("Rule", Facts(told))])]


def _messages(texts: Sequence[str]) -> Messages:
    return Messages([text.split("\n") for text in texts])


def _count(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def _short(value: int) -> str:
    """Writes a power of two on an axis: 1, 512, 1k, 1M, 1G."""
    for size, letter in ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "k")):
        if value >= size:
            return f"{value // size}{letter}"
    return str(value)


def _age(seconds: int) -> str:
    for size, name in ((31_536_000, "year"), (86_400, "day"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            n = seconds // size
            return f"{n:,} {name}" + "s" * (n > 1 and size >= 86_400)
    return f"{seconds} s"


def _day(second: int) -> str:
    at = time.gmtime(second)
    return f"{at.tm_mday} {calendar.month_name[at.tm_mon]} {at.tm_year}"


def _second(second: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(second))
