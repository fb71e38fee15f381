"""Settings: where a value comes from, which values are refused, and what the refusal says."""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lhydra.config import add_flags, resolve, setting
from lhydra.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    k: int = setting(10, "how many")
    rate: float = setting(0.5, "how fast")
    name: str | None = setting(None, "of what")
    strict: bool = setting(False, "how")
    stage: str = setting("final", "which", ("final", "retrieval"))
    where: Path | None = setting(None, "place")


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser, Settings)
    return parser.parse_args(words)


def written(folder: Path, document: Any) -> str:
    path = folder / "lhydra.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document), encoding="utf-8")
    return str(path)


def resolved(*words: str, environ: dict[str, str] | None = None) -> Settings:
    return resolve("recommend", Settings, parsed(*words), environ or {})


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    assert resolved().k == 10
    file = ("--config", written(tmp_path, {"recommend": {"k": 20}, "serve": {"port": 1}}))
    assert resolved(*file).k == 20
    environ = {"LHYDRA_RECOMMEND_K": "30", "LHYDRA_SERVE_K": "99", "OTHER": "1"}
    assert resolved(*file, environ=environ).k == 30
    assert resolved(*file, "--k", "40", environ=environ).k == 40
    assert resolved(*file, "--rate", "2", environ=environ) == Settings(k=30, rate=2.0)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"recomend": {}}, "unknown key 'recomend', the nearest known key is 'recommend'"),
        ({"recommend": {"rat": 1}}, "recommend.rat: unknown key 'rat', the nearest known key is 'rate'"),
        ({"recommend": {"k": "ten"}}, "recommend.k: found ten, expected a whole number"),
        ({"recommend": {"k": 1.5}}, "recommend.k: found 1.5, expected a whole number"),
        ({"recommend": {"k": True}}, "recommend.k: found True, expected a whole number"),
        ({"recommend": {"k": None}}, "recommend.k: found None, expected a whole number"),
        ({"recommend": {"rate": float("nan")}}, "recommend.rate: found nan, expected a number"),
        ({"recommend": {"name": [1]}}, "recommend.name: found [1], expected text"),
        ({"recommend": {"strict": "perhaps"}}, "recommend.strict: found perhaps, expected true or false"),
        ({"recommend": {"stage": "first"}}, "recommend.stage: found first, expected one of final, retrieval"),
        ({"recommend": [1]}, "recommend: found list, expected a mapping"),
        ([1], "found list, expected a mapping with a section per command"),
        ("a: [", "expected a YAML file"),
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


def test_a_boolean_flag_can_take_back_what_the_file_says(tmp_path: Path) -> None:
    file = ("--config", written(tmp_path, {"recommend": {"strict": True}}))
    assert resolved(*file).strict is True
    assert resolved(*file, "--no-strict").strict is False
    assert resolved("--strict").strict is True


texts = st.text(st.characters(blacklist_categories=("Cs", "Cc")))
values = st.builds(
    Settings,
    k=st.integers(),
    rate=st.floats(allow_nan=False),
    name=st.none() | texts,
    strict=st.booleans(),
    stage=st.sampled_from(("final", "retrieval")),
    where=st.none() | texts.map(Path),
)


@given(values)
def test_settings_survive_yaml_environment_and_flags(settings: Settings) -> None:
    given = asdict(settings) | {"where": settings.where and str(settings.where)}
    as_text = {key: str(value) for key, value in given.items() if value is not None}
    environ = {f"LHYDRA_RECOMMEND_{key.upper()}": text for key, text in as_text.items()}
    assert resolved(environ=environ) == settings
    strict = "--strict" if settings.strict else "--no-strict"
    flags = [f"--{key}={text}" for key, text in as_text.items() if key != "strict"]
    assert resolved(strict, *flags) == settings


@given(values)
def test_settings_survive_yaml(tmp_path_factory: pytest.TempPathFactory, settings: Settings) -> None:
    given = asdict(settings) | {"where": settings.where and str(settings.where)}
    path = written(tmp_path_factory.getbasetemp(), {"recommend": given})
    assert resolved("--config", path) == settings
