"""Files that a command writes its result to: checked before any work, and nothing but earlier results is replaced."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

from lhydra.errors import ConfigError, complain


def check_output(flag: str, path: Path | None, is_own: Callable[[bytes], bool]) -> None:
    """Checks that a result can be written to a file: a free path, an empty file, or an earlier result.

    Args:
        flag: that names the file, for the error.
        path: the file; None where none is asked for.
        is_own: whether the content of a file is such a result.

    Raises:
        ConfigError: no folder to write in, or a file that holds something else.
    """
    if path is None:
        return
    if not path.parent.exists():
        make = f"mkdir -p {shlex.quote(str(path.parent))}"
        raise ConfigError(complain(flag, f"no folder {path.parent}", f"one that exists: {make}"))
    if not path.parent.is_dir() or (path.exists() and not path.is_file()):  # a pipe or device would be replaced
        raise ConfigError(complain(flag, str(path), "a file in a folder that exists"))
    if path.is_file() and (content := path.read_bytes()) and not is_own(content):
        expected = "a free path, or an earlier result of this command to replace"
        raise ConfigError(complain(flag, f"{path}, which holds something else", expected))


def is_json_with(*keys: str) -> Callable[[bytes], bool]:
    """Makes the test of JSON results.

    Args:
        keys: that every such result has at its top.

    Returns:
        What `check_output` takes.
    """

    def is_own(content: bytes) -> bool:
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            return False
        return isinstance(document, dict) and set(keys) <= document.keys()

    return is_own


def is_page(kind: str) -> Callable[[bytes], bool]:
    """Makes the test of pages.

    Args:
        kind: what it is a page of: `evaluation`, `dataset`.

    Returns:
        What `check_output` takes: whether a file begins as such a page does.
    """

    def is_own(content: bytes) -> bool:
        head, _, title = content[:4000].partition(b"<title>")
        return head.lstrip().startswith(b"<!DOCTYPE html>") and f"Lhydra {kind}</title>".encode() in title

    return is_own
