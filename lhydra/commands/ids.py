"""Ids from a file: for commands that take ids as words, and for ids that no word of a command line can say."""

from pathlib import Path

from lhydra.errors import ConfigError, complain


def read_ids(path: Path, flag: str) -> list[str]:
    """Returns the ids in a file: one a line, exactly as written, in their order, each once.

    Lines end at line feeds alone, maybe after a carriage return: an id may hold any other separator of Unicode. Empty
    lines are no ids; a byte-order mark at the start is none of the first one.

    Args:
        path: the file, UTF-8.
        flag: that names it, for errors.

    Returns:
        The ids.

    Raises:
        ConfigError: it is no UTF-8 text, or there is no id in it.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError(complain(f"{flag} {path}", f"no UTF-8 in line {line}", "an id per line, in UTF-8")) from None
    ids = list(dict.fromkeys(line.removesuffix("\r") for line in lines if line not in ("", "\r")))
    if not ids:
        raise ConfigError(complain(f"{flag} {path}", "no ids", "an id per line"))
    return ids
