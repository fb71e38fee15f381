"""Exports of Gorse: feedback.csv with items.csv and users.csv, whose headers vary."""

import re
from dataclasses import replace

from lhydra.data.csv_text import CSV
from lhydra.data.formats.format import Export, Format, Sample, Tables, not_read, one_of, text_table
from lhydra.data.schema import near
from lhydra.data.table import Table

_FEEDBACK = ("feedbacktype", "userid", "itemid", "timestamp")  # the order of a file without a header
_KNOWN = {"user_id": "userid", "track_id": "itemid", "timestamp": "timestamp"}
_RAGGED = replace(CSV, ragged=True)
# Go writes 2020-01-01 01:01:01.5 +0000 UTC, and the year 1 for no time.
_TIME = """CASE WHEN starts_with("timestamp", '0001-01-01') THEN '' ELSE
    regexp_replace("timestamp", '( [+-][0-9]{4}) [A-Z+-][A-Z0-9]*$', '\\1') END"""
_LABELS = """CASE WHEN NOT json_valid(labels) THEN string_split(labels, '|')
    WHEN json_type(labels) = 'ARRAY' THEN json_extract_string(labels, '$[*]')
    WHEN json_type(labels) = 'OBJECT' THEN json_extract_string(labels, '$.*[*]') ELSE [labels] END"""


def _names(sample: Sample) -> list[str]:
    """The names in the first line as Gorse's field names, whatever their case; a name given twice stands by number."""
    names: list[str] = []
    for i, given in enumerate(next(iter(sample.rows(1)), []), start=1):
        bare = re.sub(r"[\W_]", "", given.casefold())
        name = _KNOWN.get(near(given) or "", bare) if bare not in _FEEDBACK else bare
        names.append(name if name and name not in names else f"column {i}")
    return names


def _is_feedback(sample: Sample) -> bool:
    names = _names(sample) if sample.name.endswith(".csv") else []
    if {"userid", "itemid"} <= set(names):
        return sample.name.startswith("feedback") or names[0] == "feedbacktype"
    return sample.name.startswith("feedback") and len(names) in (3, 4)


def _open(export: Export) -> Tables | None:
    """feedback.csv as plays, one a row; items.csv and users.csv where they are."""
    files = one_of(export, [sample for sample in export.samples if _is_feedback(sample)], "feedback")
    if not files:
        return None
    file, names = files[0], _names(files[0])
    rows = file.rows()
    header = {"userid", "itemid"} <= set(names)
    if not header:
        typed = len(rows[0]) == 4 or not any(_is_number(row[0]) for row in rows if row)
        names = list(_FEEDBACK[: len(rows[0])] if typed else ("userid", "itemid", "rating"))
    widest = max(map(len, rows))
    if names == list(_FEEDBACK[:3]) and widest > 3:  # the fourth cell is the time, named or not
        names = list(_FEEDBACK)
    columns = {"user_id": "userid", "track_id": "itemid"}
    if "timestamp" in names:
        columns["timestamp"] = _TIME
    columns |= {name: f'"{name}"' for name in names if name not in ("userid", "itemid", "timestamp")}
    plays = text_table(file.path, [(file, "")], replace(_RAGGED, header=header), columns, names=names)
    note = "each feedback is one play, whatever its type or value"
    if "feedbacktype" in names:
        types = {row[names.index("feedbacktype")] for row in rows[header:] if row}
        note += f" (types at the beginning: {', '.join(sorted(types))})"
    notes = [note]
    if widest > len(names):
        notes.append(f"{file.path.name}: {widest} cells for {len(names)} names; those beyond the names are not read")
    items, users = _side(export, "item"), _side(export, "user")
    read = [file, *(sample for sample in export.samples if sample.path in {t.path for t in (items, users) if t})]
    return Tables(plays, items, users, (*notes, *not_read(export, read)))


def _is_number(cell: str) -> bool:
    return cell.strip().replace(".", "", 1).isdigit()


def _side(export: Export, side: str) -> Table | None:
    """The table of items or users, where there is one with a header."""
    found = [sample for sample in export.samples if sample.name == f"{side}s.csv" and f"{side}id" in _names(sample)]
    if not found:
        return None
    names = _names(found[0])
    key = "track_id" if side == "item" else "user_id"
    columns = {key: f"{side}id"}
    columns |= {name: f'"{name}"' for name in names if name not in (f"{side}id", "labels")}
    lists: tuple[str, ...] = ()
    if "labels" in names:
        known = "tags" if side == "item" else "labels"
        columns[known] = f"[x FOR x IN {_LABELS} IF x <> '']"
        lists = (known,)
    if "categories" in names:
        columns["genre"] = columns.pop("categories")
    title = "description" if "description" in names else "comment"
    if side == "item" and title in names:
        columns["name"] = columns.pop(title)
    return text_table(found[0].path, [(found[0], "")], _RAGGED, columns, names=names, lists=lists)


FORMATS = (Format("gorse", "an export of Gorse", "feedback.csv: type, user, item and perhaps a time", _open),)
