"""Checks of what callers hand in: only what the wire cannot express is refused; the server does the rest."""

import operator
from collections.abc import Collection, Iterable
from typing import SupportsFloat, SupportsIndex, TypeVar

from lhydra_client.errors import InvalidRequest

T = TypeVar("T")
INT32 = (-(2**31), 2**31 - 1)
UINT32 = (0, 2**32 - 1)
INT64 = (-(2**63), 2**63 - 1)
UINT64 = (0, 2**64 - 1)


def given(value: T | None, otherwise: T) -> T:
    """Returns an optional argument, where None means what leaving it out means.

    Args:
        value: what the caller gave.
        otherwise: what leaving it out means.

    Returns:
        The one or the other.
    """
    return otherwise if value is None else value


def text(name: str, value: object) -> str:
    """Checks a text.

    Args:
        name: of the field, for the error.
        value: what the caller gave.

    Returns:
        The text.

    Raises:
        InvalidRequest: the wire cannot express it; names the field.
    """
    if not isinstance(value, str):
        raise InvalidRequest(f"{name}: found {shown(value)}, expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{name}: found {shown(value)}, expected text that UTF-8 can hold") from None
    return value


def whole(name: str, value: object, low: int, high: int) -> int:
    """Checks a whole number.

    Args:
        name: of the field, for the error.
        value: what the caller gave.
        low: the least.
        high: the largest.

    Returns:
        The number.

    Raises:
        InvalidRequest: the wire cannot express it; names the field.
    """
    number = operator.index(value) if isinstance(value, SupportsIndex) else None
    if number is None or not low <= number <= high:
        raise InvalidRequest(f"{name}: found {shown(value)}, expected a whole number from {low} to {high}")
    return number


def number(name: str, value: object) -> float:
    """Checks a number.

    Args:
        name: of the field, for the error.
        value: what the caller gave.

    Returns:
        The number as a float.

    Raises:
        InvalidRequest: the wire cannot express it; names the field.
    """
    try:
        return float(value if isinstance(value, SupportsFloat) else "")
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{name}: found {shown(value)}, expected a number") from None


def listed(name: str, values: Iterable[T]) -> Iterable[T]:
    """Checks a list.

    Args:
        name: of the field, for the error.
        values: what the caller gave.

    Returns:
        The values.

    Raises:
        InvalidRequest: the wire cannot express it; names the field.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InvalidRequest(f"{name}: found {shown(values)}, expected a list")
    return values


def kept(name: str, values: Collection[T]) -> Iterable[T]:
    """Checks a list that must last for several requests.

    Args:
        name: of the field, for the error.
        values: what the caller gave.

    Returns:
        The values.

    Raises:
        InvalidRequest: the wire cannot express it; names the field.
    """
    if not isinstance(values, Collection):  # an iterator: nothing would be left of it for the second request
        raise InvalidRequest(f"{name}: found {shown(values)}, expected a list")
    return listed(name, values)


def kept_texts(name: str, values: Collection[str]) -> list[str]:
    """Checks a list of texts that must last for several requests.

    Args:
        name: of the field, for the error.
        values: what the caller gave.

    Returns:
        The texts.
    """
    return texts(name, kept(name, values))


def texts(name: str, values: Iterable[str]) -> list[str]:
    """Checks a list of texts.

    Args:
        name: of the field, for the error.
        values: what the caller gave.

    Returns:
        The texts.
    """
    return [text(f"{name}[{position}]", value) for position, value in enumerate(listed(name, values))]


def shown(value: object) -> str:
    """Returns a value as an error shows it.

    Args:
        value: what the caller gave.

    Returns:
        Its repr, of bounded length.
    """
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
