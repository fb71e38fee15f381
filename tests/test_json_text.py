"""JSON of somebody else's: parsed, or refused in a few words that name no parser."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhydra.data.dataset import Dataset
from lhydra.errors import DataError, FeatureError
from lhydra.features.spec import FeatureSpec
from lhydra.files import read_json
from lhydra.json_text import parse_json

BROKEN = [
    (b"{\n", "broken JSON"),
    (b'{"a": 1,\n]', "broken JSON in line 2"),
    (b"\xff\xfe{}", "text that is not UTF-8"),
    (b"[" * 100_000, "JSON that nests too deeply"),
    (b"1" * 5_000, "JSON with a number of thousands of digits"),
]


@pytest.mark.parametrize(("content", "found"), BROKEN)
def test_what_is_wrong_with_json_is_told_in_a_few_words(tmp_path: Path, content: bytes, found: str) -> None:
    with pytest.raises(ValueError, match=f"^{found}$"):
        parse_json(content)
    file = tmp_path / "one.json"
    file.write_bytes(content)
    with pytest.raises(DataError) as told:
        read_json(file, DataError, "a list of one's own")
    assert str(told.value) == f"{file}: found {found}, expected a list of one's own"


@pytest.mark.parametrize(("content", "found"), BROKEN)
def test_a_dataset_that_is_broken_is_told_likewise(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(DataError) as told:
        Dataset.open(tmp_path)
    assert str(told.value) == f"{tmp_path / 'dataset.json'}: found {found}, expected a folder made by `lhydra prepare`"
    if found != "text that is not UTF-8":
        with pytest.raises(FeatureError, match=f"found {found}, expected features of format"):
            FeatureSpec.from_json(content.decode())


@given(content=st.binary(max_size=64) | st.text(max_size=64).map(str.encode))
def test_any_text_is_json_or_an_error_of_one_line(content: bytes) -> None:
    said = ""
    try:
        parse_json(content)
    except ValueError as error:
        said = str(error)
    assert "\n" not in said
    assert said.startswith(("broken JSON", "text that is not UTF-8", "JSON ")) or not said
