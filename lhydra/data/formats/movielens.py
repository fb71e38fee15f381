"""Ratings of MovieLens in each of its forms: `::` between cells, CSV, and the tabs and bars of ml-100k."""

import re
from collections.abc import Sequence
from dataclasses import replace

from lhydra.data.csv_text import CSV, Dialect, scan
from lhydra.data.formats.format import BARE_TABS, Export, Format, Sample, Tables, not_read, one_of, text_table
from lhydra.data.table import Table
from lhydra.errors import DataError

_COLONS = Dialect("::", header=False, quote=False)
_BARS = Dialect("|", header=False, quote=False)
_NUMBERED = "--no-header --columns user=1,track=2,count=3,timestamp=4"
_DIALECTS = {  # of the ratings by what separates cells, and the flags that read them as they are
    "::": (_COLONS, f"--sep :: {_NUMBERED}"),
    "\t": (BARE_TABS, f"--sep tab {_NUMBERED}"),
    ",": (CSV, "--columns user=userId,track=movieId,count=rating,timestamp=timestamp"),
}
_RATED, _STARRED = re.compile(r"[0-9]+([.][0-9]+)? [0-9]+"), re.compile(r"[1-5] [0-9]{9,10}")  # and when
_RATING = ("userid", "movieid", "rating", "timestamp")
_PERSON = ("userid", "gender", "age", "occupation", "zip_code")
_PERSON_100K = ("userid", "age", "gender", "occupation", "zip_code")
# The order of the columns of u.item, as its README gives it.
_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_PLAYS = {"user_id": "userid", "track_id": "movieid", "timestamp": '"timestamp"', "rating": "rating"}
_USERS = {"user_id": "userid", **{name: name for name in _PERSON[1:]}}
_YEAR = r"nullif(regexp_extract(title, '.*\(([0-9]{4})(?:[-–][0-9]{0,4})?\)', 1), '')"
_LISTED = "[x FOR x IN string_split(genres, '|') IF x NOT IN ('', '(no genres listed)')]"
_MOVIES = {
    "track_id": "movieid",
    "name": "title",
    "year": _YEAR,
    "genre": "nullif(genres, '(no genres listed)')",
    "tags": _LISTED,
}


def _open(export: Export) -> Tables | None:
    """The ratings as plays, the movies as tracks, and who rated them where that is known."""
    sep, found = next(((sep, found) for sep in _DIALECTS if (found := _ratings(export, sep))), ("", []))
    if not found:
        return None
    dialect, flags = _DIALECTS[sep]
    names = () if dialect.header else _RATING
    there = names or found[0].header()
    columns = {name: cell for name, cell in _PLAYS.items() if name != "timestamp" or name in there}
    plays = _table(export, found, dialect, columns, names)
    weigh = (
        f"each rating counts as one play; to count it as its stars: lhydra prepare {found[0].path.name} DATASET {flags}"
    )
    notes = [f"tracks are movies; {weigh}"]
    tracks, users = _movies(export, sep), _users(export, sep)
    if tracks is None:
        notes.append("no titles: movies.dat, movies.csv or u.item is not beside the ratings")
    paths = {part.path for table in (plays, tracks, users) if table for part in table.parts}
    read = [sample for sample in export.samples if sample.path in paths]
    return Tables(plays, tracks, users, (*notes, *not_read(export, read)))


def _ratings(export: Export, sep: str) -> list[Sample]:
    """Files of ratings: those called ratings.* where there are such, else all of that shape."""
    found = [sample for sample in export.samples if _is_ratings(sample, sep)]
    named = [sample for sample in found if sample.name.startswith(("ratings.", "u.data"))]
    return one_of(export, named, "ratings") or found


def _is_ratings(sample: Sample, sep: str) -> bool:
    if sep == ",":
        return {"userid", "movieid", "rating"} <= set(sample.header())
    if sep == "\t" and not sample.name.endswith((".data", ".base", ".test")):
        return False  # four numbers between tabs could be anything
    form = _STARRED if sep == "\t" else _RATED
    return sample.mostly(sep, lambda row: len(row) == 4 and form.fullmatch(f"{row[2]} {row[3]}") is not None)


def _movies(export: Export, sep: str) -> Table | None:
    name = {"::": "movies.dat", ",": "movies.csv", "\t": "u.item"}[sep]
    found = [sample for sample in export.samples if sample.name == name][:1]
    if not found:
        return None
    if sep == ",":
        header = set(found[0].header())
        if not {"movieid", "title"} <= header:
            return None
        columns = _MOVIES if "genres" in header else {name: _MOVIES[name] for name in ("track_id", "name", "year")}
        return _table(export, found, CSV, columns, lists=[name for name in ("tags",) if name in columns])
    if sep == "::":
        return _table(
            export, found, _of_its_time(found[0], _COLONS), _MOVIES, ("movieid", "title", "genres"), ("tags",)
        )
    flags = [f"g{i}" for i in range(len(_GENRES))]
    quoted = [genre.replace("'", "''") for genre in _GENRES]
    said = ", ".join(f"CASE WHEN {flag} = '1' THEN '{genre}' END" for flag, genre in zip(flags, quoted, strict=True))
    listed = f"[x FOR x IN [{said}] IF x IS NOT NULL]"
    columns = _MOVIES | {"genre": f"nullif(array_to_string({listed}, '|'), '')", "tags": listed}
    names = ("movieid", "title", "released", "on_video", "url", *flags)
    return _table(export, found, _of_its_time(found[0], _BARS), columns, names, ("tags",))


def _users(export: Export, sep: str) -> Table | None:
    name = {"::": "users.dat", "\t": "u.user"}.get(sep)
    found = [sample for sample in export.samples if sample.name == name][:1]
    if not found:
        return None
    dialect, names = (_COLONS, _PERSON) if sep == "::" else (_BARS, _PERSON_100K)
    return _table(export, found, dialect, _USERS, names)


def _of_its_time(sample: Sample, dialect: Dialect) -> Dialect:
    """The older files are latin-1, the later ones UTF-8; nothing in them says which."""
    try:
        scan(sample.path, dialect)
    except DataError:
        return replace(dialect, encoding="latin-1")
    return dialect


def _table(
    export: Export,
    found: list[Sample],
    dialect: Dialect,
    columns: dict[str, str],
    names: Sequence[str] = (),
    lists: Sequence[str] = (),
) -> Table:
    path = found[0].path if len(found) == 1 else export.path
    return text_table(path, [(sample, "") for sample in found], dialect, columns, names=names, lists=lists)


FORMATS = (
    Format(
        "movielens",
        "ratings of MovieLens",
        "ratings.dat (user::movie::rating::time), ratings.csv with userId, movieId and rating, or u.data",
        _open,
    ),
)
