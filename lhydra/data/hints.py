"""What to do about a table without a column, or a folder that is no source: the separator, names or place meant."""

import glob
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lhydra.data.csv_text import SEPARATORS
from lhydra.data.schema import TRACK_COLUMNS, near
from lhydra.data.settings import ReadSettings
from lhydra.data.table import Table
from lhydra.errors import DataError, complain


def lacks(table: Table, name: str, required: Sequence[str], read: ReadSettings | None) -> DataError:
    """Returns the refusal of a table without the column `name`, with the flags that would help.

    Args:
        table: as far as its header.
        name: of the column that it lacks.
        required: columns that it must have.
        read: what is said of its form; None where the command has no flags for it.

    Returns:
        The error to raise.
    """
    if read is None:
        expected = f"a column {name}; rename the one that is meant, in a file separated by commas, JSON or Parquet"
        return DataError(complain(table.path, f"the columns {', '.join(table.names)}", expected))
    hint = ""
    alone = len(table.names) == 1 and not table.types
    if alone and read.sep is None:  # another separator?
        word = separator(table.names[0])
        hint = f"; if the separator is a {word}, give --sep {word}" if word else ""
    if not hint and not read.header:
        hint = f"; name the columns by their numbers: --columns user=1,track=2 (there are {len(table.names)})"
    meant = {known: [other for other in table.names if near(other) == known] for known in required}
    missing = [known for known in required if known not in table.names]
    if not hint and meant[name]:
        found = {known: meant[known][0] for known in missing if meant[known]}
        times = [other for other in table.names if near(other) == "timestamp"]
        if times and "timestamp" not in table.names:  # else they would be plays without times, which is another split
            found["timestamp"] = times[0]
        pairs = ",".join(f"{known.removesuffix('_id')}={other}" for known, other in found.items())
        hint = f"; if {' or '.join(meant[name])} is meant, rename it, or give --columns {pairs}"
    if not hint and missing == ["user_id"]:
        hint = f"; it names no listeners, only tracks: {_beside_plays(table)}"
    if not hint:
        pairs = ",".join(f"{known.removesuffix('_id')}={(meant[known] or ['COLUMN'])[0]}" for known in missing)
        hint = f"; say which it is: --columns {pairs}"
    return DataError(complain(table.path, f"the columns {', '.join(table.names)}", f"a column {name}{hint}"))


def within(flat: Sequence[Path], files: Sequence[Path], endings: Sequence[str]) -> str:
    """Returns what to give in place of a folder that is no source: a file of it, or all of one kind.

    Args:
        flat: its files that are sources alone.
        files: all of its files.
        endings: of the names of tables.

    Returns:
        The hint, "" where there is none.
    """
    if len(flat) == 1:
        return f"; {flat[0].name} alone is a source: give {flat[0]}"
    alike = Counter(one.name[-len(end) :] for one in files for end in endings if one.name.lower().endswith(end))
    for ending, n in alike.most_common(1):
        if n > 1:
            pattern = f"{glob.escape(str(files[0].parent))}/*{ending}"
            return f"; if all {ending} files are one table, give {shlex.quote(pattern)}"
    return ""


def separator(line: str) -> str:
    """Returns the separator that a line of text seems to have.

    Args:
        line: the first one of a file.

    Returns:
        Its name for `--sep`, '' where none is in it.
    """
    seen = {word: line.count(sep) for word, sep in SEPARATORS.items() if word != "\\t"}
    word = max(seen, key=lambda word: seen[word])
    return word if seen[word] else ""


def _beside_plays(table: Table) -> str:
    """Returns how a table of tracks is used."""
    known = {near(name): name for name in reversed(table.names) if near(name) in TRACK_COLUMNS}
    pairs = ",".join(f"{of}={name}" for of, name in known.items() if of and of not in table.names and "," not in name)
    return "save it as tracks.* in a folder with plays.*, and prepare the folder" + (
        f" with --columns {pairs}" if pairs else ""
    )
