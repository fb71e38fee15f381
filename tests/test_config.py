"""Settings: where a value comes from, which values are refused, and what the refusal says."""

import argparse
import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lhydra.config import Requirement, Settings, add_flags, resolve, setting
from lhydra.data.schema import DeclaredColumns
from lhydra.errors import ConfigError


@dataclass(frozen=True)
class Asked(Settings):
    k: int = setting(10, "how many")
    rate: float = setting(0.5, "how fast")
    name: str | None = setting(None, "of what")
    strict: bool = setting(False, "how")
    stage: str = setting("final", "which", ("final", "retrieval"))
    where: Path | None = setting(None, "place")
    columns: str | None = setting(None, "which, separated by commas", listed=True)


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser, Asked)
    return parser.parse_args(words)


def written(folder: Path, document: Any) -> str:
    path = folder / "lhydra.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document), encoding="utf-8")
    return str(path)


def resolved(*words: str, environ: dict[str, str] | None = None) -> Asked:
    return resolve("recommend", Asked, parsed(*words), environ or {})


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    assert resolved().k == 10
    file = ("--config", written(tmp_path, {"recommend": {"k": 20}, "serve": {"port": 1}}))
    assert resolved(*file).k == 20
    environ = {"LHYDRA_RECOMMEND_K": "30", "LHYDRA_SERVE_K": "99", "OTHER": "1"}
    assert resolved(*file, environ=environ).k == 30
    assert resolved(*file, "--k", "40", environ=environ).k == 40
    assert resolved(*file, "--rate", "2", environ=environ) == Asked(k=30, rate=2.0)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"recomend": {}}, "unknown key 'recomend', the nearest known key is 'recommend'"),
        ({"recommend": {"rat": 1}}, "recommend.rat: unknown key 'rat', the nearest known key is 'rate'"),
        ('"\\e[31mserve": {}', "unknown key '\\x1b[31mserve', the nearest known key is 'serve'"),
        ('recommend: {"ra\\nte": 1}', "recommend.ra\\nte: unknown key 'ra\\nte', the nearest known key is 'rate'"),
        ({"recommend": {"k": "ten"}}, "recommend.k: found ten, expected a whole number"),
        ({"recommend": {"k": 1.5}}, "recommend.k: found 1.5, expected a whole number"),
        ({"recommend": {"k": True}}, "recommend.k: found true, expected a whole number"),
        ({"recommend": {"k": None}}, "recommend.k: found null, expected a whole number"),
        ({"recommend": {"rate": float("nan")}}, "recommend.rate: found .nan, expected a number"),
        ({"recommend": {"name": [1]}}, "recommend.name: found a list, expected text"),
        ({"recommend": {"strict": "perhaps"}}, "recommend.strict: found perhaps, expected true or false"),
        ({"recommend": {"stage": "first"}}, "recommend.stage: found first, expected one of final, retrieval"),
        ({"recommend": [1]}, "recommend: found a list, expected a mapping"),
        ([1], "found a list, expected a mapping with a section per command"),
        ("a: [", "expected a YAML file"),
        ("[" * 5000, "expected a YAML file"),
        ("recommend: {k: }", "recommend.k: found nothing, expected a whole number"),
        ("recommend: {k: 0x10}", "recommend.k: found 0x10, expected a whole number"),
        ("recommend: {k: 12:30:00}", "recommend.k: found 12:30:00, expected a whole number"),
        ("recommend: {rate: 2020-01-01}", "recommend.rate: found 2020-01-01, expected a number"),
        ("recommend: {stage: }", "recommend.stage: found nothing, expected text"),
        ("recommend: {name: !!set {a, b}}", "recommend.name: found "),
        ("recommend: &a {k: *a}", "recommend.k: found a mapping, expected a whole number"),
        ("recommend:\n  k: 1\n  k: 2\n", "line 3: found the key 'k' again, expected each key once"),
        ("recommend: {}\nserve: {}\nrecommend: {k: 1}\n", "line 3: found the key 'recommend' again"),
        ("recommend: {k: 1}\ncolumns: {tracks: {a: {kind: year, kind: year}}}", "line 2: found the key 'kind' again"),
        ("? [a]\n: 1", "expected a YAML file"),
        ("!!python/object:os.system {}", "expected a YAML file"),
    ],
)
def test_a_wrong_file_is_refused_by_name(document: Any, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, document)
    with pytest.raises(ConfigError) as error:
        resolved("--config", path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert text.isprintable()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: found no such file, expected a YAML file"):
        resolved("--config", str(tmp_path / "none.yaml"))


def test_the_environment_is_checked_as_the_file_is() -> None:
    with pytest.raises(ConfigError, match=r"LHYDRA_RECOMMEND_STRIKT: unknown key 'strikt', .* 'strict'"):
        resolved(environ={"LHYDRA_RECOMMEND_STRIKT": "1"})
    with pytest.raises(ConfigError, match=r"LHYDRA_RECOMMEND_K: found x, expected a whole number"):
        resolved(environ={"LHYDRA_RECOMMEND_K": "x"})


def test_a_flag_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--k: found 1\.5, expected a whole number"):
        resolved("--k", "1.5")


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("YES", True), ("no", False), ("0", False)])
def test_booleans_read_as_people_write_them(text: str, value: bool) -> None:
    assert resolved(environ={"LHYDRA_RECOMMEND_STRICT": text}).strict is value


@pytest.mark.parametrize(
    "text", ["010", "007", "1.0", "1_000", "1e3", "yes", "on", "True", "2020-01-01", "12:30:00", "0x1F", "~x", "=", "<"]
)
def test_text_in_a_file_is_the_text_that_stands_there(text: str, tmp_path: Path) -> None:
    for spelled in (text, f"'{text}'", f'"{text}"', f"!!str {text}"):
        assert resolved("--config", written(tmp_path, f"recommend: {{name: {spelled}, where: {spelled}}}")) == Asked(
            name=text, where=Path(text)
        )
    path = tmp_path / "columns.yaml"
    path.write_text(f"columns: {{tracks: {{{text}: {{kind: numeric}}}}}}")
    assert [column.name for column in DeclaredColumns.from_config(path).tracks] == [text]


@dataclass(frozen=True)
class Named(Settings):
    users: str = setting("all", "whose")
    name: str | None = setting("none", "of what")


@pytest.mark.parametrize(
    ("spelled", "users", "name"),
    [("null", "null", None), ("~", "~", None), ("NULL", "NULL", None), ("'null'", "null", "null"), ("'~'", "~", "~")],
)
def test_null_is_nothing_only_where_there_may_be_nothing(
    spelled: str, users: str, name: str | None, tmp_path: Path
) -> None:
    path = written(tmp_path, f"recommend:\n  users: {spelled}\n  name: {spelled}\n")
    made = resolve("recommend", Named, argparse.Namespace(config=Path(path)), {})
    assert made == Named(users, name)
    with pytest.raises(ConfigError, match=r"recommend\.users: found nothing, expected text"):
        resolve("recommend", Named, argparse.Namespace(config=Path(written(tmp_path, "recommend: {users: }"))), {})


@pytest.mark.parametrize(("text", "value"), [("010", 10), ("1_000", 1000), ("+5", 5), ("'7'", 7), ("!!int 010", 10)])
def test_whole_numbers_in_a_file_are_decimal(text: str, value: int, tmp_path: Path) -> None:
    assert resolved("--config", written(tmp_path, f"recommend: {{k: {text}}}")).k == value


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("1E+3", 1e3), ("5", 5.0), ("-.5", -0.5), (".inf", 1e999), ("-.Inf", -1e999)]
)
def test_numbers_in_a_file_are_read_as_people_write_them(text: str, value: float, tmp_path: Path) -> None:
    assert resolved("--config", written(tmp_path, f"recommend: {{rate: {text}}}")).rate == value


@pytest.mark.parametrize("words", [("true", "false"), ("yes", "no"), ("on", "off"), ("y", "n"), ("1", "0")])
def test_booleans_in_a_file_take_every_spelling(words: tuple[str, str], tmp_path: Path) -> None:
    for word, value in zip(words, (True, False), strict=True):
        for spelled in (word, word.upper(), f"'{word.title()}'"):
            assert resolved("--config", written(tmp_path, f"recommend: {{strict: {spelled}}}")).strict is value
            assert resolved(environ={"LHYDRA_RECOMMEND_STRICT": spelled.strip("'")}).strict is value


def test_a_mapping_may_be_written_once_and_merged(tmp_path: Path) -> None:
    path = written(tmp_path, "serve: &base {k: 3, name: 010}\nrecommend:\n  <<: *base\n  k: 4\n")
    assert resolved("--config", path) == Asked(k=4, name="010")


def test_a_boolean_flag_can_take_back_what_the_file_says(tmp_path: Path) -> None:
    file = ("--config", written(tmp_path, {"recommend": {"strict": True}}))
    assert resolved(*file).strict is True
    assert resolved(*file, "--no-strict").strict is False
    assert resolved("--strict").strict is True


texts = st.text(st.characters(blacklist_categories=("Cs", "Cc")))
values = st.builds(
    Asked,
    k=st.integers(),
    rate=st.floats(allow_nan=False),
    name=st.none() | texts,
    strict=st.booleans(),
    stage=st.sampled_from(("final", "retrieval")),
    where=st.none() | texts.map(Path),
)


@given(values)
def test_settings_survive_yaml_environment_and_flags(settings: Asked) -> None:
    given = asdict(settings) | {"where": settings.where and str(settings.where)}
    as_text = {key: str(value) for key, value in given.items() if value is not None}
    environ = {f"LHYDRA_RECOMMEND_{key.upper()}": text for key, text in as_text.items()}
    assert resolved(environ=environ) == settings
    strict = "--strict" if settings.strict else "--no-strict"
    flags = [f"--{key}={text}" for key, text in as_text.items() if key != "strict"]
    assert resolved(strict, *flags) == settings


@given(values)
def test_settings_survive_yaml(tmp_path_factory: pytest.TempPathFactory, settings: Asked) -> None:
    given = asdict(settings) | {"where": settings.where and str(settings.where)}
    path = written(tmp_path_factory.getbasetemp(), {"recommend": given})
    assert resolved("--config", path) == settings


@dataclass(frozen=True)
class Limited(Settings):
    n: int = setting(1, "how many", low=1, high=9)
    rate: float = setting(0.5, "how fast", above=0)
    share: float = setting(0.0, "of all", low=0, below=1)
    mean: float = setting(1.0, "of some", above=0, high=1)
    most: int | None = setting(None, "at most", low=0)
    word: str = setting("on", "which", ("on", "off"))
    even: str = setting("2", "an even number", must=Requirement("an even number", lambda text: int(text) % 2 == 0))


@pytest.mark.parametrize(
    ("name", "fine", "wrong", "wanted"),
    [
        ("n", (1, 9), (0, 10, -1), "1 to 9"),
        ("rate", (1e-9, 1e9), (0, -1.0), "more than 0"),
        ("share", (0, 0.99), (1, -0.1), "0 or more, below 1"),
        ("mean", (1, 0.01), (0, 1.1), "more than 0, at most 1"),
        ("most", (0, 7), (-1,), "0 or more"),
        ("word", ("on", "off"), ("", "of"), "one of on, off"),
        ("even", ("4",), ("5",), "an even number"),
    ],
)
def test_a_value_out_of_range_is_refused_wherever_it_comes_from(
    name: str, fine: tuple[Any, ...], wrong: tuple[Any, ...], wanted: str, tmp_path: Path
) -> None:
    """The message names the origin: key of the file, environment variable, flag, or field."""

    def made(*words: str, environ: dict[str, str] | None = None) -> Limited:
        parser = argparse.ArgumentParser()
        parser.add_argument("--config", type=Path)
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS)
        return resolve("serve", Limited, parser.parse_args(words), environ or {})

    for value in (*fine, *wrong):
        path = written(tmp_path, {"serve": {name: value}})
        variable = f"LHYDRA_SERVE_{name.upper()}"
        ways: dict[str, Callable[[], Limited]] = {
            f"{path}: serve.{name}": partial(made, "--config", path),
            f"environment variable {variable}": partial(made, environ={variable: str(value)}),
            f"--{name}": partial(made, f"--{name}={value}"),
            f"Limited.{name}": partial(Limited, **{name: value}),
        }
        for origin, make in ways.items():
            if value in fine:
                assert getattr(make(), name) == value
            else:
                with pytest.raises(ConfigError) as error:
                    make()
                found = (
                    re.escape(f"{origin}: found ") + rf"({re.escape(str(value))}|{value}\.0|nothing), expected {wanted}"
                )
                assert re.fullmatch(found, str(error.value)), error.value


COMMANDS = (
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


def commands_settings(cls: type[Settings]) -> list[type[Settings]]:
    """The classes that no other derives from: those of commands."""
    below = cls.__subclasses__()
    return [leaf for sub in below for leaf in commands_settings(sub)] if below else [cls]


@given(st.lists(st.text("ab=", min_size=1), min_size=1))
def test_a_flag_that_comes_again_adds_to_its_list(parts: list[str]) -> None:
    assert resolved(*(f"--columns={part}" for part in parts)).columns == ",".join(parts)


def test_every_settings_class_is_one_that_checks_itself() -> None:
    """A number without limits is a value that nobody has thought about."""
    modules = (
        "lhydra.commands",
        "lhydra.data",
        "lhydra.training",
        "lhydra_index_builder",
        "lhydra_server",
        "lhydra_server.web",
    )
    for package in modules:
        for _, module, _ in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            if module.rpartition(".")[2] in ("command", "config", "settings") or package == "lhydra.commands":
                importlib.import_module(module)
    classes = [cls for cls in commands_settings(Settings) if not cls.__module__.startswith("tests")]
    assert len(classes) == len(COMMANDS)
    for cls in classes:
        for field in dataclasses.fields(cls):
            if field.type in (int, float, "int", "float"):
                assert field.metadata["must"] is not None, f"{cls.__name__}.{field.name}"
    lists = {
        (cls.__name__, field.name) for cls in classes for field in dataclasses.fields(cls) if field.metadata["listed"]
    }
    assert lists == {
        *((f"{name}Settings", field) for name in ("Prepare", "Recommend", "Users") for field in ("columns", "only")),
        *(("RecommendSettings", "users"), ("WebSettings", "cors")),
        *(("EvaluateSettings", "k"), ("EvaluateSettings", "baselines")),
    }
