"""Log lines: JSON that a machine can read whatever is in it."""

import io
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping

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


# -- the line per request ---------------------------------------------------------------------------------


def written(sample: float, calls: list[tuple[str, str]], notes: Mapping[str, object] | None = None) -> list[str]:
    """The lines of calls (request id, code)."""
    logging.getLogger("room").setLevel(logging.INFO)
    with tempfile.TemporaryFile() as file:
        access = logs.AccessLog(sample, name="room", descriptor=file.fileno())
        for request_id, code in calls:
            access.write("Recommend", code, request_id, 7, notes or {})
        file.seek(0)
        return file.read().decode("ascii").splitlines()


@given(st.text() | st.sampled_from(["a\nb", "\x1b[31mred", "\r\n{}", '"}', "\u2028", "%s %d", "\ud800"]))
def test_any_text_is_one_line_of_json_for_a_request_too(text: str) -> None:
    (line,) = written(1.0, [(text, text)], {"user": text, text + "!": {text: text}, "object": io.StringIO})
    assert line.isprintable()
    parsed = json.loads(line)
    assert parsed["request_id"] == parsed["code"] == parsed["user"] == text
    assert parsed[text + "!"] == {text: text}


def test_the_line_of_a_request_is_as_the_formatter_would_write_it() -> None:
    fields = {"request_id": "r-1", "method": "Recommend", "code": "OK", "took_us": 7, "stage_us": {"embed": 3}}
    (line,) = written(1.0, [("r-1", "OK")], {"stage_us": {"embed": 3}})
    record = logging.makeLogRecord({"name": "room", "msg": "Recommend OK", "levelname": "INFO"} | fields)
    ours, theirs = json.loads(line), json.loads(logs.JsonFormatter().format(record))
    assert list(ours) == list(theirs)
    assert len(ours.pop("time")) == len(theirs.pop("time"))
    assert ours == theirs


def test_the_request_id_decides_which_requests_are_logged() -> None:
    ids = [f"request-{i}" for i in range(4_000)]
    kept = [{json.loads(line)["request_id"] for line in written(share, [(i, "OK") for i in ids])}
            for share in (0.0, 0.1, 0.5, 1.0)]  # fmt: skip
    assert [len(some) for some in kept] == [0, pytest.approx(400, abs=80), pytest.approx(2_000, abs=150), 4_000]
    assert kept[0] < kept[1] < kept[2] < kept[3]
    assert {json.loads(line)["request_id"] for line in written(0.1, [(i, "OK") for i in reversed(ids)])} == kept[1]


@pytest.mark.parametrize("sample", [0.0, 0.3])
def test_what_failed_is_always_logged(sample: float) -> None:
    calls = [(f"request-{i}", code) for i in range(50) for code in ("INTERNAL", "INVALID_ARGUMENT", "UNAVAILABLE")]
    assert len(written(sample, calls)) == len(calls)


def test_no_line_per_request_above_the_level_info() -> None:
    access = logs.AccessLog(1.0, name="quiet.room", descriptor=-1)
    logging.getLogger("quiet").setLevel(logging.WARNING)
    assert not access.wants("r-1", "INTERNAL")
    logging.getLogger("quiet").setLevel(logging.INFO)
    assert access.wants("r-1", "INTERNAL")


@pytest.mark.parametrize("at_most", [10**6, 50_000])  # a signal may cut a write short
def test_threads_never_mix_their_lines(at_most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: whole(descriptor, data[:at_most]))
    logging.getLogger("room").setLevel(logging.INFO)
    read, write = os.pipe()
    access = logs.AccessLog(1.0, name="room", descriptor=write)
    long = "x" * 100_000  # more than a pipe holds: it cannot be written at once

    def run(number: int) -> None:
        for i in range(20):
            access.write("Recommend", "OK", f"{number}-{i}", i, {"text": long})

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    with open(read, "rb") as lines:
        found = [json.loads(lines.readline()) for _ in range(80)]
    for thread in threads:
        thread.join()
    os.close(write)
    assert {line["request_id"] for line in found} == {f"{number}-{i}" for number in range(4) for i in range(20)}
    assert all(line["text"] == long for line in found)


def test_a_reader_that_has_gone_fails_no_request() -> None:
    logging.getLogger("room").setLevel(logging.INFO)
    read, write = os.pipe()
    os.close(read)
    logs.AccessLog(1.0, name="room", descriptor=write).write("Recommend", "OK", "r-1", 7, {})
    os.close(write)
