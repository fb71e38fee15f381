"""Readable tables of text on any terminal: columns aligned by cells, not by characters; no control characters."""

import unicodedata
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), widest: int = 40) -> str:
    """Returns the rows under the header, two spaces apart.

    right: positions of the columns that are aligned on the right. widest: terminal cells of the widest column;
    the last column, which people copy, is never cut.
    """
    lines = [[*(clip(clean(cell), widest) for cell in line[:-1]), clean(line[-1])] for line in (header, *rows)]
    widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            " " * (widths[i] - width(cell)) + cell if i in right else cell + " " * (widths[i] - width(cell))
            for i, cell in enumerate(line)
        ).rstrip()
        for line in lines
    )


def clean(text: str) -> str:
    """Returns `text` on one line and without control, format and direction characters: they could move the cursor."""
    spaced = "".join(" " if c.isspace() else c for c in text)
    return "".join(c for c in spaced if unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def width(text: str) -> int:
    """Returns how many terminal cells `text` takes: wide East Asian characters and emoji two, accents none."""
    return sum(_cells(c) for c in text)


def clip(text: str, most: int) -> str:
    """Returns `text` in at most `most` cells, the end replaced by an ellipsis where it is longer."""
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
