"""JSON checked against TypedDicts: what was read from disk has the keys and types that the code relies on."""

import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

from lhydra.errors import LhydraError, complain

T = TypeVar("T")
_Fault = tuple[str, object, str]  # where, found, expected
_NAMES: dict[Any, str] = {
    **{int: "a whole number", float: "a number", str: "a text", bool: "true or false", types.NoneType: "null"},
    list: "a list",
}


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
    for where, found, expected in _faults(value, kind, ""):
        raise error(complain(f"{thing}: {where[1:]}" if where else thing, found, f"{expected}; {remedy}"))
    return typing.cast(T, value)


def _faults(value: Any, kind: Any, where: str) -> Iterator[_Fault]:
    """The places where `value` is no `kind`; `where` begins with a dot."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    object_like = typing.is_typeddict(kind) or origin is dict
    if kind is Any:
        return
    if origin in (typing.Union, types.UnionType):
        tries = [list(_faults(value, one, where)) for one in inner]
        if all(tries):  # of the right kind and wrong inside, or of none
            yield next(
                (faults[0] for faults in tries if faults[0][0] != where), (where, _named(value), _expected(kind))
            )
    elif origin is Literal:
        if value not in inner:
            yield where, value, _expected(kind)
    elif not _is_a(value, dict if object_like else origin or kind):
        yield where, _named(value), _expected(kind)
    elif typing.is_typeddict(kind):
        for name, own in typing.get_type_hints(kind).items():
            if name in value:
                yield from _faults(value[name], own, f"{where}.{name}")
            elif name in kind.__required_keys__:
                yield f"{where}.{name}", "nothing", _expected(own)
    elif origin:
        for key, one in value.items() if origin is dict else enumerate(value):
            yield from _faults(one, inner[-1], f"{where}.{key}")


def _is_a(value: object, kind: type) -> bool:
    return kind is bool if isinstance(value, bool) else isinstance(value, (int, float) if kind is float else kind)


def _expected(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType, Literal):
        return " or ".join(map(repr if origin is Literal else _expected, inner))
    return _NAMES.get(origin or kind, "an object")


def _named(value: object) -> str:
    return _NAMES.get(type(value), "an object")
