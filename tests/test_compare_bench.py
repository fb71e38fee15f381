"""Whether requests became slower: the verdict on ratios to the floor, on documents made up and on a real store."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare, floor
from lhydra.data.dataset import Dataset

STEADY = [1.0, 0.99, 1.01, 1.0, 0.995]  # of runs of the same thing


def document(ratio: float = 2.0, spread: float = 1.0, **other: Any) -> dict[str, Any]:
    """What five runs with such a ratio to the floor give; `spread` times as far apart as STEADY."""
    found = {name: {"ratio": ratio} for name in (*floor.STAGES, floor.SHARED, floor.WHOLE, floor.PROCESSOR)}
    runs = [
        {
            "settings": {"users": 500, "k": 100},
            "bundle": {"tracks": 3000, "recipe": "flat"},
            "machine": {"cores": 2, "processor": "one"},
            "versions": {"numpy": "2.4.6"},
            "spinning": {"before": 1.98, "after": 1.99},
            "floor": {name: {"ratio": row["ratio"] * (1 + spread * (steady - 1))} for name, row in found.items()}
            | {"lookup": {"real_us": 9.0}},
        }
        for steady in STEADY
    ]
    return compare.document_of(runs) | other


def test_faster_and_equal_pass_and_slower_beyond_noise_fails(capsys: pytest.CaptureFixture[str]) -> None:
    base = document()
    assert compare.said(base, document()) == 0
    assert compare.said(base, document(1.5)) == 0
    assert "better" in capsys.readouterr().out
    assert compare.said(base, document(2.0 * 1.02)) == 0
    assert capsys.readouterr().out.endswith("not slower beyond noise\n")
    assert compare.said(base, document(2.0 * 1.10)) == compare.SLOWER
    shown = capsys.readouterr().out
    assert shown.endswith("SLOWER beyond noise: embed, retrieve, rerank, select, reply, shared, whole, processor\n")
    assert compare.said(document(spread=10), document(2.0 * 1.10, spread=10)) == 0  # runs lie further apart than that


def test_one_stage_alone_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    now = document()
    now["figures"]["rerank"] = document(3.0)["figures"]["rerank"]
    assert compare.said(document(), now) == compare.SLOWER
    assert capsys.readouterr().out.endswith("SLOWER beyond noise: rerank\n")


@pytest.mark.parametrize(
    ("part", "name", "is_now"), [("settings", "k", 10), ("bundle", "tracks", 9), ("settings", "runs", 3)]
)
def test_what_is_unlike_is_one_line_and_no_verdict(
    part: str, name: str, is_now: int, capsys: pytest.CaptureFixture[str]
) -> None:
    base, now = document(), document()
    now[part] = now[part] | {name: is_now}
    assert compare.said(base, now) == compare.NO_VERDICT
    shown = capsys.readouterr()
    assert shown.err == f"NOT COMPARABLE: {part}: {name} was {base[part][name]}, is {is_now}\n"
    assert shown.out == ""


def test_another_machine_is_noted_and_busy_cores_call_nothing_slower(capsys: pytest.CaptureFixture[str]) -> None:
    other = document(machine={"cores": 2, "processor": "two"}, versions={"numpy": "9"})
    assert compare.said(document(), other) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert [note.partition(":")[2].partition(", is")[0] for note in notes] == [
        " machine: processor was one",
        " versions: numpy was 2.4.6",
    ]
    assert compare.said(document(), document(9.0, spinning=1.2)) == compare.NO_VERDICT
    assert "NO VERDICT: the cores were not free" in capsys.readouterr().err
    assert compare.said(document(), document(spinning=1.2)) == 0
    assert compare.said(document(spinning=1.2), document()) == 0
    assert "it hides slowdowns" in capsys.readouterr().out
    assert compare.said(document(spinning=1.2), document(9.0)) == compare.SLOWER


def test_a_baseline_is_written_and_compared_with(
    tiny_store: Path,
    tiny_dataset: Dataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compare, "SETTINGS", {"users": 3, "repeats": 1, "k": 5, "depth": 20, "seed": 0})
    out, words = tmp_path / "base.json", [str(tiny_dataset.path), str(tiny_store), "--runs", "3"]
    assert compare.main([*words, "--out", str(out)]) == 0
    base = json.loads(out.read_text())
    assert list(base["figures"]) == [*floor.STAGES, floor.SHARED, floor.WHOLE, floor.PROCESSOR]
    assert all(len(figure["values"]) == 3 and figure["min"] > 0 for figure in base["figures"].values())
    runs = copy.deepcopy(base) | {"spinning": 2.0}
    monkeypatch.setattr(compare, "document_of", lambda found: runs)
    monkeypatch.setattr(compare, "floor", lambda dataset, store: {})
    out.write_text(json.dumps(base | {"spinning": 2.0}))
    assert compare.main([*words, "--against", str(out)]) == 0
    assert "not slower beyond noise" in capsys.readouterr().out


NOTHING: list[Any] = [[], "text", None, -1]
NO_FIGURES: list[Any] = [{}, {"whole": 3}, {"whole": {}}, {"whole": {"values": [1, 1, 1]}}]
NO_VALUES: list[Any] = [[1.0] * 2, ["a"] * 3, [float("nan")] * 3, [0.0] * 3, [None] * 3, {}, 3]
DAMAGED: list[dict[str, Any]] = [
    *({part: wrong} for part in compare.KEYS for wrong in NOTHING),
    *({"figures": wrong} for wrong in NO_FIGURES),
    *({"figures": {"whole": {"values": values, "median": 1.0, "better": "lower"}}} for values in NO_VALUES),
    {"spinning": float("nan")},
]


@pytest.mark.parametrize("other", DAMAGED)
def test_a_damaged_baseline_is_one_line_and_no_verdict(
    other: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback would have the exit code of a slowdown, and figures that say nothing would pass."""
    path = tmp_path / "base.json"
    path.write_text(json.dumps(document() | other))
    assert compare.main(["dataset", "store", "--against", str(path)]) == compare.NO_VERDICT
    shown = capsys.readouterr()
    assert shown.err.startswith(str(path))
    assert len(shown.err.splitlines()) == 1
    assert not shown.out


@pytest.mark.parametrize("in_baseline", [True, False])
def test_figures_of_one_side_alone_are_no_verdict(in_baseline: bool, capsys: pytest.CaptureFixture[str]) -> None:
    whole, less = document(), document()
    del less["figures"]["rerank"]
    assert compare.said(*((whole, less) if in_baseline else (less, whole))) == compare.NO_VERDICT
    assert capsys.readouterr().err == "NOT COMPARABLE: figures: only one of both has rerank\n"


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, missing = tmp_path / "other.json", tmp_path / "missing.json"
    other.write_text('{"settings": {}}')
    for words, line in (
        (("--against", str(other)), "no bundle"),
        (("--against", str(missing)), "no missing.json"),
        (("--out", str(other)), "other.json"),
        (("--runs", "2"), "--runs: found 2"),
        ((), "dataset"),
    ):
        assert compare.main([str(tmp_path / "dataset"), str(tmp_path / "store"), *words]) == compare.NO_VERDICT
        shown = capsys.readouterr()
        assert len(shown.err.splitlines()) == 1, shown.err
        assert line in shown.err
