"""Settings of a command: one frozen dataclass is the one definition of its flags, YAML section and environment.

Order of precedence: default < YAML file (a section per command) < environment `LHYDRA_<SECTION>_<KEY>` < flag.
Every unknown key is an error that names the nearest known one. Only the standard library is imported until
a YAML file is really given.
"""

import argparse
import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from lhydra.errors import ConfigError, complain

T = TypeVar("T")
SECTIONS = ("columns", "synth", "prepare", "train", "evaluate", "recommend", "users", "index", "serve", "demo")


def setting(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field with the help text that its flag shows."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def add_flags(parser: argparse.ArgumentParser, settings: type, only: typing.Collection[str] | None = None) -> None:
    """Adds `--config` and one flag per field of the dataclass `settings`; a flag not given stays unset.

    only: names of the fields that this command has use for; all by default.
    """
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with a section per command")
    for field in dataclasses.fields(settings):
        if only is not None and field.name not in only:
            continue
        kind, _ = _plain_type(settings, field.name)
        text = f"{field.metadata['help']} (default: {_shown(field.default)})".replace("%", "%%")  # argparse formats it
        flag = "--" + field.name.replace("_", "-")
        if kind is bool:
            action: Any = argparse.BooleanOptionalAction
            parser.add_argument(flag, action=action, default=argparse.SUPPRESS, help=text)
        else:
            parser.add_argument(
                flag,
                default=argparse.SUPPRESS,
                help=text,
                choices=field.metadata.get("choices"),
                metavar=None if field.metadata.get("choices") else kind.__name__.upper(),
            )


def resolve(section: str, settings: type[T], args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> T:
    """Returns `settings` filled from file, environment and `args`.

    Raises:
        ConfigError: an unknown section or key, or a value that is not of the field's type.
    """
    names = [field.name for field in dataclasses.fields(settings)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    path = getattr(args, "config", None)
    if path is not None:
        for key, value in read_section(path, section).items():
            if key not in names:
                raise ConfigError(f"{path}: {section}.{key}: {unknown(key, names)}")
            values[key] = _converted(settings, key, value, f"{path}: {section}.{key}")
    prefix = f"LHYDRA_{section.upper()}_"
    for variable, value in environ.items():
        if variable.startswith(prefix):
            key = variable.removeprefix(prefix).lower()
            if key not in names:
                raise ConfigError(f"environment variable {variable}: {unknown(key, names)}")
            values[key] = _converted(settings, key, value, f"environment variable {variable}")
    for key in names:
        if hasattr(args, key):
            values[key] = _converted(settings, key, getattr(args, key), "--" + key.replace("_", "-"))
    return settings(**values)


def read_section(path: Path, section: str) -> dict[str, Any]:
    """Returns one section of a YAML file, {} when absent; the whole file's section names are checked."""
    import yaml  # only where a file is given: `lhydra query` runs without PyYAML

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(complain(path, "no such file", "a YAML file")) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(complain(path, " ".join(str(error).split()), "a YAML file")) from None
    document = {} if document is None else document
    if not isinstance(document, dict):
        raise ConfigError(complain(path, type(document).__name__, "a mapping with a section per command"))
    for name in document:
        if name not in SECTIONS:
            raise ConfigError(f"{path}: {unknown(str(name), SECTIONS)}")
    chosen = document.get(section)
    if chosen is None:
        return {}
    if not isinstance(chosen, dict):
        raise ConfigError(complain(f"{path}: {section}", type(chosen).__name__, "a mapping"))
    return {str(key): value for key, value in chosen.items()}


def unknown(key: str, known: typing.Iterable[str]) -> str:
    """Returns the message for a key that is not in `known`, naming the nearest that is."""
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"unknown key '{key}', the nearest known key is '{near[0]}'" if near else f"unknown key '{key}'"


def _plain_type(settings: type, name: str) -> tuple[type, bool]:
    """(type, may be None) of a field annotated `T` or `T | None`."""
    kind = typing.get_type_hints(settings)[name]
    if isinstance(kind, types.UnionType):
        plain = [part for part in typing.get_args(kind) if part is not type(None)]
        return plain[0], True
    return kind, False


def _converted(settings: type, name: str, value: Any, origin: str) -> Any:
    kind, optional = _plain_type(settings, name)
    field = next(field for field in dataclasses.fields(settings) if field.name == name)
    choices = field.metadata.get("choices")
    if value is None and optional:
        return None
    if kind is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "1", "yes", "false", "0", "no"):
            return str(value).lower() in ("true", "1", "yes")
        raise ConfigError(complain(origin, str(value), "true or false"))
    try:
        if isinstance(value, (bool, list, dict)) or (kind is int and isinstance(value, float)):
            raise ValueError
        converted = kind(value)
        if kind is float and converted != converted:
            raise ValueError
    except (TypeError, ValueError):
        wanted = {int: "a whole number", float: "a number", str: "text", Path: "a path"}.get(kind, kind.__name__)
        raise ConfigError(complain(origin, str(value), wanted)) from None
    if choices and converted not in choices:
        raise ConfigError(complain(origin, str(value), "one of " + ", ".join(choices)))
    return converted


def _shown(default: object) -> str:
    return "none" if default is None else str(default)
