"""Numbers and texts of a page as people write them."""

from collections.abc import Mapping
from typing import Any, TypeGuard, TypeVar, cast

T = TypeVar("T")
DASH = "–"


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value of the document is a number.

    Args:
        value: any JSON value.

    Returns:
        False for true and false too.
    """
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value: object, digits: int = 3, signed: bool = False) -> str:
    """Writes a number.

    Args:
        value: a number, or anything else.
        digits: after the point.
        signed: with + above 0.

    Returns:
        The number with a true minus; a dash for anything else.
    """
    return f"{value:{'+' * signed}.{digits}f}".replace("-", "−") if is_number(value) else DASH


def share(value: object) -> str:
    """Writes a share.

    Args:
        value: from 0 to 1, or anything else.

    Returns:
        Per cent; a dash for anything else.
    """
    return f"{value:.1%}" if is_number(value) else DASH


def count(value: object) -> str:
    """Writes a count.

    Args:
        value: a number, None or a text.

    Returns:
        The number with commas; a dash for None; a text as it is.
    """
    return f"{value:,}" if is_number(value) else DASH if value is None else str(value)


def interval(value: Mapping[str, Any], signed: bool = False) -> str:
    """Writes an interval.

    Args:
        value: has `low` and `high`, or not.
        signed: with + above 0.

    Returns:
        `low–high`, with `to` where a sign may stand between; "" where it is unknown or of no width.
    """
    low, high = value.get("low"), value.get("high")
    if low is None or high is None or low == high:
        return ""
    between = " to " if signed or low < 0 else DASH
    return f"{number(low, signed=signed)}{between}{number(high, signed=signed)}"


def plain(value: object) -> str:
    """Writes any value of the protocol.

    Args:
        value: any JSON value.

    Returns:
        Lists and objects with commas, a dash for None.
    """
    if value is None:
        return DASH
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(one)}" for key, one in value.items())
    return ", ".join(map(plain, value)) if isinstance(value, list | tuple) else str(value)


def printable(value: object) -> str:
    """Takes out what could disturb a page or a line.

    Args:
        value: any value.

    Returns:
        Its text; a control character is a space.
    """
    return "".join(c if c.isprintable() else " " for c in str(value))


def cut(value: object, width: int) -> str:
    """Shortens a label.

    Args:
        value: any value.
        width: characters at most.

    Returns:
        Its printable text, with an ellipsis where it was longer.
    """
    text = printable(value)
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"


def defined(value: T) -> T:
    """Takes out what is null: undefined and absent read the same.

    Args:
        value: JSON.

    Returns:
        The same without nulls, at any depth.
    """
    if isinstance(value, Mapping):
        return cast(T, {key: defined(one) for key, one in value.items() if one is not None})
    return cast(T, [defined(one) for one in value if one is not None]) if isinstance(value, list | tuple) else value


def part(found: T | None) -> T:
    """A part of a document for reading with `get`.

    Args:
        found: the part, None where the document lacks it.

    Returns:
        The part, or an empty one.
    """
    return found if found is not None else cast(T, {})
