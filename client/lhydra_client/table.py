"""Readable tables of text on any terminal: columns aligned by cells, not by characters; no control characters."""

import shutil
import unicodedata
from collections.abc import Sequence

_UNBOUNDED = 1 << 16  # cells of a line that no terminal shows


def score(value: float) -> str:
    """Returns a score as people read it: four places, and below a thousandth two digits, so that none is shown as 0.

    Args:
        value: the score.

    Returns:
        The number.
    """
    return f"{value:.1e}" if 0 < abs(value) < 0.001 else f"{value + 0.0:.4f}"  # -0.0 is 0 as well


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    widest: int = 40,
    sentences: int | None = None,
) -> str:
    """Returns the rows under the header, two spaces apart.

    Args:
        header: a title per column.
        rows: a text per column.
        right: positions of the columns that are aligned on the right.
        widest: terminal cells of the widest column; the last column, which people copy, is never cut.
        sentences: position of a column that may be as wide as the terminal has room; in a pipe it is whole.

    Returns:
        The lines, without a line end after the last.
    """
    lines = [[clean(cell) for cell in line] for line in (header, *rows)]
    whole = [max(map(width, column)) for column in zip(*lines, strict=True)]
    widths = [*(min(one, widest) for one in whole[:-1]), whole[-1]]
    if sentences is not None:
        taken = sum(widths) - widths[sentences] + 2 * (len(widths) - 1)
        room = shutil.get_terminal_size((_UNBOUNDED, 0)).columns - taken
        widths[sentences] = min(whole[sentences], max(room, widest))
    lines = [[clip(cell, most) for cell, most in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(
        "  ".join(
            " " * (widths[i] - width(cell)) + cell if i in right else cell + " " * (widths[i] - width(cell))
            for i, cell in enumerate(line)
        ).rstrip()
        for line in lines
    )


def clean(text: str) -> str:
    """Removes what could move the cursor: control, format and direction characters.

    Args:
        text: of any source.

    Returns:
        The text on one line, a space for each whitespace character.
    """
    spaced = "".join(" " if c.isspace() else c for c in text)
    return "".join(c for c in spaced if unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def width(text: str) -> int:
    """Returns how many terminal cells a text takes.

    Args:
        text: without control characters.

    Returns:
        Cells: wide East Asian characters and emoji count two, accents none.
    """
    return sum(_cells(c) for c in text)


def clip(text: str, most: int) -> str:
    """Cuts a text to a width.

    Args:
        text: without control characters.
        most: terminal cells.

    Returns:
        The text, its end replaced by an ellipsis where it is longer.
    """
    if width(text) <= most:
        return text
    kept, used = [], 1  # the ellipsis
    for c in text:
        used += _cells(c)
        if used > most:
            break
        kept.append(c)
    return "".join(kept) + "…"


def _cells(c: str) -> int:
    if unicodedata.category(c) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1
