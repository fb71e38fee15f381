"""Formats of other programs, a module for each family; docs/formats.md says how to add one."""

from lhydra.data.formats import (
    gorse,
    hetrec,
    lastfm,
    listenbrainz,
    maloja,
    movielens,
    playlists,
    recbole,
    spotify,
    triplets,
    yambda,
)
from lhydra.data.formats.format import Export, Format, Tables
from lhydra.errors import DataError, complain

FORMATS: tuple[Format, ...] = (
    *spotify.FORMATS,
    *listenbrainz.FORMATS,
    *maloja.FORMATS,
    *playlists.FORMATS,
    *recbole.FORMATS,
    *movielens.FORMATS,
    *hetrec.FORMATS,
    *gorse.FORMATS,
    *yambda.FORMATS,
    *lastfm.FORMATS,
    *triplets.FORMATS,
)


def open_export(export: Export, name: str) -> tuple[Format | None, Tables | None]:
    """Opens an export of another program.

    Args:
        export: its files.
        name: of the format; auto for whichever knows the files.

    Returns:
        The format and the tables; None twice where auto knows none.

    Raises:
        DataError: the files are not of the format named.
    """
    for known in FORMATS:
        if name in ("auto", known.name) and (tables := known.open(export)):
            return known, tables
    if name == "auto":
        return None, None
    format_ = next(known for known in FORMATS if known.name == name)
    found = ", ".join(sample.path.name for sample in export.samples[:5]) or "no file with anything in it"
    raise DataError(complain(export.path, found, f"{format_.title}: {format_.expects}"))


def listed() -> str:
    """Returns the names of the formats, for messages.

    Returns:
        The names, separated by commas.
    """
    return ", ".join(known.name for known in FORMATS)
