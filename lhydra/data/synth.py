"""Writes the synthetic listening world as a *tables* source: plays, tracks and users in Parquet, and world.json.

Plays and tracks are drawn and written block by block, a row group each: memory does not grow with the number of
plays, and of a track only what is hidden is held.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import cache
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lhydra import __version__, files
from lhydra.data import listening, scenes, world
from lhydra.data.names import every_title
from lhydra.data.world import World, generator, make_world
from lhydra.domain import I64
from lhydra.errors import ConfigError, DataError, complain
from lhydra.json_text import parse_json
from lhydra.timing import timed

FORMAT = 2
FILES = {"plays.parquet", "tracks.parquet", "users.parquet", "world.json"}
MOST = {"users": 10**7, "tracks": 10**7, "plays": 10**9}  # beyond, more memory than a machine has
MISSING = {"genre": 0.04, "tags": 0.03, "year": 0.03, "age": 0.04, "gender": 0.02}
BLOCK_TRACKS = 1 << 16  # rows of a block of tracks
_PLAYS_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("track_id", pa.string()),
        ("playcount", pa.int32()),
        ("timestamp", pa.int64()),
        ("session", pa.int32()),
        ("skipped", pa.bool_()),
        ("completed", pa.bool_()),
        ("ms_played", pa.int32()),
    ]
)
_OLDEST = 1940  # year of a track
_DECADES = range(_OLDEST, 2030, 10)
Ints = npt.NDArray[np.integer]
Draw = Callable[[np.random.Generator, int], npt.NDArray[Any]]


def _normal(scale: float) -> Draw:
    return lambda rng, n: scale * rng.normal(size=n)


def _uniform(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    return rng.random(n)


def _missing(name: str) -> Draw:
    return lambda rng, n: rng.random(n) < MISSING[name]


_TRACK_DRAWS: dict[str, Draw] = {  # what chance gives to the tracks table; the order is that of the stream
    "energy": _normal(0.3),
    "year": _normal(5),
    "tags kept": lambda rng, n: rng.random((n, 5)) < (0.9, 0.7, 0.7, 0.5, 0.1),  # style, genre, mood, decade, wrong
    "tags wrong": lambda rng, n: rng.integers(len(scenes.STYLES), size=n),
    "duration_ms": _normal(0.25),
    "danceability": _normal(0.4),
    "key": lambda rng, n: rng.integers(12, size=n),
    "loudness": _normal(1.5),
    "mode": _uniform,
    "speechiness": _normal(0.4),
    "acousticness": _normal(0.7),
    "instrumentalness": _normal(1.0),
    "liveness": _normal(0.5),
    "valence": _normal(0.25),
    "tempo": _normal(14),
    "time_signature": lambda rng, n: rng.choice([3, 4, 5], size=n, p=[0.08, 0.9, 0.02]),
    "explicit": _uniform,
    "no genre": _missing("genre"),
    "no tags": _missing("tags"),
    "no year": _missing("year"),
}


def write_world(
    out: Path,
    *,
    users: int,
    tracks: int,
    plays: int,
    seed: int,
    on_plays: Callable[[int], None] = lambda written: None,
) -> None:
    """Writes the world of these sizes to the folder `out`, which appears whole or not at all.

    The same arguments give the same bytes. A world written there before is replaced.

    Args:
        out: the folder.
        users: how many.
        tracks: how many.
        plays: how many.
        seed: of the world.
        on_plays: told how many rows of plays are written so far, after each block.

    Raises:
        ConfigError: sizes or a seed that make no world.
        DataError: `out` holds something that is not such a world, or cannot be written.
    """
    sizes = {"users": users, "tracks": tracks, "plays": plays, "seed": seed}
    _check_sizes(**sizes)
    target = out.resolve()
    try:
        files.recover(target)
        _check_target(target, out)
        with files.replacing_folder(target) as folder:
            with timed("synth.world"):
                made = make_world(**sizes)
            with timed("synth.tables"):
                _write_blocks(_track_blocks(made, generator(seed, 3)), folder / "tracks.parquet")
                pq.write_table(_user_table(made, generator(seed, 4)), folder / "users.parquet")
            duration_ms = pq.read_table(folder / "tracks.parquet", columns=["duration_ms"])["duration_ms"].to_numpy()
            duration_ms = duration_ms.astype(np.int32)
            with timed("synth.plays"), pq.ParquetWriter(folder / "plays.parquet", _PLAYS_SCHEMA) as writer:
                written = 0
                for number, block in enumerate(listening.blocks(made)):
                    drawn = listening.draw_plays(made, block, generator(seed, 5, number), duration_ms)
                    columns = [_user_ids(drawn.user), _track_ids(drawn.track), drawn.count, drawn.time]
                    columns += [drawn.session, drawn.skipped, drawn.completed, drawn.ms_played]
                    table = pa.table(columns, schema=_PLAYS_SCHEMA)
                    writer.write_table(table, row_group_size=len(table))
                    written += len(table)
                    on_plays(written)
            with (folder / "world.json").open("w", encoding="utf-8") as file:
                file.writelines(_describe(made, sizes))
    except OSError as error:
        raise DataError(complain(out, " ".join(str(error).split()), "a place with room for a world")) from None


def _check_sizes(users: int, tracks: int, plays: int, seed: int) -> None:
    for name, found in (("users", users), ("tracks", tracks), ("plays", plays)):
        if not 1 <= found <= MOST[name]:
            raise ConfigError(complain(name, f"{found:,}", f"1 to {MOST[name]:,}"))
    if plays < users:
        raise ConfigError(complain("plays", f"{plays:,}", f"at least one per user ({users:,})"))
    if not 0 <= seed < 2**63:
        raise ConfigError(complain("seed", str(seed), "0 to 2^63 - 1"))


def _check_target(target: Path, out: Path) -> None:
    """Refuses a `target`, `out` by name, that is neither free, nor empty, nor a world written before."""
    expected = "a new or empty folder, or a world made by `lhydra synth` and nothing else"
    if not target.exists():
        return
    if not target.is_dir():
        raise DataError(complain(out, "a file", expected))
    names = set(os.listdir(target))
    if others := sorted(names - FILES):
        raise DataError(complain(out, f"a folder that holds {others[0]}", expected))
    try:
        made_by = parse_json((target / "world.json").read_bytes())["made_by"]
    except (OSError, ValueError, KeyError, TypeError):
        made_by = None
    if names and made_by != "lhydra synth":
        raise DataError(complain(out, "a folder without the world.json of one", expected))


def _write_blocks(blocks: Iterator[pa.Table], path: Path) -> None:
    """Writes tables of one schema, at least one, to the Parquet file `path`, a row group each."""
    first = next(blocks)
    with pq.ParquetWriter(path, first.schema) as writer:
        for block in chain((first,), blocks):
            writer.write_table(block, row_group_size=len(block))


def _describe(made: World, sizes: dict[str, int]) -> Iterator[str]:
    """Yields the text of world.json in pieces, a line per entry: everything that the tables hide."""
    catalog, audience = made.catalog, made.audience
    new_tracks, new_users = np.flatnonzero(catalog.release_day), np.flatnonzero(audience.arrival_day)
    noisy = np.flatnonzero(audience.noisy)

    def by_genre(names: tuple[str, ...], logits: npt.NDArray[np.float64]) -> dict[str, dict[str, float]]:
        rows = logits.round(4).tolist()
        return {name: dict(zip(scenes.GENRES, row, strict=True)) for name, row in zip(names, rows, strict=True)}

    entries: dict[str, Any] = {
        "made_by": "lhydra synth",
        "format": FORMAT,
        "lhydra_version": __version__,
        "arguments": sizes,
        "window": {"start": world.START, "end": world.START + world.DAYS * 86_400, "epochs": world.EPOCHS},
        "counts": {"new_tracks": len(new_tracks), "new_users": len(new_users), "noisy_users": len(noisy)},
        "popularity": {"zipf": world.ZIPF, "shift": world.ZIPF_SHIFT},
        "plays_from": {"repeat": listening.REPEAT, "loyalty": listening.LOYAL, "new_release": listening.FRESH},
        "sessions": {"mean_plays": listening.SESSION_PLAYS, "pause_s": listening.PAUSE, "theme": listening.THEME},
        "returns": {"decay": listening.RETURN_DECAY, "youngest_s": listening.YOUNGEST_RETURN},
        "skips": {**listening.SKIPPED, "stopped": listening.STOPPED},
        "strengths": {"personal": world.PERSONAL, "age": world.AGE, "place": world.PLACE, "mood": world.MOOD},
        "latent_dims": world.LATENT,
        "drift_degrees": round(float(np.degrees(world.DRIFT)), 4),
        "missing": MISSING,
        "styles": [
            {"name": name, "genre": scenes.GENRES[genre], "year": int(year), "mood": float(mood)}
            for name, genre, year, mood in zip(
                scenes.STYLES, scenes.STYLE_GENRE, scenes.STYLE_YEAR, scenes.STYLE_MOOD, strict=True
            )
        ],
        "style_vectors": made.style_vectors.astype(np.float64).round(4).tolist(),
        "country_genre_logits": by_genre(scenes.COUNTRIES, world.PLACE * made.place_genre),
        "gender_genre_logits": by_genre(scenes.GENDERS, made.gender_genre),
        "noisy_users": _user_ids(noisy).to_pylist(),
    }
    yield "{\n" + "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in entries.items())
    yield '"new_users": '
    yield from _days(_user_ids, new_users, audience.arrival_day)
    yield ',\n"new_tracks": '
    yield from _days(_track_ids, new_tracks, catalog.release_day)
    yield "\n}\n"


def _days(ids: Callable[[I64], pa.StringArray], positions: I64, day: npt.NDArray[np.int32]) -> Iterator[str]:
    """Yields in pieces the JSON object of the ids at `positions`, (m,), with the time of their day; day: (n,)."""
    yield "{"
    for start in range(0, len(positions), BLOCK_TRACKS):
        own = positions[start : start + BLOCK_TRACKS]
        times = (world.START + day[own].astype(np.int64) * 86_400).tolist()
        yield ", " * (start > 0) + json.dumps(dict(zip(ids(own).to_pylist(), times, strict=True)))[1:-1]
    yield "}"


def _track_blocks(made: World, rng: np.random.Generator) -> Iterator[pa.Table]:
    """Yields the tracks table, BLOCK_TRACKS rows at a time; audio features follow from genre, pulse and brightness."""
    catalog, n = made.catalog, len(made.catalog.style)
    streams = _streams(_TRACK_DRAWS, n, rng)
    titles, genres = every_title(), pa.array(scenes.GENRES)
    for start in range(0, n, BLOCK_TRACKS):
        own = slice(start, min(start + BLOCK_TRACKS, n))
        drawn = {name: draw(streams[name], own.stop - start) for name, draw in _TRACK_DRAWS.items()}
        style, pulse, bright = catalog.style[own], catalog.pulse[own], catalog.brightness[own]
        genre = scenes.STYLE_GENRE[style]
        groove, beat, talk, instrumental, explicit = scenes.GENRE_SOUND[genre].T
        energy = _logistic(1.3 * pulse + drawn["energy"])
        year = np.rint(scenes.STYLE_YEAR[style] + drawn["year"]).clip(_OLDEST, 2022)
        released = catalog.release_day[own]
        year = np.where(released > 0, 2023 + (released >= 365), year).astype(np.int64)
        columns = {
            "track_id": _track_ids(np.arange(own.start, own.stop)),
            "name": titles.take(pa.array(catalog.title[own])),
            "artist": catalog.artist_names.take(pa.array(catalog.artist[own])),
            "genre": genres.take(pa.array(genre)),
            "tags": _tags(style, catalog.mood[own], year, drawn["tags kept"], drawn["tags wrong"]),
            "year": pa.array(year),
            "duration_ms": pa.array(np.exp(12.3 + drawn["duration_ms"]).clip(60_000, 900_000).astype(np.int64)),
            "danceability": _rounded(_logistic(0.7 * groove + 0.4 * bright + drawn["danceability"])),
            "energy": _rounded(energy),
            "key": pa.array(drawn["key"]),
            "loudness": _rounded((-15 + 11 * energy + drawn["loudness"]).clip(-40, 0)),
            "mode": pa.array((drawn["mode"] < _logistic(0.4 + 0.6 * bright)).astype(np.int64)),
            "speechiness": _rounded((talk * np.exp(drawn["speechiness"])).clip(0.02, 0.95)),
            "acousticness": _rounded(_logistic(-1.8 * pulse - 0.3 + drawn["acousticness"])),
            "instrumentalness": _rounded(_logistic(instrumental + drawn["instrumentalness"])),
            "liveness": _rounded((0.16 * np.exp(drawn["liveness"])).clip(0.02, 0.98)),
            "valence": _rounded(_logistic(bright + drawn["valence"])),
            "tempo": _rounded((beat + 12 * pulse + drawn["tempo"]).clip(50, 220)),
            "time_signature": pa.array(drawn["time_signature"]),
            "explicit": pa.array(drawn["explicit"] < explicit),
        }
        gone = {name: drawn[f"no {name}"] for name in ("genre", "tags", "year")}
        yield pa.table(_without(columns, gone))


def _streams(draws: Mapping[str, Draw], n: int, rng: np.random.Generator) -> dict[str, np.random.Generator]:
    """Returns a generator for each of `draws` that stands where the draw of its `n` rows begins in `rng`.

    Whole columns come one after the other in the stream, so that a world does not depend on the size of its blocks.
    Where a column ends is known only by drawing it (a normal number takes as many bits as it needs); each is
    drawn twice, then, and none is ever held.
    """
    streams = {}
    for name, draw in draws.items():
        streams[name] = deepcopy(rng)
        for start in range(0, n, BLOCK_TRACKS):
            draw(rng, min(BLOCK_TRACKS, n - start))
    return streams


def _tags(style: Ints, mood: Ints, year: Ints, kept: npt.NDArray[np.bool_], wrong: Ints) -> pa.StringArray:
    """Returns style, genre, mood and decade as '|'-separated tags, each sometimes left out, now and then a wrong style.

    style, mood, year, wrong: (n,); kept: (n, 5), which of the four and whether the wrong one.
    """
    usual = kept[:, :4] @ (1 << np.arange(4))
    number = ((style * len(scenes.MOODS) + mood) * len(_DECADES) + (year - _OLDEST) // 10) * 16 + usual
    astray = kept[:, 4] & ~(kept[:, 0] & (wrong == style))  # no tag stands there twice
    other = np.where(astray, 1 + wrong + len(scenes.STYLES) * (usual > 0), 0)
    others = pa.array(["", *scenes.STYLES, *(f"|{style}" for style in scenes.STYLES)])
    return pc.binary_join_element_wise(_usual_tags().take(pa.array(number)), others.take(pa.array(other)), "")


@cache
def _usual_tags() -> pa.StringArray:
    """Returns the tags of each style, mood and decade, sixteen times: each of the four tags left out or kept."""
    found = []
    for style, mood, decade in product(range(len(scenes.STYLES)), scenes.MOODS, _DECADES):
        words = (scenes.STYLES[style], scenes.GENRES[scenes.STYLE_GENRE[style]].lower(), mood, f"{decade}s")
        found += ["|".join(word for k, word in enumerate(words) if usual >> k & 1) for usual in range(16)]
    return pa.array(found)


def _user_table(made: World, rng: np.random.Generator) -> pa.Table:
    audience = made.audience
    n = len(audience.age)
    columns = {
        "user_id": _user_ids(np.arange(n)),
        "age": pa.array(audience.age.astype(np.int64)),
        "gender": pa.array(scenes.GENDERS).take(pa.array(audience.gender)),
        "region": pa.array(scenes.REGIONS).take(pa.array(scenes.COUNTRY_REGION[audience.country])),
        "country": pa.array(scenes.COUNTRIES).take(pa.array(audience.country)),
    }
    return pa.table(_without(columns, {name: rng.random(n) < MISSING[name] for name in ("age", "gender")}))


def _without(columns: dict[str, pa.Array], gone: Mapping[str, npt.NDArray[np.bool_]]) -> dict[str, pa.Array]:
    """Returns `columns` with null where `gone`, (n,) for some of them, says so."""
    return columns | {name: pc.if_else(pa.array(mask), None, columns[name]) for name, mask in gone.items()}


def _user_ids(positions: Ints) -> pa.StringArray:
    return _ids("U", positions, 6)


def _track_ids(positions: Ints) -> pa.StringArray:
    return _ids("T", positions, 7)


def _ids(letter: str, positions: Ints, width: int) -> pa.StringArray:
    digits = pc.utf8_lpad(pa.array(positions).cast(pa.string()), width, "0")
    return pc.binary_join_element_wise(letter, digits, "")


def _rounded(values: npt.NDArray[np.float64]) -> pa.Array:
    return pa.array(values.round(4))


def _logistic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-x)))
