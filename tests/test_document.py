"""The evaluation document: what an older version wrote opens, and what is wrong in one is said in a line."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from lhydra.cli import main
from lhydra.errors import DataError
from lhydra.evaluation.document import Document, read_document
from lhydra.evaluation.report.page import render
from lhydra.typed import checked

GOLDEN = Path(__file__).parent / "golden" / "evaluation_v1.json"  # written by version 0.1.0


def test_a_document_of_the_version_before_is_read_reported_and_compared(tmp_path: Path) -> None:
    document = read_document(GOLDEN)
    assert document == json.loads(GOLDEN.read_text())
    assert all(f'id="{name}"' in render(document) for name in ("ranking", "paired", "training", "mistakes", "protocol"))
    out = tmp_path / "c.json"
    assert main(["compare", str(GOLDEN), str(GOLDEN), "--json", str(out)]) == 0
    assert json.loads(out.read_text())["summary"][0].startswith("B and A rank alike")


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything inside value; of a list only to what is in its first entry."""
    inside = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, one in inside:
        yield (*path, key)
        yield from paths(one, (*path, key))


FREE = ("split", "chosen", "training")  # parts that belong to the data, a baseline, the training


def test_every_part_of_another_type_is_named() -> None:
    whole = json.loads(GOLDEN.read_text())
    for path in paths(whole):
        if path[0] == "format" or set(path[:-1]) & set(FREE):
            continue
        document = copy.deepcopy(whole)
        inside: Any = document
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = [] if isinstance(inside[path[-1]], dict) else {}
        with pytest.raises(DataError) as raised:
            checked(document, Document, "a.json", DataError, "write it again")
        text = str(raised.value)
        assert text.startswith(f"a.json: {'.'.join(map(str, path))}: found ")
        assert text.endswith("; write it again")
        assert "\n" not in text


@pytest.mark.parametrize("part", sorted(Document.__required_keys__))  # a set has another order in each process
def test_a_missing_part_is_named(tmp_path: Path, part: str) -> None:
    document = json.loads(GOLDEN.read_text())
    del document[part]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="another document" if part == "format" else rf"a\.json: {part}: found nothing"):
        read_document(path)


class Sample(TypedDict):
    n: int
    mean: float | None
    word: Literal["a", "b"]
    more: NotRequired[dict[str, list[int]]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"n": 1, "mean": 2, "word": "a"}, None),
        ({"n": 1, "mean": None, "word": "b", "more": {"x": [1]}, "unknown": 0}, None),
        ([], "x: found a list, expected an object; again"),
        ({"n": True, "mean": 1.0, "word": "a"}, "x: n: found true or false, expected a whole number; again"),
        ({"n": 1.5, "mean": 1.0, "word": "a"}, "x: n: found a number, expected a whole number; again"),
        ({"n": 1, "mean": "1", "word": "a"}, "x: mean: found a text, expected a number or null; again"),
        ({"n": 1, "word": "a"}, "x: mean: found nothing, expected a number or null; again"),
        ({"n": 1, "mean": 1, "word": "c"}, "x: word: found c, expected 'a' or 'b'; again"),
        ({"n": 1, "mean": 1, "word": ["a"]}, "x: word: found ['a'], expected 'a' or 'b'; again"),
        (
            {"n": 1, "mean": 1, "word": "a", "more": {"x": [1, None]}},
            "x: more.x.1: found null, expected a whole number; again",
        ),
    ],
)
def test_json_is_checked_against_types(value: Any, message: str | None) -> None:
    if message is None:
        assert checked(value, Sample, "x", DataError, "again") is value
    else:
        with pytest.raises(DataError) as raised:
            checked(value, Sample, "x", DataError, "again")
        assert str(raised.value) == message
