"""What a section of a page is made of: plain data, drawn by the macro of the same name in `blocks.html`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Cell = str | tuple[str, str]  # a text, or a text and the note below it


class Block:
    """A piece of a section."""

    @property
    def macro(self) -> str:
        """The macro that draws it."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Read(Block):
    """How to read what follows."""

    text: str


@dataclass(frozen=True)
class Heading(Block):
    """A heading inside a section."""

    text: str


@dataclass(frozen=True)
class Tile:
    """One number, large; `main` for the one that counts."""

    label: str
    value: str
    notes: Sequence[str] = ()
    main: bool = False


@dataclass(frozen=True)
class Tiles(Block):
    """Tiles in rows of `columns`; size: "" or `small`."""

    tiles: Sequence[Tile]
    columns: int
    size: str = ""


@dataclass(frozen=True)
class Chart(Block):
    """What page.js draws, and the text for those who do not see it."""

    spec: Mapping[str, Any]
    alternative: str


@dataclass(frozen=True)
class Table(Block):
    """A table; columns from `numbers` on stand to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: int = 1
    wide: bool = False


@dataclass(frozen=True)
class Facts(Block):
    """A table of names and what they stand for."""

    rows: Mapping[str, str]


@dataclass(frozen=True)
class Messages(Block):
    """What is to know, one below the other; the lines of a message behind its first are text to copy."""

    items: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Checks(Block):
    """Leak checks: (check, verdict, found)."""

    rows: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Confusion(Block):
    """Confusion matrix: by what was (not played, played), the cells (count, share, is right) by what was said."""

    rows: Sequence[tuple[str, Sequence[tuple[str, str, bool]]]]


@dataclass(frozen=True)
class User(Block):
    """A user and three columns of titles; lists: (title, whether it is in order, titles)."""

    user_id: str
    score: str
    lists: Sequence[tuple[str, bool, Sequence[str]]]


@dataclass(frozen=True)
class Panel(Block):
    """A frame around a block; how: a line on how to read it."""

    title: str
    body: Block
    how: str = ""


@dataclass(frozen=True)
class Grid(Block):
    """Panels; shape: `grid`, in rows of two; `grid three`, of three; `flow`, down one column and then the other."""

    panels: Sequence[Panel]
    shape: str = "grid"


@dataclass(frozen=True)
class Folded(Block):
    """What is shown on a click on `title`."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Notice:
    """What must not be missed; verdict: `leak`, `warning`, or `ok` for a quiet line of one item."""

    verdict: str
    title: str
    items: Sequence[str]


@dataclass(frozen=True)
class Top:
    """The top of the page: what was evaluated, the verdict, further lines, the figures that count and notices."""

    subject: str
    verdict: str
    lines: Sequence[str] = ()
    figures: Sequence[Block] = ()
    notices: Sequence[Notice] = field(default_factory=tuple)
