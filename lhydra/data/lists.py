"""Cells that hold several values: the lists that programs write as text, and the separators that people use."""

import json
import re
from ast import literal_eval

import duckdb

SEPARATORS = ("|", ";", ",")  # the first that a column has anywhere separates its pieces
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
    """Returns the pieces of a cell in a column of lists: a plain cell is one, a broken list has none."""
    found = read_list(cell)
    return [cell] * (cell.strip()[:1] not in _CLOSING) if found is None else found


def configure(con: duckdb.DuckDBPyConnection) -> None:
    """Gives a connection the functions `is_list` and `list_pieces` of a cell.

    Args:
        con: the connection.
    """
    con.create_function("is_list", lambda cell: read_list(cell) is not None, ["VARCHAR"], "BOOLEAN")
    con.create_function("list_pieces", _pieces, ["VARCHAR"], "VARCHAR[]")


def separator(con: duckdb.DuckDBPyConnection, rows: str, cell: str) -> tuple[str, str]:
    """Decides how the cells of a column are divided, from all of them.

    Args:
        con: the connection that holds the rows.
        rows: the table or view.
        cell: the SQL name of the column.

    Returns:
        The separator, `[]` for lists; and what to say of it.
    """
    entity = f"regexp_replace({cell}, '&#?[A-Za-z0-9]+;', '', 'g')"  # the semicolon of `&amp;` separates nothing
    filled, bars, semicolons, commas, brackets = con.execute(
        f"""SELECT count(*), count(*) FILTER (contains({cell}, '|')), count(*) FILTER (contains({entity}, ';')),
            count(*) FILTER (contains({cell}, ',')), count(*) FILTER (left(bare({cell}), 1) IN ('[', '{{', '('))
            FROM {rows} WHERE NOT blank({cell})"""
    ).fetchall()[0]
    if 2 * brackets >= filled > 0:
        lists = con.execute(f"SELECT count(*) FROM {rows} WHERE NOT blank({cell}) AND is_list({cell})").fetchall()[0][0]
        if 2 * lists >= filled:
            broken = brackets - lists
            what = f"{lists:,} of {filled:,} cells are lists, read as such"
            return "[]", what + (f"; {broken:,} broken lists are taken as missing" if broken else "")
    for mark, count in zip(SEPARATORS, (bars, semicolons, commas), strict=True):
        if count:
            kept = f"; {commas:,} hold a comma, which separates nothing here" if commas and mark != "," else ""
            return mark, f"cells are split at {mark!r}, which {count:,} of {filled:,} hold{kept}"
    return ",", "no cell holds '|', ';' or ',': each is one value" if filled else ""
