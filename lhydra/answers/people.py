"""What the answer log holds of one person, and away with it, while servers go on logging.

Whoever deletes leaves a note first: servers drop what they still hold of that person from before it. Then every file
is gone through. So nothing from before is left when `delete` returns, and nothing of it comes back.
"""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lhydra.answers.entry import document_of
from lhydra.answers.folder import PACKED, PLAIN, Say, files, lines, locked, pack_file, sweep
from lhydra.errors import DataError
from lhydra.files import write_text
from lhydra.json_text import parse_json

_NOTES = "deleted.json"
_KEPT_S = 3600  # longer than any request and any queue lives
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # the clock of notes counts from it
Note = tuple[str, str, str, int]  # boot, salt, hash of the user id, nanoseconds of the monotonic clock


def of_user(folder: Path, user_id: str, say: Say) -> Iterator[dict[str, Any]]:
    """Yields the entries of one person, as they lie in the log.

    Args:
        folder: of the log.
        user_id: whose.
        say: is told of files that end within an entry or are damaged.

    Yields:
        Each as JSON, oldest file first.
    """
    for path in files(folder):
        with suppress(FileNotFoundError):
            for number, line in enumerate(lines(path, say), 1):
                if _needle(user_id) in line:
                    entry = document_of(line, f"{path} line {number}")
                    if entry["user_id"] == user_id:
                        yield entry


def delete(folder: Path, user_id: str) -> int:
    """Takes the entries of one person out of the log, also out of what servers still hold.

    Args:
        folder: of the log.
        user_id: whose.

    Returns:
        How many entries there were in files.

    Raises:
        OSError: a file cannot be written; what was not done yet is there, and may be done again.
    """
    if not folder.is_dir():
        return 0
    removed = 0

    def keep(line: bytes) -> bool:
        nonlocal removed
        of_them = _needle(user_id) in line and _is_of(line, user_id)
        removed += of_them
        return not of_them

    with locked(folder):
        _note(folder, user_id)
        sweep(folder)
        for path in sorted(folder.glob(f"*{PLAIN}")):
            pack_file(path, keep)
    for path in sorted(folder.glob(f"*{PACKED}")):
        with locked(folder), suppress(FileNotFoundError):
            damaged: list[str] = []  # what stands after the damage may be theirs: it goes, nobody can read it
            if any(_needle(user_id) in line for line in lines(path, damaged.append)) or damaged:
                pack_file(path, keep)
    return removed


class Deletions:
    """Tells whether an entry is of a person who was deleted since; the notes are read again when they change.

    Args:
        folder: of the log.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._boot = folder / _NOTES, _boot()
        self._seen: tuple[int, int] | None = None
        self._notes: Sequence[Note] = ()

    def look(self) -> None:
        """Reads the notes, where they have changed; the caller holds the folder's lock."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self._seen, self._notes = None, ()
            return
        if (stamp := (found.st_mtime_ns, found.st_ino)) != self._seen:
            self._notes = [note for note in _notes(self._path) if note[0] == self._boot]
            self._seen = stamp

    def covers(self, user_id: str, seen_ns: int) -> bool:
        """Says whether an entry must not be written.

        Args:
            user_id: whose it is.
            seen_ns: when their state was looked up, on the clock of `time.monotonic_ns`.

        Returns:
            Whether the person was deleted after that.
        """
        return any(seen_ns <= until and _hash(salt, user_id) == digest for _, salt, digest, until in self._notes)


def _note(folder: Path, user_id: str) -> None:
    """Adds a note, and leaves out those that nobody needs any more."""
    path, now_ns, salt, boot = folder / _NOTES, time.monotonic_ns(), secrets.token_hex(16), _boot()
    kept = [note for note in _notes(path) if note[0] == boot and note[3] > now_ns - _KEPT_S * 10**9]
    write_text(path, json.dumps([*kept, (boot, salt, _hash(salt, user_id), now_ns)]))
    os.chmod(path, 0o600)


def _notes(path: Path) -> list[Note]:
    try:
        found = parse_json(path.read_bytes())
        return [(str(boot), str(salt), str(digest), int(until)) for boot, salt, digest, until in found]
    except (OSError, ValueError, TypeError):
        return []


def _hash(salt: str, user_id: str) -> str:
    return hashlib.blake2b(user_id.encode(), key=bytes.fromhex(salt), digest_size=32).hexdigest()


def _boot() -> str:
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _needle(user_id: str) -> bytes:
    """What stands in every line of the person, and in few others: most lines need not be parsed."""
    return b'"user_id": ' + json.dumps(user_id).encode("ascii") + b","


def _is_of(line: bytes, user_id: str) -> bool:
    try:
        return bool(document_of(line, "")["user_id"] == user_id)
    except DataError:  # damaged, and it names them
        return True
