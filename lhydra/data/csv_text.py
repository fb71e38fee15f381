"""A CSV file as bytes and as records, which the strict reader of the standard library reads."""

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from lhydra.errors import DataError, complain

_CHUNK = 1 << 24  # bytes
_ODD_SPACE = re.compile(rb'[,\r\n] +"|" +[,\r\n"]')  # spaces beside quotes: DuckDB would silently drop them
_CSV_ERRORS = {
    "unexpected end of data": "a quote that is never closed",
    "',' expected after '\"'": "text after a closing quote",
    "field larger than field limit (131072)": "a cell above 131,072 characters (an open quote?)",
}


def scan(path: Path) -> tuple[int, bool]:
    """Reads a CSV through as bytes.

    Args:
        path: the file.

    Returns:
        The number of lines, and whether a space stands beside a quote.

    Raises:
        DataError: a NUL byte, bad UTF-8 or broken gzip.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
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
                if not odd and (b'" ' in seam or b' "' in seam):  # the search is slow, and seldom needed
                    odd = _ODD_SPACE.search(seam) is not None
                tail = chunk[-64:]
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        line = lines + error.object[: error.start].count(b"\n") + 1
        found = f"the byte 0x{error.object[error.start]:02x}, which is not UTF-8"
        raise DataError(complain(f"{path}: line {line}", found, "UTF-8 text")) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(complain(path, f"broken gzip data ({error})", "a gzip file")) from None
    return lines + (not tail.endswith(b"\n")), odd


def records(path: Path, width: int, *, strict: bool) -> Iterator[tuple[int, list[str]]]:
    """Reads a CSV record by record, the header first; a blank line is a record of width 1 only.

    Args:
        path: the file.
        width: cells of a record.
        strict: whether broken quoting is refused.

    Yields:
        The first line of each record, and its cells.

    Raises:
        DataError: the CSV is broken.
    """
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=strict)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                found = _CSV_ERRORS.get(str(error), str(error))
                raise DataError(complain(f"{path}: line {line}", found, "well-formed CSV")) from None
            if cells or width == 1:
                yield line, cells or [""]


def open_bytes(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """Opens a file for its bytes, unpacked.

    Args:
        path: the file.

    Returns:
        The open file.
    """
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")
