"""`timed`: what it adds, what it logs, and that the pipeline's steps go through it."""

import logging
import threading
import time
from pathlib import Path

import pytest

from lhydra.cli import main
from lhydra.data.dataset import Dataset
from lhydra.timing import timed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time in ns, moved on by the test."""
    now = [0]
    monkeypatch.setattr(time, "perf_counter_ns", lambda: now[0])
    return now


def test_a_stage_adds_its_microseconds_and_logs_nothing(clock: list[int], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stage_us = {"other": 7}
    for took_us in (3, 4):
        with timed("embed", into=stage_us):
            clock[0] += took_us * 1000
    assert stage_us == {"other": 7, "embed": 7}
    assert not caplog.records


def test_a_step_logs_its_name_and_milliseconds(clock: list[int], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with timed("split"):
        clock[0] += 1_500_000
    (record,) = caplog.records
    assert record.getMessage() == "split took_ms=1.5"
    assert (vars(record)["step"], vars(record)["took_ms"]) == ("split", 1.5)


def test_a_failing_step_is_timed_and_its_error_passes(clock: list[int], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stage_us: dict[str, int] = {}

    @timed("step")
    def fails() -> None:
        with timed("stage", into=stage_us):
            clock[0] += 2_000_000
            raise KeyError("why")

    with pytest.raises(KeyError, match="why"):
        fails()
    assert stage_us == {"stage": 2_000}
    assert [record.getMessage() for record in caplog.records] == ["step took_ms=2.0 failed"]


def test_a_decorated_function_recurses(clock: list[int], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    @timed("down")
    def down(n: int) -> int:
        clock[0] += 1_000_000
        return down(n - 1) + 1 if n else 0

    assert down(3) == 3
    assert [vars(record)["took_ms"] for record in caplog.records] == [1.0, 2.0, 3.0, 4.0]


def test_a_context_manager_nests_in_itself(clock: list[int]) -> None:
    stage_us: dict[str, int] = {}
    timer = timed("stage", into=stage_us)
    with timer:
        clock[0] += 1_000
        with timer:
            clock[0] += 1_000
    assert stage_us == {"stage": 3}


def test_threads_do_not_mix_their_times(clock: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """The first to begin ends first: a stack shared by threads would swap the two times."""
    caplog.set_level(logging.INFO)
    begun, second_begun = threading.Event(), threading.Event()

    @timed("work")
    def work(started: threading.Event, until: threading.Event) -> None:
        started.set()
        assert until.wait(30)

    first = threading.Thread(target=work, args=(begun, second_begun))
    first.start()
    assert begun.wait(30)
    clock[0] += 5_000_000
    end = threading.Event()
    second_in = threading.Event()
    second = threading.Thread(target=work, args=(second_in, end))
    second.start()
    assert second_in.wait(30)
    second_begun.set()
    first.join(30)
    clock[0] += 1_000_000
    end.set()
    second.join(30)
    assert [vars(record)["took_ms"] for record in caplog.records] == [5.0, 1.0]


def test_every_step_of_the_pipeline_logs_its_time(
    tiny_dataset: Dataset, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(tiny_dataset.info.source)
    store, out = tmp_path / "store", tmp_path / "lists.csv"
    for command, steps in (
        (["prepare", source, tmp_path / "d"], ["open", "read", "check", "split", "write"]),
        (
            ["index", "rebuild", "--model", tiny_model, "--data", tiny_dataset.path, "--store", store],
            ["index", "prove"],
        ),
        (["users", "load", tiny_dataset.path, "--store", store], ["load"]),
        (["recommend", tiny_dataset.path, store, "--out", out, "--k", "1"], []),
    ):
        assert main([*map(str, command), "--log-level", "info"]) == 0
        logged = capsys.readouterr().err
        name = "rebuild" if command[0] == "index" else str(command[0])
        names = {f"{name}.{step}" for step in steps} or {name}
        if name == "rebuild":
            names |= {"rebuild", "rebuild.depth", "rebuild.truth", "rebuild.seal", "gate", "embed.catalog"}
        for step in sorted(names):
            assert f" {step} took_ms=" in logged, step
