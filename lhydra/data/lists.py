"""Cells that hold several values: the lists that programs write as text, and the separators that people use."""

import json
import re
from ast import literal_eval

import duckdb

SEPARATORS = ("|", ";", ",")  # the first that a column has anywhere separates its pieces
_NAMES = {";": "semicolon", ",": "comma"}
_ENTITY = "&(?:amp|lt|gt|quot|apos|nbsp|#[0-9]+|#x[0-9a-fA-F]+)"
# A cell stands for `CELL` in these: one that opens like a list, and one that a program wrote (`[live]` is a name).
_OPENING = "left(bare(CELL), 1) IN ('[', chr(123), '(')"  # 123 is {, which str.format would take
_WRITTEN = """(regexp_matches(bare(CELL), '^[[(] *(["'']|[])]$)') AND is_list(CELL))"""
_CLOSING = {"[": "]", "{": "}", "(": ")"}
# A piece in quotes, or one without; then a comma, white space (as numpy writes it) or the end.
_PIECE = re.compile(
    r"""\s*(?:[ub]?('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|([^,'"\[\]{}()][^,\[\]{}]*))(\s*,\s*|\s*$|\s+(?=['"]))""", re.S
)
_MISSING = ("None", "null", "NULL", "nan", "NaN")


def read_list(cell: str) -> list[str] | None:
    """Returns the pieces of a list as Python, JSON, numpy or Postgres write it.

    Args:
        cell: the text, such as `['rock', 'pop']`, `["rock","pop"]`, `['rock' 'pop']` or `{rock,pop}`.

    Returns:
        The pieces, missing ones left out; None when the text is no list.
    """
    text = cell.strip()
    if len(text) < 2 or _CLOSING.get(text[0]) != text[-1]:
        return None
    inner, start, pieces = text[1:-1].strip(), 0, []
    while start < len(inner):
        found = _PIECE.match(inner, start)
        if found is None:
            return None
        quoted, plain, _ = found.groups()
        if quoted:
            piece = _unquoted(quoted)
            if piece is None:
                return None
            pieces.append(piece)
        elif text[0] == "(":
            return None
        elif plain.strip() not in _MISSING:
            pieces.append(plain.strip())
        start = found.end()
    return pieces


def _unquoted(text: str) -> str | None:
    """Returns what a quoted text stands for; JSON and Python differ in a few escapes."""
    for read in (json.loads, literal_eval) if text[0] == '"' else (literal_eval,):
        try:
            return str(read(text))
        except (ValueError, SyntaxError):
            pass
    return None


def _pieces(cell: str) -> list[str]:
    """Returns the pieces of a cell that begins like a list: a broken list has none."""
    return read_list(cell) or []


def configure(con: duckdb.DuckDBPyConnection) -> None:
    """Gives a connection the functions `is_list` and `list_pieces` of a cell.

    Args:
        con: the connection.
    """
    con.create_function("is_list", lambda cell: read_list(cell) is not None, ["VARCHAR"], "BOOLEAN")
    con.create_function("list_pieces", _pieces, ["VARCHAR"], "VARCHAR[]")


def pieces(cell: str, mark: str, listed: str) -> str:
    """Returns the SQL of the pieces of a cell.

    Args:
        cell: the SQL of the cell.
        mark: the separator of plain cells.
        listed: SQL that tells a list from a plain cell, of `CELL`.

    Returns:
        SQL of a list of text.
    """
    split = f"string_split({cell}, '{mark}')"
    if mark == ";":  # that of `&amp;` separates nothing: it is put aside, and comes back
        aside = f"string_split(regexp_replace({cell}, '({_ENTITY});', '\\1' || chr(1), 'g'), ';')"
        split = f"[replace(y, chr(1), ';') FOR y IN {aside}]"
    return f"CASE WHEN {listed.replace('CELL', cell)} THEN list_pieces({cell}) ELSE {split} END"


def separator(con: duckdb.DuckDBPyConnection, rows: str, cell: str) -> tuple[str, str, str]:
    """Decides how the cells of a column are divided, from all of them.

    Args:
        con: the connection that holds the rows.
        rows: the table or view.
        cell: the SQL name of the column.

    Returns:
        The separator of plain cells; SQL that tells a list from a plain cell, of `CELL`; and what to say of both.
    """
    opening, written = (test.replace("CELL", cell) for test in (_OPENING, _WRITTEN))
    filled, brackets = con.execute(
        f"SELECT count(*), count(*) FILTER ({opening}) FROM {rows} WHERE NOT blank({cell})"
    ).fetchall()[0]
    listed, said = "false", []
    if brackets:
        lists, quoted = con.execute(
            f"SELECT count(*) FILTER (is_list({cell})), count(*) FILTER ({written}) FROM {rows} WHERE {opening}"
        ).fetchall()[0]
        if 2 * lists >= filled:  # a column of lists: what opens like one and is none is broken
            listed, broken = _OPENING, brackets - lists
            said.append(f"{lists:,} of {filled:,} cells are lists, read as such")
            said += [f"{broken:,} broken lists are taken as missing"] * bool(broken)
        elif quoted:
            listed = _WRITTEN
            said.append(f"{quoted:,} of {filled:,} cells are lists, read as such")
    entity = f"regexp_replace({cell}, '{_ENTITY};', '', 'g')"  # the semicolon of `&amp;` separates nothing
    plain, bars, semicolons, commas = con.execute(
        f"""SELECT count(*), count(*) FILTER (contains({cell}, '|')), count(*) FILTER (contains({entity}, ';')),
            count(*) FILTER (contains({cell}, ',')) FROM {rows} WHERE NOT blank({cell})
                AND NOT ({listed.replace("CELL", cell)})"""
    ).fetchall()[0]
    counts = {mark: count for mark, count in zip(SEPARATORS, (bars, semicolons, commas), strict=True) if count}
    mark = next(iter(counts), ",")
    if counts:
        whose, of = ("cells are", f"{plain:,}") if plain == filled else ("others are", f"the other {plain:,}")
        said.append(f"{whose} split at {mark!r}, which {counts.pop(mark):,} of {of} hold")
        said += [f"{count:,} hold a {_NAMES[other]}, which separates nothing here" for other, count in counts.items()]
    elif filled and not said:
        said.append("no cell holds '|', ';' or ',': each is one value")
    return mark, listed, "; ".join(said)
