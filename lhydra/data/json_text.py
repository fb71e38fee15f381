"""A file of JSON as bytes: whether it goes on to its end, and a copy of it without a byte order mark."""

import gzip
import re
import shutil
import zlib
from codecs import BOM_UTF8
from pathlib import Path

from lhydra.errors import DataError, complain

AGAIN = "JSON that can be read to its end; export it again, or fetch the file anew"
_CHUNK = 1 << 22  # bytes
_BLANK = 1 << 16  # bytes of white space that may follow the last record
_OBJECT = 1 << 24  # bytes of a record that DuckDB takes unless it is told otherwise
_CLOSING = {b"[": b"]", b"{": b"}"}


def checked(path: Path, folder: Path) -> tuple[Path, int]:
    """Checks that a file of JSON is not cut short, which DuckDB overlooks after a comma.

    Args:
        path: the file, packed where its name ends in .gz.
        folder: where a copy lies if DuckDB cannot read the file as it is.

    Returns:
        The file to read, and how many bytes a record may have that is the whole of it.

    Raises:
        DataError: it is empty, cut short, or broken gzip.
    """
    given, packed = path, path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            start = file.read(_CHUNK)
            size, tail = len(start), start
            if not packed:  # what lies between cannot tell
                size = path.stat().st_size
                file.seek(max(size - _CHUNK, 0))
            while chunk := file.read(_CHUNK):
                size, tail = size + packed * len(chunk), (tail[-_BLANK:] + chunk)
        marked = start.startswith(BOM_UTF8)
        if marked:
            target = folder / f"unmarked-{path.name.lower().removesuffix('.gz')}"
            with gzip.open(path) if packed else path.open("rb") as file, target.open("wb") as copy:
                file.read(len(BOM_UTF8))
                shutil.copyfileobj(file, copy)
            path = target
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(complain(path, f"broken gzip: {error}", AGAIN)) from None
    first, last = start.removeprefix(BOM_UTF8).lstrip()[:1], tail.rstrip()[-1:]
    if not first:
        raise DataError(complain(given, "nothing in it", AGAIN))
    if last != _CLOSING.get(first, b""):
        found = (
            f"an end after {last.decode(errors='replace')!r}, which does not close {first.decode(errors='replace')!r}"
        )
        raise DataError(complain(given, found, AGAIN))
    return path, max(size + 1, _OBJECT)


def reason(error: Exception) -> str:
    """Returns why DuckDB could not read a file of JSON, without anything that the file says.

    Args:
        error: of DuckDB.

    Returns:
        The reason, and near which record.
    """
    found = re.search(r"in (?:record/value|line) (\d+): (.*)", str(error).partition("\n")[0])
    if not found:
        return "no JSON"
    what = "an object with a key twice" if found[2].startswith("Object ") else found[2].lower()
    what = re.sub(r"expected (\w+), but got (\w+)", r"\2 instead of \1", what)
    what = re.split(r"[\"'{\[]|: ", what)[0].strip(" .")  # what follows is quoted from the file
    return f"{what} (near record {found[1]})"
