"""Programs that measure replace their own earlier results and nothing else, and say so before any work."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks import kill, operating_point, paired, rebuild, similar, stages, streams
from benchmarks.ann import command as ann
from benchmarks.latency import command as latency
from lhydra.commands.outputs import check_output

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
Main = Callable[[Sequence[str]], int]
PROGRAMS: dict[str, tuple[Main, tuple[str, ...], str]] = {  # its words without a result, and a result of its own
    "kill": (kill.main, ("nowhere", "nowhere", "nowhere"), "rebuild/kill-10k.json"),
    "operating_point": (
        operating_point.main,
        ("nowhere", "nowhere"),
        "rebuild/operating-point-movielens-1m-flat.json",
    ),
    "paired": (paired.main, ("nowhere=nowhere",), "quality/paired-movielens-1m-random.json"),
    "rebuild": (rebuild.main, ("nowhere",), "rebuild/scale.json"),
    "similar": (similar.main, ("nowhere=nowhere",), "similar.json"),
    "stages": (stages.main, ("nowhere", "nowhere"), "stages-lastfm-17k.json"),
    "streams": (streams.main, ("nowhere", "nowhere"), "streams.json"),
    "ann": (ann.main, ("nowhere", "nowhere"), "ann-100k.json"),
    "latency": (latency.main, ("--store", "nowhere"), "latency-1m.json"),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("other", ["notes", "json", "folder", *PROGRAMS])
def test_a_file_of_something_else_is_kept_and_said_at_once(
    name: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main, words, _ = PROGRAMS[name]
    out = tmp_path / "out.json"
    if other == "folder":
        out.mkdir()
    elif other in PROGRAMS:
        out.write_bytes((RESULTS / PROGRAMS[other][2]).read_bytes())
    else:
        out.write_text("not to be lost" if other == "notes" else json.dumps({"benchmark": "mine", "versions": {}}))
    before = None if other == "folder" else out.read_bytes()
    flag = "--json" if name == "latency" else "--out"
    if other == name:
        checked: list[str] = []

        def watched(flag: str, path: Path, is_own: Callable[[bytes], bool]) -> None:
            check_output(flag, path, is_own)
            checked.append(flag)
            raise LookupError  # what comes then takes its time

        monkeypatch.setattr(f"{main.__module__}.check_output", watched)
        with pytest.raises(LookupError):
            main([*words, flag, str(out)])
        assert checked == [flag]
        return
    assert main([*words, flag, str(out)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{flag}: found {out}" in line
    assert "expected a f" in line  # a free path, or a file in a folder that exists
    assert before is None or out.read_bytes() == before
    assert not (tmp_path / "nowhere").exists()


def test_a_plot_replaces_a_plot_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = pytest.importorskip("benchmarks.latency.plot")
    page, out = tmp_path / "page.html", tmp_path / "out.json"
    words = ["--store", "nowhere", "--json", str(out), "--plot", str(page)]
    page.write_text("<html>plotly, not to be lost</html>")
    assert latency.main(words) == 1
    assert f"--plot: found {page}, which holds something else" in capsys.readouterr().err
    plot.write_plot(page, json.loads((RESULTS / "latency-1m.json").read_text()))

    def measured(*given: object) -> None:
        raise LookupError

    monkeypatch.setattr(latency, "_measured", measured)
    with pytest.raises(LookupError):
        latency.main(words)
    assert latency.main([*words[:-1], str(out)]) == 1
    assert f"--json, --plot: found {out} for both, expected two files" in capsys.readouterr().err
