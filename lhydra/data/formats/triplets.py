"""Triplets of user, song and count, tab-separated and without a header: the Taste Profile of the Million Songs."""

from lhydra.data.formats.format import BARE_TABS, Export, Format, Sample, Tables, text_table


def _is_triplets(sample: Sample) -> bool:
    """Whether every line seen has three cells of which the last is a whole number, and ids before it."""
    rows = [line.split("\t") for line in sample.lines(100)]
    return bool(rows) and all(
        len(row) == 3 and row[0].strip() and row[1].strip() and row[2].isascii() and row[2].isdigit() for row in rows
    )


def _open(export: Export) -> Tables | None:
    """All files of triplets as one table."""
    files = [sample for sample in export.samples if _is_triplets(sample)]
    if not files:
        return None
    columns = {"user_id": "listener", "track_id": "song", "playcount": "plays"}
    path = files[0].path if len(files) == 1 else export.path
    names = ("listener", "song", "plays")
    table = text_table(path, [(sample, "") for sample in files], BARE_TABS, columns, names=names)
    return Tables(table, notes=("the columns are taken for user, song and count; there are no times",))


FORMATS = (
    Format(
        "triplets",
        "triplets of the Taste Profile",
        "tab-separated user, song and count without a header, the count a whole number in every line",
        _open,
    ),
)
