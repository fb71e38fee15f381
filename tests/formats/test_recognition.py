"""What every reader owes to files that are not its own: to leave them alone, whatever they hold."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lhydra.data.formats import FORMATS
from lhydra.data.formats.format import Export, Sample
from lhydra.errors import DataError
from tests.prepared import SAMPLES, prepare

NAMES = ("x.csv", "feedback.csv", "x.tsv", "x.txt", "x.dat", "u.data", "movies.dat", "x.inter", "x.parquet", "x.json")
PIECES = ("a", "1", ",", "\t", "::", "\n", "\r", "\r\n", '"', "\0", "\ufeff", "user_id:token", "userId", "{", "[", "é")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(name=st.sampled_from(NAMES), text=st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join))
def test_any_text_is_recognised_or_left_alone(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    sample = Sample.of(tmp_path / name)
    for known in FORMATS:
        with suppress(DataError):  # a line of its own says what is wrong
            known.open(Export(tmp_path, (sample,) if sample else ()))


@pytest.mark.parametrize("folder", sorted(path.name for path in SAMPLES.iterdir()))
def test_a_sample_is_no_other_formats(tmp_path: Path, folder: str) -> None:
    for source in [SAMPLES / folder, *(path for path in (SAMPLES / folder).rglob("*") if path.is_dir())]:
        files = sorted(path for path in source.iterdir() if path.is_file())
        samples = tuple(sample for path in files if (sample := Sample.of(path)))
        taken = [known.name for known in FORMATS if samples and known.open(Export(source, samples))]
        assert len(taken) <= 1, f"{source} is taken for {taken}"


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_our_own_form_is_taken_for_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    sep = "," if ending == "csv" else "\t"
    rows = ("user_id", "track_id", "timestamp"), ("u", "1", "9"), ("v", "1", "8")
    path = tmp_path / f"feedback.{ending}"
    path.write_text("".join(sep.join(row) + "\n" for row in rows))
    assert "taken for" not in prepare(capsys, path, tmp_path / "out")
