"""Settings of a command: one frozen dataclass is the one definition of its flags, YAML section and environment.

Order of precedence: default < YAML file (a section per command) < environment `LHYDRA_<SECTION>_<KEY>` < flag.
Every unknown key is an error that names the nearest known one. What values a field takes is declared with it, in
`setting`, and checked in one place, `_check`: with the origin of the value when settings are resolved, with the name
of the field when they are made in code. A value in the file is the text that stands there, as in the environment and
on the command line: YAML's own rules would make the user `010` the number 8. Only the standard library is imported
until a YAML file is really given: pydantic-settings brings 213 modules and eight times the import time, before
`lhydra --help` prints a line.
"""

import argparse
import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lhydra.errors import ConfigError, complain, printable
from lhydra.numerals import real_number, whole_number

S = TypeVar("S", bound="Settings")
SECTIONS = (
    "columns",
    "synth",
    "prepare",
    "train",
    "evaluate",
    "recommend",
    "users",
    "plays",
    "index",
    "serve",
    "web",
    "demo",
    "retrain",
)


class Null(str):
    """A value of a YAML file that is nothing (empty, `~` or `null`, without quotes), and the text that says so."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Requirement:
    """What a value must be besides being of its type: `text` completes "expected …", `holds` decides."""

    text: str
    holds: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of every settings class: a value that its field does not take raises ConfigError, however it was made."""

    def __post_init__(self) -> None:
        """Checks every field."""
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name), f"{type(self).__name__}.{field.name}")


def setting(
    default: Any,
    help: str,
    choices: tuple[str, ...] | None = None,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    must: Requirement | None = None,
    listed: bool = False,
) -> Any:
    """Returns a dataclass field with the help text that its flag shows and the values that it takes.

    Args:
        default: the value where none is given; None is taken whatever the limits say.
        help: what the flag shows.
        choices: the words that the field takes, if it takes no others.
        low: the least value; needs a number.
        above: what every value exceeds, in place of `low`.
        high: the largest value.
        below: what no value reaches, in place of `high`.
        must: another condition, in place of limits.
        listed: whether the text is a list by commas, to which its flag, given again, adds.

    Returns:
        What a class body assigns to the field.
    """
    ends = [end for end in (low, above, high, below) if end is not None]
    if ends:
        must = Requirement(
            _limits_text(low, above, high, below),
            lambda value: (
                (low is None or value >= low)
                and (above is None or value > above)
                and (high is None or value <= high)
                and (below is None or value < below)
            ),
        )
    elif choices:
        must = Requirement("one of " + ", ".join(choices), lambda value: value in choices)
    return dataclasses.field(
        default=default, metadata={"help": help, "choices": choices, "must": must, "listed": listed}
    )


def _limits_text(low: float | None, above: float | None, high: float | None, below: float | None) -> str:
    if low is not None and high is not None:
        return f"{low} to {high}"
    start = [f"{low} or more"] if low is not None else [f"more than {above}"] if above is not None else []
    end = [f"at most {high}"] if high is not None else [f"below {below}"] if below is not None else []
    return ", ".join(start + end)


def _check(field: "dataclasses.Field[Any]", value: Any, origin: str) -> None:
    must = field.metadata.get("must")
    if must is not None and not (value is None and field.default is None) and not must.holds(value):
        raise ConfigError(complain(origin, shown(value), must.text))


def add_flags(
    parser: argparse.ArgumentParser, settings: type[Settings], only: typing.Collection[str] | None = None
) -> None:
    """Adds `--config` and one flag per field of `settings`; a flag not given stays unset.

    Args:
        parser: of the command.
        settings: the class that defines the flags.
        only: names of the fields that this command has use for; all by default.
    """
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with a section per command")
    for field in dataclasses.fields(settings):
        if only is not None and field.name not in only:
            continue
        kind, _ = _plain_type(settings, field.name)
        text = field.metadata["help"]
        if "(default: " not in text:  # a help that tells in words what None or a number stands for
            text += f" (default: {_shown(field.default)})"
        text = text.replace("%", "%%")  # argparse formats it
        flag = "--" + field.name.replace("_", "-")
        if kind is bool:
            action: Any = argparse.BooleanOptionalAction
            parser.add_argument(flag, action=action, default=argparse.SUPPRESS, help=text)
        else:
            parser.add_argument(
                flag,
                action="append" if field.metadata.get("listed") else "store",
                default=argparse.SUPPRESS,
                help=text,
                choices=field.metadata.get("choices"),
                metavar=None if field.metadata.get("choices") else kind.__name__.upper(),
            )


def resolve(section: str, settings: type[S], args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> S:
    """Returns the settings of a command, filled from file, environment and flags.

    Args:
        section: of the YAML file, and in the names of the environment.
        settings: the class to fill.
        args: the flags given, and under `config` the YAML file, if there is one.
        environ: variables by name.

    Returns:
        An instance of `settings`.

    Raises:
        ConfigError: an unknown section or key, or a value that the field does not take; it names the origin of it.
    """
    names = [field.name for field in dataclasses.fields(settings)]
    values: dict[str, Any] = {}
    path = getattr(args, "config", None)
    if path is not None:
        for key, value in read_section(path, section).items():
            if key not in names:
                raise ConfigError(unknown(f"{path}: {section}.{key}", key, names))
            values[key] = _converted(settings, key, _ungrouped(settings, key, value), f"{path}: {section}.{key}")
    prefix = f"LHYDRA_{section.upper()}_"
    for variable, value in environ.items():
        if variable.startswith(prefix):
            key = variable.removeprefix(prefix).lower()
            if key not in names:
                raise ConfigError(unknown(f"environment variable {variable}", key, names))
            values[key] = _converted(settings, key, value, f"environment variable {variable}")
    for key in names:
        if hasattr(args, key):
            given = getattr(args, key)
            given = ",".join(given) if isinstance(given, list) else given  # of a list whose flag came again
            values[key] = _converted(settings, key, given, "--" + key.replace("_", "-"))
    return settings(**values)


def read_section(path: Path, section: str) -> dict[str, Any]:
    """Reads one section of a YAML file; the section names of the whole file are checked.

    Args:
        path: of the file.
        section: its name, one of SECTIONS.

    Returns:
        The values by key; {} when the section is absent.

    Raises:
        ConfigError: the file cannot be read, or is not a mapping of known sections to mappings.
    """
    document = read_yaml(path)
    if isinstance(document, Null):
        return {}
    if not isinstance(document, dict):
        raise ConfigError(complain(path, shown(document), "a mapping with a section per command"))
    for name in document:
        if name not in SECTIONS:
            raise ConfigError(unknown(path, str(name), SECTIONS))
    chosen = document.get(section, {})
    if isinstance(chosen, Null):
        return {}
    if not isinstance(chosen, dict):
        raise ConfigError(complain(f"{path}: {section}", shown(chosen), "a mapping"))
    return {str(key): value for key, value in chosen.items()}


def read_yaml(path: Path) -> Any:
    """Reads a YAML file.

    Args:
        path: of the file.

    Returns:
        What it holds, every scalar as the text that stands there; nothing is Null.

    Raises:
        ConfigError: it cannot be read, is not YAML, or says a key twice.
    """
    import yaml  # only where a file is given: `lhydra query` runs without PyYAML

    def text(loader: Any, node: Any) -> str:
        return str(loader.construct_scalar(node))

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            node, seen = super().compose_mapping_node(anchor), set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    where = f"{path}: line {key.start_mark.line + 1}"
                    raise ConfigError(complain(where, f"the key '{key.value}' again", "each key once"))
                seen.add(key.value)
            return node

    kept = [f"tag:yaml.org,2002:{name}" for name in ("null", "merge")]
    Loader.yaml_implicit_resolvers = {
        first: [rule for rule in rules if rule[0] in kept]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for name in ("bool", "int", "float", "timestamp", "binary"):  # where the file says so itself: `!!int 010`
        Loader.add_constructor(f"tag:yaml.org,2002:{name}", text)
    Loader.add_constructor(kept[0], lambda loader, node: Null(text(loader, node)))
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506  # a SafeLoader
    except FileNotFoundError:
        raise ConfigError(complain(path, "no such file", "a YAML file")) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(complain(path, " ".join(str(error).split()), "a YAML file")) from None
    except (RecursionError, TypeError, ValueError) as error:  # nested too deeply; a key that is no text
        raise ConfigError(complain(path, str(error), "a YAML file")) from None


def shown(value: object) -> str:
    """Returns a value as a message shows it.

    Args:
        value: of a setting, or a part of a YAML file.

    Returns:
        The value, or what kind of thing it is.
    """
    if value is None or value == "":
        return "nothing"
    return "a list" if isinstance(value, list) else "a mapping" if isinstance(value, dict) else str(value)


def unknown(place: object, key: str, known: typing.Iterable[str]) -> str:
    """Returns the message for an unknown key, naming the nearest known one.

    Args:
        place: where it stands.
        key: what was found.
        known: what could have been meant.

    Returns:
        One line, control characters escaped.
    """
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    nearest = f", the nearest known key is '{near[0]}'" if near else ""
    return printable(f"{place}: unknown key '{key}'{nearest}")


def _plain_type(settings: type[Settings], name: str) -> tuple[type, bool]:
    """(type, may be None) of a field annotated `T` or `T | None`."""
    kind = typing.get_type_hints(settings)[name]
    if isinstance(kind, types.UnionType):
        plain = [part for part in typing.get_args(kind) if part is not type(None)]
        return plain[0], True
    return kind, False


def _ungrouped(settings: type[Settings], name: str, value: Any) -> Any:
    """A value of a file without the underscores that YAML allows between the digits of a number."""
    is_number = (
        _plain_type(settings, name)[0] in (int, float) and isinstance(value, str) and not isinstance(value, Null)
    )
    return re.sub("(?<=[0-9])_(?=[0-9])", "", value) if is_number else value


def _converted(settings: type[Settings], name: str, value: Any, origin: str) -> Any:
    kind, optional = _plain_type(settings, name)
    field = next(field for field in dataclasses.fields(settings) if field.name == name)
    if optional and (value is None or isinstance(value, Null)):
        return None
    if kind is bool:
        if isinstance(value, bool):
            return value
        if (word := str(value).lower()) in (*_YES, *_NO):
            return word in _YES
        raise ConfigError(complain(origin, shown(value), "true or false"))
    try:
        if (
            isinstance(value, bool)
            or not isinstance(value, str | int | float | Path)
            or (isinstance(value, Null) and not value)
        ):
            raise ValueError
        read = {int: whole_number, float: real_number}.get(kind, kind)
        converted = read(_INFINITE.sub(r"\1", str(value).lower()) if kind is float else str(value))
        if kind is float and converted != converted:
            raise ValueError
    except (TypeError, ValueError):
        wanted = {int: "a whole number", float: "a number", str: "text", Path: "a path"}.get(kind, kind.__name__)
        raise ConfigError(complain(origin, shown(value), wanted)) from None
    _check(field, converted, origin)
    return converted


_YES, _NO = ("true", "yes", "on", "y", "1"), ("false", "no", "off", "n", "0")
_INFINITE = re.compile(r"^([-+]?)\.(?=inf$|nan$)")  # YAML's `.inf`


def _shown(default: object) -> str:
    return "none" if default is None else str(default)
