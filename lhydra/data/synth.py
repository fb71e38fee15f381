"""Writes the synthetic listening world as a *tables* source: plays, tracks and users in Parquet, and world.json.

Plays are drawn and written block by block, a row group each, so memory does not grow with their number.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lhydra import __version__
from lhydra.data import listening, scenes, world
from lhydra.data.world import World, generator, make_world
from lhydra.domain import I64
from lhydra.errors import ConfigError, DataError, complain
from lhydra.timing import timed

FORMAT = 1
FILES = {"plays.parquet", "tracks.parquet", "users.parquet", "world.json"}
MOST = {"users": 10**7, "tracks": 10**7, "plays": 10**9}  # beyond, more memory than a machine has
MISSING = {"genre": 0.04, "tags": 0.03, "year": 0.03, "age": 0.04, "gender": 0.02}
_PLAYS_SCHEMA = pa.schema(
    [("user_id", pa.string()), ("track_id", pa.string()), ("playcount", pa.int32()), ("timestamp", pa.int64())]
)


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
    on_plays: told how many rows of plays are written so far, after each block.

    Raises:
        ConfigError: sizes or a seed that make no world.
        DataError: `out` holds something that is not such a world, or cannot be written.
    """
    sizes = {"users": users, "tracks": tracks, "plays": plays, "seed": seed}
    _check_sizes(**sizes)
    try:
        with _replacing(out) as folder:
            with timed("synth.world"):
                made = make_world(**sizes)
            track_ids, user_ids = _ids("T", tracks, 7), _ids("U", users, 6)
            with timed("synth.tables"):
                pq.write_table(_track_table(made, track_ids, generator(seed, 3)), folder / "tracks.parquet")
                pq.write_table(_user_table(made, user_ids, generator(seed, 4)), folder / "users.parquet")
            with timed("synth.plays"), pq.ParquetWriter(folder / "plays.parquet", _PLAYS_SCHEMA) as writer:
                written = 0
                for number, block in enumerate(listening.blocks(made)):
                    drawn = listening.draw_plays(made, block, generator(seed, 5, number))
                    ids = [user_ids.take(pa.array(drawn.user)), track_ids.take(pa.array(drawn.track))]
                    table = pa.table([*ids, drawn.count, drawn.time], schema=_PLAYS_SCHEMA)
                    writer.write_table(table, row_group_size=len(table))
                    written += len(table)
                    on_plays(written)
            (folder / "world.json").write_text(_describe(made, sizes, track_ids, user_ids), encoding="utf-8")
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


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Gives a temporary sibling of `out` to write into, renamed to `out` in the end, removed on any error."""
    target = out.resolve()
    replace = _holds_world(target, out)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    old = staging.with_name(f"{staging.name}.old")
    staging.mkdir()
    try:
        yield staging
        if replace:
            target.rename(old)
        try:
            staging.rename(target)
        except BaseException:
            if replace:
                old.rename(target)
            raise
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _holds_world(target: Path, out: Path) -> bool:
    """Whether `target` holds a world written before; False where there is nothing. DataError for anything else."""
    expected = "a new or empty folder, or a world made by `lhydra synth` and nothing else"
    if not target.exists():
        return False
    if not target.is_dir():
        raise DataError(complain(out, "a file", expected))
    names = set(os.listdir(target))
    if not names:
        return False
    if others := sorted(names - FILES):
        raise DataError(complain(out, f"a folder that holds {others[0]}", expected))
    try:
        made_by = json.loads((target / "world.json").read_text(encoding="utf-8"))["made_by"]
    except (OSError, ValueError, KeyError, TypeError):
        made_by = None
    if made_by != "lhydra synth":
        raise DataError(complain(out, "a folder without the world.json of one", expected))
    return True


def _describe(made: World, sizes: dict[str, int], track_ids: pa.Array, user_ids: pa.Array) -> str:
    """The text of world.json, a line per entry: everything that the tables hide."""
    catalog, audience = made.catalog, made.audience
    new_tracks, new_users = np.flatnonzero(catalog.release_day), np.flatnonzero(audience.arrival_day)
    noisy = np.flatnonzero(audience.noisy)

    def when(ids: pa.Array, positions: I64, day: npt.NDArray[np.int32]) -> dict[str, int]:
        times = (world.START + day[positions].astype(np.int64) * 86_400).tolist()
        return dict(zip(ids.take(pa.array(positions)).to_pylist(), times, strict=True))

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
        "noisy_users": user_ids.take(pa.array(noisy)).to_pylist(),
        "new_users": when(user_ids, new_users, audience.arrival_day),
        "new_tracks": when(track_ids, new_tracks, catalog.release_day),
    }
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _track_table(made: World, ids: pa.Array, rng: np.random.Generator) -> pa.Table:
    """The tracks table; audio features follow from genre, pulse and brightness, with noise."""
    catalog, n = made.catalog, len(ids)
    genre = scenes.STYLE_GENRE[catalog.style]
    groove, beat, talk, instrumental, explicit = scenes.GENRE_SOUND[genre].T
    pulse, bright = catalog.pulse, catalog.brightness

    def noise(scale: float) -> npt.NDArray[np.float64]:
        return scale * rng.normal(size=n)

    energy = _logistic(1.3 * pulse + noise(0.3))
    year = np.rint(scenes.STYLE_YEAR[catalog.style] + noise(5)).clip(1940, 2022)
    year = np.where(catalog.release_day > 0, 2023 + (catalog.release_day >= 365), year).astype(np.int64)
    columns = {
        "track_id": ids,
        "name": pa.array(catalog.titles),
        "artist": pa.array(catalog.artist_names).take(pa.array(catalog.artist)),
        "genre": pa.array(scenes.GENRES).take(pa.array(genre)),
        "tags": pa.array(_tags(made, year, rng)),
        "year": pa.array(year),
        "duration_ms": pa.array(np.exp(12.3 + noise(0.25)).clip(60_000, 900_000).astype(np.int64)),
        "danceability": _rounded(_logistic(0.7 * groove + 0.4 * bright + noise(0.4))),
        "energy": _rounded(energy),
        "key": pa.array(rng.integers(12, size=n)),
        "loudness": _rounded((-15 + 11 * energy + noise(1.5)).clip(-40, 0)),
        "mode": pa.array((rng.random(n) < _logistic(0.4 + 0.6 * bright)).astype(np.int64)),
        "speechiness": _rounded((talk * np.exp(noise(0.4))).clip(0.02, 0.95)),
        "acousticness": _rounded(_logistic(-1.8 * pulse - 0.3 + noise(0.7))),
        "instrumentalness": _rounded(_logistic(instrumental + noise(1.0))),
        "liveness": _rounded((0.16 * np.exp(noise(0.5))).clip(0.02, 0.98)),
        "valence": _rounded(_logistic(bright + noise(0.25))),
        "tempo": _rounded((beat + 12 * pulse + noise(14)).clip(50, 220)),
        "time_signature": pa.array(rng.choice([3, 4, 5], size=n, p=[0.08, 0.9, 0.02])),
        "explicit": pa.array(rng.random(n) < explicit),
    }
    return pa.table(_some_missing(columns, rng))


def _tags(made: World, year: I64, rng: np.random.Generator) -> list[str]:
    """Style, genre, mood and decade as '|'-separated tags, each sometimes left out, now and then a wrong one."""
    n, styles = len(year), len(scenes.STYLES)
    kept = (rng.random((n, 5)) < (0.9, 0.7, 0.7, 0.5, 0.1)).tolist()
    wrong = rng.integers(styles, size=n).tolist()
    own = zip(made.catalog.style.tolist(), made.catalog.mood.tolist(), year.tolist(), wrong, strict=True)
    found = []
    for keep, (style, mood, born, other) in zip(kept, own, strict=True):
        genre = scenes.GENRES[scenes.STYLE_GENRE[style]].lower()
        words = (scenes.STYLES[style], genre, scenes.MOODS[mood], f"{born // 10 * 10}s", scenes.STYLES[other])
        found.append("|".join(dict.fromkeys(word for word, wanted in zip(words, keep, strict=True) if wanted)))
    return found


def _user_table(made: World, ids: pa.Array, rng: np.random.Generator) -> pa.Table:
    audience = made.audience
    columns = {
        "user_id": ids,
        "age": pa.array(audience.age.astype(np.int64)),
        "gender": pa.array(scenes.GENDERS).take(pa.array(audience.gender)),
        "region": pa.array(scenes.REGIONS).take(pa.array(scenes.COUNTRY_REGION[audience.country])),
        "country": pa.array(scenes.COUNTRIES).take(pa.array(audience.country)),
    }
    return pa.table(_some_missing(columns, rng))


def _some_missing(columns: dict[str, pa.Array], rng: np.random.Generator) -> dict[str, pa.Array]:
    """`columns` with the shares of MISSING taken out."""

    def thinned(name: str, values: pa.Array) -> pa.Array:
        return pc.if_else(pa.array(rng.random(len(values)) < MISSING[name]), None, values)

    return {name: thinned(name, values) if name in MISSING else values for name, values in columns.items()}


def _ids(letter: str, n: int, width: int) -> pa.Array:
    digits = pc.utf8_lpad(pa.array(np.arange(n)).cast(pa.string()), width, "0")
    return pc.binary_join_element_wise(letter, digits, "")


def _rounded(values: npt.NDArray[np.float64]) -> pa.Array:
    return pa.array(values.round(4))


def _logistic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-x)))
