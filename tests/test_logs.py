"""Log lines: JSON that a machine can read whatever is in it."""

import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhydra import log_queue, logs
from lhydra.log_queue import LogQueue


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
    lines: list[str] = []
    access = logs.AccessLog(sample, name="room", put=lines.append)
    for request_id, code in calls:
        access.write("Recommend", code, request_id, 7, notes or {})
    assert all(line.isascii() for line in lines)
    return lines


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
    access = logs.AccessLog(1.0, name="quiet.room")
    logging.getLogger("quiet").setLevel(logging.WARNING)
    assert not access.wants("r-1", "INTERNAL")
    logging.getLogger("quiet").setLevel(logging.INFO)
    assert access.wants("r-1", "INTERNAL")


# -- the queue -------------------------------------------------------------------------------------------


def queue(descriptor: int) -> LogQueue:
    return LogQueue(descriptor, lambda n: json.dumps({"lost": n}))


@pytest.mark.parametrize("at_most", [10**6, 50_000])  # a signal may cut a write short
def test_threads_never_mix_their_lines_and_keep_their_order(at_most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: whole(descriptor, data[:at_most]))
    monkeypatch.setattr(log_queue, "MOST_BYTES", 2**30)
    read, write = os.pipe()
    lines = queue(write)

    def run(number: int) -> None:
        for i in range(200):
            lines.put(f"{number} {i} " + "x" * (100_000 if i % 10 == 0 else i))  # more than a pipe holds, or little

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    with open(read, encoding="ascii") as file:
        found = [file.readline().split() for _ in range(800)]
    for thread in threads:
        thread.join()
    lines.flush(30)
    os.close(write)
    for number in range(4):
        assert [int(i) for n, i, *_ in found if int(n) == number] == list(range(200))
    assert all(len(rest[0]) == (100_000 if int(i) % 10 == 0 else int(i)) for _, i, *rest in found if rest)


def test_nobody_waits_for_a_reader_that_stalls_and_what_is_lost_is_told_in_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_queue, "MOST_BYTES", 10_000)
    read, write = os.pipe()
    lines, lost = queue(write), Counter[str]()
    lines.count_lost = lambda n: lost.update(lines=n)
    sent = 5_000
    for i in range(sent):  # nobody reads: this returns all the same
        lines.put(f"{i:0100}")
    lines.flush(0.01)  # and so does this
    at = told = 0
    with open(read, encoding="ascii") as file:
        while at < sent:
            found = json.loads(line) if "lost" in (line := file.readline()) else {"line": int(line)}
            assert found.get("line", at) == at  # whole and in order, and each gap as long as it is told
            at += found.get("lost", 1)
            told += found.get("lost", 0)
        lines.put("back")
        assert file.readline() == "back\n"
    os.close(write)
    assert at == sent
    assert told == lost["lines"] > sent - (10_000 + 65_536 + 2 * 4_096) / 101 - 10  # what waits is bounded


@pytest.mark.parametrize("broken", [True, False])
def test_a_reader_that_has_gone_fails_nobody(broken: bool) -> None:
    read, write = os.pipe()
    os.close(read)
    if not broken:
        os.close(write)
    lines, lost = queue(write), Counter[str]()
    lines.count_lost = lambda n: lost.update(lines=n)
    for _ in range(10):
        lines.put("x")
    lines.flush(30)
    assert lost["lines"] == 10
    if broken:
        os.close(write)


def test_what_a_process_prints_to_stderr_goes_through_the_queue(tmp_path: Path) -> None:
    script = """if True:
        import contextlib, logging, os, sys
        from lhydra import logs
        logs.QUEUE.take_stderr()
        logs.configure("info", as_json=True)
        logging.getLogger("room").info("one")
        logs.QUEUE.flush(30)
        os.write(2, b"from C\\n")
        logs.QUEUE.flush(30)
        for i in range(3_000):  # nobody reads: none of these waits
            with contextlib.suppress(BlockingIOError):  # nor does C care
                os.write(2, b"x" * 99 + b"\\n")
            print("y" * 99, file=sys.stderr)
            logging.getLogger("room").info("z" * 99)
        print("alive", flush=True)
        1 / 0
    """
    read, write = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=write)
    os.close(write)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"alive\n"
        assert process.wait(30) == 1  # it ends, though its log has no reader
        with open(read, encoding="ascii") as file:
            first, second, *_ = file.read().splitlines()
    finally:
        process.kill()
        process.communicate()
    assert json.loads(first)["message"] == "one"
    assert second == "from C"
