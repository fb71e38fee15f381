"""Filters against a slow oracle in plain Python: what a table of tracks says, row by row, value by value."""

import itertools
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.bundle import columns_writer
from lhydra.bundle.columns import FilterColumns, Mask, Numbers, check, file_names, normalised
from lhydra.bundle.columns_writer import insert_columns, write_columns
from lhydra.bundle.strings import StringColumn
from lhydra.domain import Condition
from lhydra.errors import BundleCorrupt, InvalidRequest
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.filters import BOOLEAN_SPELLINGS, MAX_CONDITIONS, MAX_VALUES, to_conditions
from lhydra_server.replies import unknown_values
from tests.harness import examples

KINDS = {"name": "text", "mood/π": "categorical", "tags": "multi", "loudness": "numeric", "year": "year"}
TYPES = [pa.string(), pa.string(), pa.list_(pa.string()), pa.float64(), pa.float64()]
SCHEMA = pa.schema(list(zip(KINDS, TYPES, strict=True)))
WORDS = ("rock", "Rock", "roc", "rock ", "été", "e\u0301te\u0301", "日本", "🎸", "\uffff", "a", "z" * 256)
NUMBERS = (0.1, float(np.float32(0.1)), -0.0, 1e-40, 0.30000000000000004, 16777217.0, -3.4e38, 3.4e38)
YEARS = (1000.0, 1999.0, 2000.0, 2999.0)
NEARLY = (math.nextafter(1999.0, 0), math.nextafter(1999.0, 3000))  # float32 knows no such number

word = st.sampled_from(WORDS)
row = st.fixed_dictionaries(
    {
        "name": st.none() | word,
        "mood/π": st.none() | word,
        "tags": st.none() | st.lists(st.none() | word, max_size=5),
        "loudness": st.none() | st.just(math.nan) | st.sampled_from(NUMBERS),
        "year": st.none() | st.sampled_from(YEARS),
    }
)
tables = st.lists(row, max_size=25)


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    column = draw(st.sampled_from([name for name in KINDS if name != "name"]))
    if column in ("mood/π", "tags"):
        values = st.lists(word | st.just("nowhere"), max_size=3).map(tuple)
        any_of, all_of, none_of = draw(values), draw(values), draw(values)
        return Condition(column, any_of or (() if all_of or none_of else ("rock",)), all_of, none_of)
    numbers = st.sampled_from((*NUMBERS, *YEARS, 1e300, -1e300, 5e-324, 0.3, *NEARLY))
    texts = st.lists(numbers.map(repr), max_size=2).map(tuple)
    low, high = draw(st.none() | numbers), draw(st.none() | numbers)
    if low is not None and high is not None and low > high:
        low, high = high, low
    given = Condition(column, draw(texts), draw(texts), draw(texts), low, high)
    return given if given != Condition(column) else replace(given, min=-1.0)


filters = st.lists(conditions(), max_size=3).map(tuple)


def says(track: Mapping[str, Any], condition: Condition) -> bool:
    """The oracle: whether a track satisfies a condition."""
    cell = track[condition.column]
    cells = [value for value in (cell if isinstance(cell, list) else [cell]) if value is not None and value == value]
    read: Any = float if KINDS[condition.column] in ("numeric", "year") else str
    any_of, all_of, none_of = (
        [read(text) for text in texts] for texts in (condition.any_of, condition.all_of, condition.none_of)
    )
    return (
        (not any_of or any(value in cells for value in any_of))
        and all(value in cells for value in all_of)
        and not any(value in cells for value in none_of)
        and (condition.min is None or any(value >= condition.min for value in cells))
        and (condition.max is None or any(value <= condition.max for value in cells))
    )


@contextmanager
def written(tracks: Sequence[Mapping[str, Any]], kinds: Mapping[str, str] = KINDS, batch: int = 7) -> Iterator[Path]:
    """A folder with the columns of these tracks; small batches, so that there are several."""
    with tempfile.TemporaryDirectory() as name, patch.object(columns_writer, "BATCH", batch):
        folder = Path(name) / "columns"
        folder.mkdir()
        pq.write_table(pa.Table.from_pylist(list(tracks), SCHEMA), Path(name) / "tracks.parquet")
        names = write_columns(folder, Path(name) / "tracks.parquet", kinds)
        assert sorted(names) == sorted(path.name for path in folder.iterdir()) == sorted(file_names(folder))
        yield folder


@given(tables, st.lists(filters, min_size=1, max_size=10), st.integers(1, 9))
@settings(deadline=None, max_examples=examples(35))
def test_a_mask_is_what_the_table_says(tracks: list[Any], asked: list[tuple[Condition, ...]], batch: int) -> None:
    with written(tracks, batch=batch) as folder:
        columns = FilterColumns.open(folder)
        for wanted in asked:
            mask = columns.mask(wanted)
            assert mask.dtype == bool
            assert mask.tolist() == [all(says(track, condition) for condition in wanted) for track in tracks]


@given(tables, filters)
@settings(deadline=None)
def test_values_that_no_track_has_are_found_with_what_may_be_meant(
    tracks: list[Any], wanted: tuple[Condition, ...]
) -> None:
    with written(tracks) as folder:
        found = list(FilterColumns.open(folder).unknown(wanted))
    values = {
        name: {value for track in tracks for value in (track[name] if name == "tags" else [track[name]]) or ()}
        for name in ("mood/π", "tags")
    }
    asked = [(one.column, value) for one in wanted for value in (*one.any_of, *one.all_of) if one.column in values]
    assert [(name, value) for name, value, _ in found] == [one for one in asked if one[1] not in values[one[0]]]
    for name, value, near in found:
        assert near in {"", *values[name]}
        assert near == "" or near.casefold() == value.strip().casefold()
        assert near or "Rock" not in values[name] or value not in ("rock", "rock ")


def test_a_thousand_values_that_no_track_has_are_not_all_looked_up() -> None:
    wanted = (Condition("tags", any_of=tuple(f"none {i}" for i in range(MAX_VALUES))),)
    with written([]) as folder, patch.object(StringColumn, "place", return_value=(0, False)) as place:
        assert unknown_values(FilterColumns.open(folder), wanted).endswith("'none 10', ...")
    assert place.call_count < 50


@given(tables, st.integers(0), st.sets(st.sampled_from(sorted(KINDS))))
@settings(deadline=None, max_examples=examples(40))
def test_tracks_inserted_give_the_bytes_of_the_whole_table(tracks: list[Any], seed: int, lacking: set[str]) -> None:
    new = np.random.default_rng(seed).random(len(tracks)) < 0.5
    insert_and_compare(tracks, new, lacking)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_many_tracks_inserted_give_the_bytes_of_the_whole_table(share: float) -> None:
    """Values that many tracks have, so that new rows belong between old ones; more than one batch of each."""
    rng = np.random.default_rng(5)
    tracks = [
        {
            "mood/π": WORDS[rng.integers(3)],
            "tags": [WORDS[i] for i in rng.integers(0, len(WORDS), 4)],
            "loudness": float(rng.integers(9)),
        }
        for _ in range(600)
    ]
    insert_and_compare(tracks, rng.random(600) < share, {"year"})


def insert_and_compare(tracks: list[Any], new: Mask, lacking: set[str]) -> None:
    tracks = [track | dict.fromkeys(lacking) if fresh else track for track, fresh in zip(tracks, new, strict=True)]
    added = pa.Table.from_pylist(list(itertools.compress(tracks, new)), SCHEMA).drop_columns(sorted(lacking))
    at = np.cumsum(~new, dtype=np.int64)[new]
    with (
        written(tracks) as whole,
        written(list(itertools.compress(tracks, ~new))) as old,
        tempfile.TemporaryDirectory() as name,
    ):
        folder = Path(name)
        names = insert_columns(old, folder, added, at)
        assert sorted(names) == sorted(path.name for path in folder.iterdir()) == sorted(file_names(whole))
        for file in names:
            assert (folder / file).read_bytes() == (whole / file).read_bytes(), file


@given(filters, st.randoms())
def test_filters_that_say_the_same_are_equal_and_allow_the_same(wanted: tuple[Condition, ...], random: Any) -> None:
    """Whatever the order, however often a thing is said, and whatever the fields are called: one cache key."""
    again = [
        replace(
            one,
            any_of=tuple(random.sample(one.any_of * 2, len(one.any_of) * 2)),
            none_of=tuple(reversed(one.none_of)),
            where=f"filter.conditions[{i}].",
        )
        for i, one in enumerate(wanted * 2)
    ]
    random.shuffle(again)
    first, second = normalised(wanted), normalised(again)
    assert first == second
    assert hash(first) == hash(second)
    assert normalised(first) == first
    with written(TRACKS) as folder:
        columns = FilterColumns.open(folder)
        np.testing.assert_array_equal(columns.mask(wanted), columns.mask(second))


@given(st.lists(conditions(), min_size=2, max_size=2, unique=True))
def test_filters_that_differ_are_not_equal(two: list[Condition]) -> None:
    assert normalised(two[:1]) != normalised(two[1:])
    assert normalised(two) != normalised(two[:1])


TRACKS: list[dict[str, Any]] = [
    {"mood/π": "rock", "tags": ["a", "rock"], "loudness": -7.25, "year": 1999.0},
    {"mood/π": "été", "tags": ["a", "a"], "loudness": 0.1, "year": 2000.0},
    {"mood/π": None, "tags": [], "loudness": None, "year": None},
    {"mood/π": None, "tags": None, "loudness": math.nan, "year": None},
]


def allowed(*wanted: Condition) -> list[int]:
    with written(TRACKS) as folder:
        return np.flatnonzero(FilterColumns.open(folder).mask(wanted)).tolist()


def test_what_is_not_known_has_no_value_and_no_number() -> None:
    assert allowed() == [0, 1, 2, 3]
    assert allowed(Condition("mood/π", none_of=("rock",))) == [1, 2, 3]
    assert allowed(Condition("tags", none_of=("rock",))) == [1, 2, 3]
    assert allowed(Condition("year", none_of=("1999",))) == [1, 2, 3]
    assert allowed(Condition("year", min=-1e308, max=1e308)) == [0, 1]


def test_a_value_that_no_track_has_is_a_value() -> None:
    assert allowed(Condition("mood/π", any_of=("polka",))) == []
    assert allowed(Condition("mood/π", any_of=("polka", "rock"))) == [0]
    assert allowed(Condition("mood/π", none_of=("polka", "\ud800"))) == [0, 1, 2, 3]
    assert allowed(Condition("tags", all_of=("a", "polka"))) == []


def test_a_track_has_one_value_of_a_column_with_one_value() -> None:
    assert allowed(Condition("mood/π", all_of=("rock",))) == [0]
    assert allowed(Condition("mood/π", all_of=("rock", "été"))) == []
    assert allowed(Condition("year", all_of=("1999", "2000"))) == []
    assert allowed(Condition("tags", all_of=("rock", "a"))) == [0]


def test_numbers_are_exact() -> None:
    assert allowed(Condition("year", any_of=("1999",))) == [0]
    assert allowed(Condition("year", min=1999, max=1999)) == [0]
    assert [allowed(Condition("year", min=year, max=2000)) for year in NEARLY] == [[0, 1], [1]]
    assert [allowed(Condition("year", max=year)) for year in NEARLY] == [[], [0]]
    assert [allowed(Condition("year", any_of=(repr(year),))) for year in NEARLY] == [[], []]
    assert allowed(Condition("year", min=-1e300, max=1e300)) == [0, 1]
    assert allowed(Condition("year", min=1e300)) == allowed(Condition("year", max=-1e300)) == []
    assert allowed(Condition("loudness", any_of=("0.1", "-7.250"))) == [0, 1]
    assert allowed(Condition("loudness", min=0.1)) == [1]
    assert allowed(Condition("loudness", max=0.1)) == [0, 1]
    assert allowed(Condition("loudness", min=float(np.nextafter(0.1, 1)))) == []


def test_only_what_loses_nothing_is_kept_in_half_the_width() -> None:
    with written(TRACKS) as folder:
        columns = FilterColumns.open(folder).columns
    kept = {name: column.values.dtype for name, column in columns.items() if isinstance(column, Numbers)}
    assert kept == {"year": np.float32, "loudness": np.float64}


def test_nothing_can_be_opened_and_asked() -> None:
    with written([]) as folder:
        assert FilterColumns.open(folder).mask([Condition("tags", any_of=("a",))]).shape == (0,)
    with written(TRACKS, {"name": "text"}) as folder:
        columns = FilterColumns.open(folder)
        assert (columns.names, columns.mask([]).tolist()) == ({}, [True] * 4)
        with pytest.raises(
            InvalidRequest, match=r"filter.column: found no column 'name', expected .* \(this bundle has none\)"
        ):
            check([Condition("name", any_of=("rock",))], columns.names)


def test_lists_that_are_null_hold_nothing(tmp_path: Path) -> None:
    """Arrow lets a null list lie over values; they are nobody's."""
    values = pa.array(["a", "b", "c", None])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 4]), values, mask=pa.array([False, True, False]))
    pq.write_table(pa.table({"tags": lists[:0]}), tmp_path / "old.parquet")
    write_columns(tmp_path, tmp_path / "old.parquet", {"tags": "multi"})
    (tmp_path / "new").mkdir()
    insert_columns(tmp_path, tmp_path / "new", pa.table({"tags": lists}), np.zeros(3, np.int64))
    columns = FilterColumns.open(tmp_path / "new")
    assert [columns.mask([Condition("tags", any_of=(tag,))]).tolist() for tag in "abc"] == [
        [True, False, False],
        [False, False, False],
        [False, False, True],
    ]


@pytest.mark.parametrize("damage", ["filters.json", "filter1_rows.npy", "filter1_words.npy", "filter3.npy"])
def test_files_that_do_not_fit_together_are_refused(damage: str) -> None:
    with written(TRACKS) as folder, written([*TRACKS, *TRACKS, TRACKS[0]]) as other:
        (folder / damage).write_bytes(b"{}")
        with pytest.raises(BundleCorrupt, match=damage):
            FilterColumns.open(folder)
        (folder / damage).unlink()
        with pytest.raises(BundleCorrupt, match=damage):
            FilterColumns.open(folder)
        if damage.endswith("rows.npy") or damage == "filter3.npy":
            (folder / damage).write_bytes((other / damage).read_bytes())
            with pytest.raises(BundleCorrupt, match="expected lengths"):
                FilterColumns.open(folder)


NAMES = {"artist": "categorical", "genre": "categorical", "explicit": "categorical", "tags": "multi", "year": "year"}
COLUMNS = r"a column to filter on \(artist, explicit, genre, tags, year\)"


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"column": "moood", "any_of": ["x"]}, rf"\.column: found no column 'moood', expected {COLUMNS}"),
        ({"any_of": ["x"]}, rf"\.column: found no column '', expected {COLUMNS}"),
        ({"column": "genre"}, ": found a condition that asks for nothing, expected one of any_of, all_of, none_of"),
        ({"column": "genre", "min": 3}, r"\.min: found 3 for genre, which is categorical, expected a bound of"),
        ({"column": "tags", "max": 0}, r"\.max: found 0 for tags, which is multi, expected a bound of"),
        ({"column": "year", "any_of": ["1999", "MCMXCIX"]}, r"\.any_of: found 'MCMXCIX', expected numbers, as year"),
        ({"column": "year", "all_of": ["nan"]}, r"\.all_of: found 'nan', expected numbers, as year is year"),
        ({"column": "year", "none_of": ["1e400"]}, r"\.none_of: found '1e400', expected numbers"),
        ({"column": "year", "min": math.nan}, r"\.min: found nan, expected a finite number"),
        ({"column": "year", "max": math.inf}, r"\.max: found inf, expected a finite number"),
        ({"column": "year", "min": 2000, "max": 1990}, r"\.min: found 2000, expected at most max, 1990"),
        ({"column": "tags", "any_of": ["x", ""]}, r"\.any_of\[1\]: found 0 characters, expected 1 to 256"),
        ({"column": "tags", "none_of": ["x" * 257]}, r"\.none_of\[0\]: found 257 characters, expected 1 to 256"),
    ],
)
def test_a_condition_that_cannot_be_answered_names_its_field(condition: dict[str, Any], message: str) -> None:
    wanted = pb.Filter(conditions=[pb.Condition(column="year", min=1990), pb.Condition(**condition)])
    with pytest.raises(InvalidRequest, match=r"^filter\.conditions\[1\]" + message) as caught:
        to_conditions(wanted, NAMES, "genre")
    assert caught.value.field in str(caught.value)


@pytest.mark.parametrize("field", ["genres", "artists", "min_year", "max_year", "explicit"])
def test_a_short_form_names_itself_where_the_bundle_has_no_such_column(field: str) -> None:
    value: Any = {"genres": ["x"], "artists": ["x"], "explicit": False}.get(field, 2000)
    with pytest.raises(
        InvalidRequest, match=rf"^filter\.{field}: found no column '.*', expected a column .* \(tags\)"
    ) as caught:
        to_conditions(pb.Filter(**{field: value}), {"tags": "multi"}, None)
    assert caught.value.field == f"filter.{field}"


def test_years_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"^filter\.min_year: found 2001, expected at most max, 2000"):
        to_conditions(pb.Filter(min_year=2001, max_year=2000), NAMES, "genre")
    with pytest.raises(InvalidRequest, match=r"^filter\.max_year: found 2000 for year, which is categorical"):
        to_conditions(pb.Filter(max_year=2000), {"year": "categorical"}, None)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (pb.Filter(), []),
        (pb.Filter(genres=["Rock", "Jazz", "Rock"]), [Condition("tags", any_of=("Jazz", "Rock"))]),
        (pb.Filter(artists=["Björk"]), [Condition("artist", any_of=("Björk",))]),
        (pb.Filter(min_year=0), [Condition("year", min=0)]),
        (pb.Filter(max_year=1999), [Condition("year", max=1999)]),
        (pb.Filter(min_year=1990, max_year=1999), [Condition("year", min=1990, max=1999)]),
        (pb.Filter(explicit=False), [Condition("explicit", any_of=BOOLEAN_SPELLINGS[False])]),
        (
            pb.Filter(artists=["a"], conditions=[pb.Condition(column="tags", all_of=["y", "x"], none_of=["z"])]),
            [Condition("artist", any_of=("a",)), Condition("tags", all_of=("x", "y"), none_of=("z",))],
        ),
    ],
)
def test_short_forms_are_conditions(wanted: pb.Filter, expected: list[Condition]) -> None:
    assert to_conditions(wanted, NAMES, "tags") == normalised(expected)


@pytest.mark.parametrize("yes_no", [("True", "False"), ("true", "false"), ("1", "0"), ("yes", "no"), ("1.0", "0.0")])
@pytest.mark.parametrize("kind", ["categorical", "numeric"])
def test_explicit_knows_how_people_write_it(yes_no: tuple[str, str], kind: str, tmp_path: Path) -> None:
    if kind == "numeric" and not yes_no[0][0].isdigit():
        return
    cells: list[Any] = [yes_no[0], yes_no[1], None]
    if kind == "numeric":
        cells = [cell and float(cell) for cell in cells]
    pq.write_table(pa.table({"explicit": cells}), tmp_path / "tracks.parquet")
    write_columns(tmp_path, tmp_path / "tracks.parquet", {"explicit": kind})
    columns = FilterColumns.open(tmp_path)
    for said, mask in ((True, [True, False, False]), (False, [False, True, False])):
        assert columns.mask(to_conditions(pb.Filter(explicit=said), columns.names, None)).tolist() == mask


def test_limits_of_the_wire() -> None:
    one = pb.Condition(column="tags", any_of=["x"])
    assert len(to_conditions(pb.Filter(conditions=[one] * MAX_CONDITIONS), NAMES, None)) == 1
    with pytest.raises(InvalidRequest, match=r"^filter\.conditions: found 65 conditions, expected at most 64"):
        to_conditions(pb.Filter(conditions=[one] * (MAX_CONDITIONS + 1)), NAMES, None)
    values = [str(i) for i in range(MAX_VALUES - 1)]
    assert len(to_conditions(pb.Filter(genres=values, conditions=[one]), NAMES, "genre")) == 2
    with pytest.raises(InvalidRequest, match=r"^filter: found 1,001 values, expected at most 1,000 in all"):
        to_conditions(pb.Filter(genres=values, artists=["x"], conditions=[one]), NAMES, "genre")
    with pytest.raises(InvalidRequest, match=r"^filter\.genres\[0\]: found 257 characters"):
        to_conditions(pb.Filter(genres=["x" * 257]), NAMES, "genre")


@given(filters)
def test_what_the_wire_says_is_what_the_core_is_asked(wanted: tuple[Condition, ...]) -> None:
    sent = [
        pb.Condition(
            column=one.column, any_of=one.any_of, all_of=one.all_of, none_of=one.none_of, min=one.min, max=one.max
        )
        for one in wanted
    ]
    assert to_conditions(pb.Filter(conditions=sent), KINDS, None) == normalised(wanted)
