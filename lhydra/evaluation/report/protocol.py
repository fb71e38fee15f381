"""Sections on what was measured: leak checks of the data, and the protocol."""

from lhydra.evaluation.document import Document
from lhydra.page.blocks import Block, Checks, Facts, Grid, Panel, Read
from lhydra.page.words import count, part, plain


def leaks(document: Document) -> list[Block]:
    """What each leak check found.

    Args:
        document: without nulls; any part may be missing.

    Returns:
        The section, [] without its part of the document.
    """
    rows = [
        (str(leak.get("check")), str(leak.get("verdict")), str(leak.get("found"))) for leak in document.get("leaks", ())
    ]
    how = "Does training get to see what is asked for? A warning is worth a look, a leak makes every number flatter."
    return [Read(how), Panel("", Checks(rows))] if rows else []


def protocol(document: Document) -> list[Block]:
    """What was measured, how, and on how many.

    Args:
        document: without nulls; any part may be missing.

    Returns:
        The section, [] without its parts of the document.
    """
    names = {name.replace("_", " "): plain(value) for name, value in part(document.get("protocol")).items()}
    counts = {name.replace("_", " "): count(value) for name, value in part(document.get("counts")).items()}
    panels = [Panel(title, Facts(rows)) for title, rows in (("Protocol", names), ("Counts", counts)) if rows]
    return [Read("Two evaluations can be compared when their hash is the same."), Grid(panels)] if panels else []
