"""Log lines: JSON that a machine can read whatever is in it."""

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhydra import logs


@pytest.fixture(autouse=True)
def _root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@given(st.text() | st.sampled_from(["a\nb", "\x1b[31mred", "\r\n{}", '"}', "\u2028", "%s %d", "\ud800"]))
def test_any_text_is_one_line_of_json(text: str) -> None:
    record = logging.makeLogRecord({"name": text, "msg": "%s", "args": (text,), "user_id": text})
    line = logs.JsonFormatter().format(record)
    assert line.isascii()
    assert line.isprintable()
    parsed = json.loads(line)
    assert parsed["message"] == parsed["user_id"] == parsed["logger"] == text


def test_a_line_has_time_level_logger_message_and_extra_fields() -> None:
    stream = io.StringIO()
    logs.configure("info", as_json=True, stream=stream)
    logging.getLogger("room").info("took %d", 3, extra={"took_ms": 1.5, "path": io.StringIO})
    logging.getLogger("room").debug("not shown")
    (line,) = stream.getvalue().splitlines()
    parsed = json.loads(line)
    assert {name: parsed[name] for name in ("level", "logger", "message", "took_ms")} == {
        "level": "info",
        "logger": "room",
        "message": "took 3",
        "took_ms": 1.5,
    }
    assert set(parsed) == {"time", "level", "logger", "message", "took_ms", "path"}  # and nothing of logging's own
    assert parsed["time"].endswith("Z")


def test_times_are_utc_with_milliseconds() -> None:
    record = logging.makeLogRecord({"created": 1_600_000_000.25, "msecs": 250.0})
    assert json.loads(logs.JsonFormatter().format(record))["time"] == "2020-09-13T12:26:40.250Z"


def test_a_traceback_stays_on_the_line() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": sys.exc_info()})
    line = logs.JsonFormatter().format(record)
    assert "\n" not in line
    assert "first\nsecond" in json.loads(line)["exception"]


def test_configuring_twice_logs_once() -> None:
    first, second = io.StringIO(), io.StringIO()
    logs.configure("warning", stream=first)
    logs.configure("warning", stream=second)
    logging.getLogger("room").warning("once")
    assert first.getvalue() == ""
    assert second.getvalue().endswith(" W once\n")
