"""A source that has to be brought to disk first: an archive, or standard input; and its name in refusals."""

import codecs
import contextlib
import glob
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lhydra.errors import DataError, complain

_UNPACKED = 1 << 36  # bytes that an archive may unpack to
_INNER, _STDIN, TOGETHER = "unpacked", "stdin", "together"  # in the folder for what is unpacked


@contextmanager
def as_given(path: Path, work: Path, added_to: Path | None = None) -> Iterator[None]:
    """Lets refusals name a source as it was given, and not where it was unpacked.

    Args:
        path: of the source.
        work: the folder for what is unpacked.
        added_to: the dataset that a source is added to.

    Yields:
        None.

    Raises:
        DataError: the one raised within, with these names.
    """
    try:
        yield
    except DataError as error:
        text = str(error).replace(str(work / TOGETHER), str(added_to))
        for inner in (work / _INNER, *work.glob(f"{_STDIN}*")):
            text = text.replace(str(inner), str(path))
        raise DataError(text) from None


def unpacked(path: Path, work: Path | None) -> Path | list[Path]:
    """Returns what to look at: the path itself, what lies in an archive, or the files that a pattern names.

    Args:
        path: a file, a folder, a pattern, a zip, or `-` for standard input.
        work: a folder for what is unpacked, and for standard input; without one an archive is a file like any.

    Returns:
        The file or folder, or the files of a pattern.

    Raises:
        DataError: no file has the pattern, or the archive cannot be unpacked.
    """
    if str(path) == "-":
        return _spooled(path, work)
    if not path.exists() and glob.has_magic(str(path)):
        files = sorted(map(Path, glob.glob(str(path))))
        if not files:
            raise DataError(complain(path, "no file of that pattern", "at least one"))
        return files
    if not (path.is_file() and path.suffix.lower() == ".zip" and work):
        return path
    folder = work / _INNER
    try:
        with zipfile.ZipFile(path) as archive:
            if not archive.infolist():
                raise DataError(complain(path, "an archive with nothing in it", "files of a source"))
            if sum(entry.file_size for entry in archive.infolist()) > _UNPACKED:
                raise DataError(complain(path, "an archive of more than 64 GB unpacked", "a smaller one"))
            archive.extractall(folder)  # it keeps names inside the folder
    except OSError as error:
        raise DataError(complain(path, str(error.strerror), "a zip archive that can be unpacked")) from None
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:  # RuntimeError: encrypted
        raise DataError(complain(path, str(error), "a zip archive that can be unpacked")) from None
    within = [entry for entry in folder.iterdir() if entry.name != "__MACOSX"]
    return within[0] if len(within) == 1 else folder


def _spooled(path: Path, work: Path | None) -> Path:
    """Returns standard input as a file, with the ending of what it holds."""
    if work is None:
        raise DataError(complain(path, "standard input", "a file or a folder here"))
    target = work / _STDIN
    with target.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    with target.open("rb") as file:
        head = file.read(1 << 16)
    ending, packed = {b"PAR1": ".parquet", b"PK\x03\x04": ".zip"}.get(head[:4], ""), head[:2] == b"\x1f\x8b"
    if packed:
        with contextlib.suppress(zlib.error):
            head = zlib.decompressobj(wbits=31).decompress(head, 1 << 16)
    json = head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"[")
    ending = ending or f"{'.json' if json else '.csv'}{'.gz' * packed}"
    named = target.rename(target.with_suffix(ending))
    found = unpacked(named, work) if ending == ".zip" else named
    assert isinstance(found, Path)
    return found
