"""JSON checked against TypedDicts: what was read from disk has the keys and types that the code relies on."""

import types
import typing
from typing import Any, Literal, TypeVar, Union

from lhydra.errors import LhydraError, complain

T = TypeVar("T")
_Fault = tuple[str, object, str]  # where, found, expected


def checked(value: object, kind: type[T], thing: object, error: type[LhydraError], remedy: str) -> T:
    """Returns `value` as a `kind`, unchanged; keys that `kind` does not name are left alone.

    Args:
        value: parsed JSON.
        kind: a TypedDict of JSON values: numbers, texts, lists, dicts with text keys, TypedDicts, unions, Literals.
        thing: what the message names, as the path of the file.
        error: the class to raise.
        remedy: what to do about it, the end of the message.

    Returns:
        `value`, the same object.

    Raises:
        LhydraError: of class `error`; one line with the first key that is missing or of another type.
    """
    fault = _fault(value, kind, "")
    if fault is not None:
        where, found, expected = fault
        raise error(complain(f"{thing}: {where}" if where else thing, found, f"{expected}; {remedy}"))
    return typing.cast(T, value)


def _fault(value: object, kind: Any, where: str) -> _Fault | None:
    """The first place where `value` is no `kind`; None when it is one."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or kind is object:
        return None
    if typing.is_typeddict(kind):
        if not isinstance(value, dict):
            return where, _named(value), "an object"
        for name, own in typing.get_type_hints(kind).items():
            inside = f"{where}.{name}" if where else name
            if name not in value:
                if name in kind.__required_keys__:
                    return inside, "nothing", _expected(own)
            elif fault := _fault(value[name], own, inside):
                return fault
        return None
    if origin is dict:
        return _inside(value, dict, "an object", inner[1], where)
    if origin is list:
        return _inside(value, list, "a list", inner[0], where)
    if origin in (Union, types.UnionType):
        faults = [_fault(value, one, where) for one in inner]
        deep = [fault for fault in faults if fault is not None and fault[0] != where]  # of the right kind, wrong inside
        return None if None in faults else (deep or [(where, _named(value), _expected(kind))])[0]
    fits = value in inner if origin is Literal else _is_a(value, kind)
    return None if fits else (where, value if origin is Literal else _named(value), _expected(kind))


def _inside(value: object, container: type, expected: str, kind: Any, where: str) -> _Fault | None:
    if not isinstance(value, container):
        return where, _named(value), expected
    items = value.items() if isinstance(value, dict) else enumerate(typing.cast(list[Any], value))
    faults = (_fault(one, kind, f"{where}.{key}" if where else str(key)) for key, one in items)
    return next((fault for fault in faults if fault is not None), None)


def _is_a(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", types.NoneType: "null"}


def _expected(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_expected, inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    return "a list" if origin is list else _NAMES.get(kind, "an object")


def _named(value: object) -> str:
    """The type of a JSON value in words."""
    return "a list" if isinstance(value, list) else _NAMES.get(type(value), "an object")
