"""What `lhydra prepare` tells on a terminal: the figures of the log in aligned lines, then what to know."""

import textwrap
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lhydra.data.dataset import Column, DatasetInfo

WIDTH = 100
_INDENT = 24  # of what is said of a figure


def tell(info: "DatasetInfo", dataset: Path, took_s: float) -> str:
    """Writes what was made of a source.

    Args:
        info: what dataset.json says.
        dataset: the folder.
        took_s: how long it took.

    Returns:
        The lines.
    """
    found, counts = info.summary, info.counts
    folds = ", ".join(f"{counts[fold]:,} {fold}" for fold in ("train", "valid", "test"))
    lines = [
        f"{dataset}: prepared from {info.source} in {took_s:.1f} s",
        *_line("rows", f"{found['rows']['plays']:,}", _rows(info)),
        *_line("plays", _number(found["plays"]), _plays(found)),
    ]
    for name in ("skipped", "completed"):
        if told := found.get(name):
            lines += _line(name, f"{told['share']:.1%}", [f"of the {_number(told['known'])} plays that tell"])
    if listened := found.get("listened"):
        lines += _line("listened", f"{listened['hours']:,.0f} h", [f"in the {listened['known']:,} rows that tell"])
    split = f"{info.split['protocol']} split {info.split['hash'][:12]}"
    lines += _line("pairs", f"{counts['plays']:,}", [folds, split])
    lines.append(f"{'plays of each: median':>{_INDENT + 9}}{'90 %':>11}{'most':>11}")
    sessions = found.get("sessions")
    for label, count, values, note in (
        ("users", found["users"], found["per_user"], ""),
        ("tracks", found["tracks"], found["per_track"], ""),
        *([("sessions", sessions["count"], sessions["per_session"], _origin(found))] if sessions else []),
    ):
        widths = (("median", 8), ("p90", 10), ("most", 10))
        spread = "".join(f" {_number(values[name]):>{width}}" for name, width in widths)
        lines += _line(label, f"{count:,}", [note], spread + "  ")
    named = [
        f"of {side}: {_columns(of)}" for side, of in (("tracks", info.track_columns), ("users", info.user_columns))
    ]
    lines += _line("columns", "", named)
    for title, messages in (
        ("dropped", found["dropped"]),
        ("columns", found["columns"]),
        ("lists", found["lists"]),
        ("to know", info.notes),
    ):
        lines += [title] * bool(messages)
        for message in messages:
            first, *yaml = message.split("\n")
            lines += textwrap.wrap(first, WIDTH, initial_indent="  - ", subsequent_indent="    ")
            lines += [f"      {line}" for line in yaml]
    lines.append(f"next: lhydra train {dataset} MODEL")
    return "\n".join(lines)


def _line(label: str, value: str, notes: Iterable[str], figures: str = "") -> list[str]:
    """Writes a figure and what is said of it, on as many lines as that needs."""
    head = f"  {label:<9}{value:>11}  {figures}"
    text = "; ".join(filter(None, notes))
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head)) or [head.rstrip()]


def _rows(info: "DatasetInfo") -> list[str]:
    found = info.summary
    kept = f", {found['kept']:,} kept" if found["kept"] < found["rows"]["plays"] else ""
    others = [f"{count:,} of {side}" for side, count in found["rows"].items() if side != "plays"]
    return [f"of plays read{kept}", ", ".join(others)]


def _plays(found: Mapping[str, Any]) -> list[str]:
    when = "without times"
    if span := found.get("time"):
        days = dict.fromkeys(time.strftime("%Y-%m-%d", time.gmtime(span[end])) for end in ("oldest", "newest"))
        when = f"{' to '.join(days)} (UTC)"
        when += f", {span['unknown']:,} rows without a time" * bool(span["unknown"])
    return [when, f"{found['repeats']:.1%} repeats"]


def _origin(found: Mapping[str, Any]) -> str:
    named: int = found["sessions"]["named"]
    if not named:
        return "a pause of 30 minutes ends one"
    return "as the source names them" + (", else by pause" if named < found["kept"] else "")


def _columns(columns: "tuple[Column, ...]") -> str:
    return ", ".join(column.name for column in columns) or "none but the id"


def _number(value: float) -> str:
    return f"{value:,}" if float(value).is_integer() else f"{value:,.1f}"
