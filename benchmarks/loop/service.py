"""The service that listeners use: a server on a store, asked and told through the client."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.loop.listeners import Draws, K, Past, Taste, best_list, expected_liking, first_day, listen
from lhydra.data.world import World
from lhydra_client import Client, ClientError, Play, recommend_request

LEARNING, NEVER = TWINS = "learning", "never"
CALL_PLAYS = 1_000  # of a RecordPlays
TIMEOUT_S = 60.0


class Played(NamedTuple):
    """A play, as the drill keeps it. place: in its list, 0 for one's own choice. request_id: of that list's answer."""

    week: int
    user: int
    session: int
    track: int
    time: int
    place: int
    request_id: str


class Shown(NamedTuple):
    """A list that was shown, by the world's truth. liking: expected; best: of the best list that there was."""

    week: int
    user: int
    session: int
    liking: float
    best: float


def user_id(user: int) -> str:
    """Returns the id of a listener.

    Args:
        user: position in the world.

    Returns:
        As `lhydra synth` has it.
    """
    return f"U{user:06}"


def track_id(track: int) -> str:
    """Returns the id of a track.

    Args:
        track: position in the world.

    Returns:
        As `lhydra synth` has it.
    """
    return f"T{track:07}"


def serve_week(
    client: Client, taste: Taste, draws: Draws, past: Sequence[Past], week: int
) -> tuple[list[Played], list[Shown]]:
    """Lets everybody listen for a week: each session asks for a list, plays, and records what it played.

    Args:
        client: of the server.
        taste: of the week.
        draws: of the week.
        past: of each listener; grows.
        week: of the service.

    Returns:
        The plays, and the lists that they came from.

    Raises:
        RuntimeError: an answer that is none, or breaks a promise.
    """
    played: list[Played] = []
    shown: list[Shown] = []
    for session in range(int(draws.sessions.max(initial=0))):
        users = np.flatnonzero(draws.sessions > session).tolist()
        fresh: list[Played] = []
        for user, (tracks, request_id) in zip(users, _lists(client, draws, users, session), strict=True):
            if not len(set(tracks) - set(past[user].tracks)) == len(tracks) == K:
                raise RuntimeError(f"{user_id(user)}: found {tracks}, expected {K} different tracks not heard before")
            best = best_list(taste, user, past[user])
            liking = taste.liking[user]
            shown.append(
                Shown(week, user, session, expected_liking(liking, tracks), expected_liking(liking, best.tolist()))
            )
            plays = listen(taste, draws, user, session, tracks, past[user])
            past[user].add(plays)
            fresh += [Played(week, user, session, *play, request_id if play.place else "") for play in plays]
        _record(client, fresh)
        played += fresh
    return played, shown


def _lists(client: Client, draws: Draws, users: Sequence[int], session: int) -> Iterator[tuple[list[int], str]]:
    """Asks for a list at the moment that each session begins."""
    requests = [recommend_request(user_id(user), K, now_s=int(draws.start[user, session])) for user in users]
    for user, answer in zip(users, client.recommend_many(requests), strict=True):
        if isinstance(answer, ClientError) or answer.degraded:
            raise RuntimeError(f"{user_id(user)}: found {answer}, expected a whole answer")
        yield [int(track.track_id[1:]) for track in answer.tracks], answer.request_id


def _record(client: Client, played: Sequence[Played]) -> None:
    plays = [
        Play(
            user_id(one.user),
            track_id(one.track),
            one.time,
            event_id=f"{one.user}-{one.time}",
            request_id=one.request_id,
        )
        for one in played
    ]
    for start in range(0, len(plays), CALL_PLAYS):
        client.record_plays(plays[start : start + CALL_PLAYS])  # one that gRPC repeats counts its plays once


def write_source(folder: Path, world: World, past: Sequence[Past]) -> Path:
    """Writes what is known when the service begins: plays of the weeks before, tracks released by then, all users.

    Args:
        folder: with `world`, made by `lhydra synth`.
        world: the same.
        past: of each listener.

    Returns:
        The source.
    """
    source = folder / "source"
    source.mkdir(exist_ok=True)
    columns = {
        "user_id": [user_id(user) for user, own in enumerate(past) for _ in own.tracks],
        "track_id": [track_id(track) for own in past for track in own.tracks],
        "timestamp": [time for own in past for time in own.times],
    }
    pq.write_table(pa.table(columns), source / "plays.parquet")
    shutil.copyfile(folder / "world" / "users.parquet", source / "users.parquet")
    write_released(folder, world, 0, source / "tracks.parquet")
    return source


def write_released(folder: Path, world: World, week: int, out: Path) -> None:
    """Writes the tracks that are released when a week begins.

    Args:
        folder: with `world`, made by `lhydra synth`.
        world: the same.
        week: of the service.
        out: the Parquet file.
    """
    tracks = pq.read_table(folder / "world" / "tracks.parquet")
    pq.write_table(tracks.filter(pa.array(world.catalog.release_day <= first_day(week))), out)
