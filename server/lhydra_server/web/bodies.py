"""Bodies of calls as messages: protobuf's JSON, in which each field stands once, whichever of its two names it has."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

AnyMessage = TypeVar("AnyMessage", bound=Message)


class GivenTwice(ValueError):
    """A field stands twice in a body, where one of the two would be lost.

    Args:
        place: of the field.
    """

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place


def message_of(body: bytes, kind: type[AnyMessage]) -> AnyMessage:
    """Parses a body.

    Args:
        body: JSON in UTF-8; nothing is an object without fields.
        kind: of the message.

    Returns:
        The message.

    Raises:
        GivenTwice: a field stands twice in an object, under one name or as `user_id` and `userId`.
        ValueError: it is no JSON object.
        ParseError: it is not the JSON of the message.
        RecursionError: it is nested too deep.
    """
    found = json.loads(body.decode() or "{}", object_pairs_hook=_once)
    if not isinstance(found, dict):
        raise ValueError("no object")
    _check_names(found, kind.DESCRIPTOR, "")
    return json_format.ParseDict(found, kind())


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise GivenTwice(name)
        found[name] = value
    return found


def _check_names(found: dict[str, Any], kind: Any, place: str) -> None:
    """Refuses a field under both of its names; what is of another kind than its field is left to the parser."""
    named: dict[int, str] = {}
    for name, value in found.items():
        field = kind.fields_by_name.get(name) or kind.fields_by_camelcase_name.get(name)
        if field is None:
            continue
        if field.number in named:
            raise GivenTwice(f"{place}{field.name}")
        named[field.number] = name
        inner: Any = field.message_type
        values: Iterable[Any] = value if isinstance(value, list) else [value]
        if inner is not None and inner.GetOptions().map_entry:  # its names are the caller's own
            inner, values = (
                inner.fields_by_name["value"].message_type,
                value.values() if isinstance(value, dict) else (),
            )
        for one in values:
            if inner is not None and isinstance(one, dict):
                _check_names(one, inner, f"{place}{field.name}.")
