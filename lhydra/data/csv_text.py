"""A file of separated text as bytes and as records, which the strict reader of the standard library reads."""

import codecs
import csv
import glob
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lhydra.errors import DataError, complain

_CHUNK = 1 << 24  # bytes
_CSV_ERRORS = {
    "unexpected end of data": "a quote that is never closed",
    "',' expected after '\"'": "text after a closing quote",
    "field larger than field limit (131072)": "a cell above 131,072 characters (an open quote?)",
}


@dataclass(frozen=True)
class Dialect:
    """How separated text is written."""

    sep: str = ","
    header: bool = True  # the first line names the columns
    quote: bool = True  # double quotes enclose cells; without it they are text like any other
    ragged: bool = False  # cells beyond the header are dropped, missing ones are empty
    encoding: str = "utf-8"

    @property
    def plain(self) -> bool:
        """Whether DuckDB reads it: anything else goes through the reader below."""
        return not self.ragged and self.encoding == "utf-8" and len(self.sep) <= 4


CSV = Dialect()
SEPARATORS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}  # by their names


def scan(path: Path, dialect: Dialect = CSV) -> tuple[int, bool]:
    """Reads separated text through as bytes.

    Args:
        path: the file.
        dialect: how it is written.

    Returns:
        The number of lines, and whether a space stands beside a quote.

    Raises:
        DataError: a NUL byte, bad UTF-8 or broken gzip.
    """
    decoder = codecs.getincrementaldecoder(dialect.encoding)()
    sep = re.escape(dialect.sep.encode())
    # spaces beside quotes: DuckDB would silently drop them
    odd_space = re.compile(rb'(?:%b|[\r\n]) +"|" +(?:%b|[\r\n"])' % (sep, sep))
    lines, odd, tail = 0, False, b""
    try:
        with open_bytes(path) as file:
            while chunk := file.read(_CHUNK):
                nul = chunk.find(0)
                decoder.decode(chunk[:nul] if nul >= 0 else chunk)  # whichever is wrong first is named
                if nul >= 0:
                    line = lines + chunk.count(b"\n", 0, nul) + 1
                    raise DataError(complain(f"{path}: line {line}", "a NUL byte", "UTF-8 text"))
                lines += chunk.count(b"\n")
                seam = tail + chunk
                if (
                    dialect.quote and not odd and (b'" ' in seam or b' "' in seam)
                ):  # the search is slow, and seldom needed
                    odd = odd_space.search(seam) is not None
                tail = chunk[-64:]
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        line = lines + error.object[: error.start].count(b"\n") + 1
        found = f"the byte 0x{error.object[error.start]:02x}, which is not UTF-8"
        raise DataError(complain(f"{path}: line {line}", found, "UTF-8 text")) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(complain(path, f"broken gzip data ({error})", "a gzip file")) from None
    return lines + (not tail.endswith(b"\n")), odd


def records(path: Path, width: int, dialect: Dialect = CSV, *, strict: bool) -> Iterator[tuple[int, list[str]]]:
    """Reads separated text record by record, a header too; a blank line is a record of width 1 only.

    Args:
        path: the file.
        width: cells of a record.
        dialect: how the file is written.
        strict: whether broken quoting is refused.

    Yields:
        The first line of each record, and its cells.

    Raises:
        DataError: the CSV is broken.
    """
    encoding = "utf-8-sig" if dialect.encoding == "utf-8" else dialect.encoding
    if not dialect.quote or len(dialect.sep) > 1:
        yield from _unquoted(path, width, dialect, encoding)
        return
    with io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="") as file:
        reader = csv.reader(file, strict=strict, delimiter=dialect.sep)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                found = _CSV_ERRORS.get(str(error).replace(f"'{dialect.sep}'", "','"), str(error))
                raise DataError(complain(f"{path}: line {line}", found, "well-formed CSV")) from None
            if cells or width == 1:
                yield line, cells or [""]


def _unquoted(path: Path, width: int, dialect: Dialect, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Reads text in which every line is a record and quotes are text."""
    with io.TextIOWrapper(open_bytes(path), encoding=encoding) as file:  # every kind of line end
        for number, line in enumerate(file, start=1):
            if (text := line.removesuffix("\n")) or width == 1:
                yield number, text.split(dialect.sep)


def open_bytes(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """Opens a file for its bytes, unpacked.

    Args:
        path: the file.

    Returns:
        The open file.
    """
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def literal(path: Path) -> str:
    """Returns a path as DuckDB takes it for this file alone: it reads `*`, `?` and `[` in names as patterns.

    Args:
        path: the file.

    Returns:
        The path, escaped.
    """
    return glob.escape(str(path.absolute()))
