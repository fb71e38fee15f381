"""Numbers in outside text: what Python reads of them, without its lenience, in every place that reads some."""

import argparse
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lhydra.bundle import columns
from lhydra.commands.evaluate import list_lengths
from lhydra.config import resolve
from lhydra.domain import Condition
from lhydra.errors import ConfigError, InvalidRequest
from lhydra.features.columns import number_of
from lhydra.numerals import real_number, whole_number
from lhydra_client import command
from lhydra_server.config import ServeSettings

LENIENT = ["1_999", "١٩٩٩", "１９９９", "१", "1__0", "_1", "1_0.5", "１.5"]
texts = st.text(max_size=6) | st.text("0123456789.eE+-_ ", max_size=6) | st.floats().map(str) | st.integers().map(str)


@given(texts)
@example("1_999")
@example("١٩٩٩")
@example(" 7 ")
@example("1e999")
@example("-Infinity")
def test_a_number_is_what_python_reads_in_plain_digits_alone(text: str) -> None:
    readers: list[tuple[Callable[[str], float], Callable[[str], float]]] = [(whole_number, int), (real_number, float)]
    for ours, pythons in readers:
        try:
            expected = pythons(text) if text.strip().isascii() and "_" not in text else None
        except ValueError:
            expected = None
        if expected is None:
            with pytest.raises(ValueError, match="is not a"):
                ours(text)
        else:
            assert ours(text) == expected or math.isnan(expected)


@pytest.mark.parametrize("text", LENIENT)
def test_no_door_takes_a_number_in_other_digits_or_with_underscores(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PORT", "USERS_SYNC_S"):
        with pytest.raises(ConfigError, match="expected a"):
            resolve("serve", ServeSettings, argparse.Namespace(), {f"LHYDRA_SERVE_{name}": text})
    for condition in (Condition("year", any_of=(text,)), Condition("year", none_of=(text,))):
        with pytest.raises(InvalidRequest, match="expected numbers, as year is year"):
            columns.check([condition], {"year": "year"})
    assert math.isnan(number_of(text))  # of a profile: text that is no number
    assert list_lengths(f"10,{text}") == ()
    parser = argparse.ArgumentParser(prog="query")
    command.configure(parser)
    asked: list[list[Any]] = [["--k"], ["--min-year"], ["--max-year"], ["--timeout-s"]]
    for flag in asked:
        with pytest.raises(SystemExit):
            parser.parse_args(["recommend", "ann", *flag, text])
        assert f"argument {flag[0]}: found {text!r}, expected a" in capsys.readouterr().err
    assert parser.parse_args(["recommend", "ann", "--profile", f"age={text}"]).profile == [("age", text)]
