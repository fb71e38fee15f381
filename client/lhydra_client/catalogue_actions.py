"""`lhydra query tracks` and `search`: what the catalogue says of tracks, for people and for machines."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lhydra_client.catalogue import FoundTracks
    from lhydra_client.client import Client


def configure(action: Callable[[str, str], argparse.ArgumentParser], whole: Callable[[str], int]) -> None:
    """Adds the actions.

    Args:
        action: makes the parser of one, of its name and a sentence.
        whole: reads a whole number.
    """
    tracks = action("tracks", "What the catalogue says of tracks.")
    tracks.add_argument("tracks", metavar="TRACK_ID", nargs="+")
    search = action("search", "Tracks by words of their titles and artists, also words half typed.")
    search.add_argument("words", metavar="WORD", nargs="+")
    search.add_argument("--k", type=whole, default=10, help="how many tracks (default: 10)")
    search.add_argument("--genre", action="append", default=[], metavar="NAME", help="only tracks of this genre")
    search.add_argument("--artist", action="append", default=[], metavar="NAME", help="only tracks by this artist")


def _tracks(client: "Client", args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    return _shown(client.tracks(args.tracks), ("of this bundle",))


def _search(client: "Client", args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from lhydra_client.requests import Filter

    wanted = Filter(args.genre, args.artist) if args.genre or args.artist else None
    answer = client.search(" ".join(args.words), args.k, filter=wanted)
    return _shown(answer, (f"the best of {answer.found:,}" if answer.found > len(answer.tracks) else "all there are",))


def _shown(answer: "FoundTracks", notes: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    from lhydra_client.table import clean, score, table

    n = len(answer.tracks)
    lines = [clean(" · ".join([f"{n} track{'' if n == 1 else 's'}", *notes, f"bundle {answer.bundle_id}"]))]
    lines += [clean(f"unknown: {track}") for track in answer.unknown_ids]
    rows = [
        (one.title, one.artist, score(one.share), "removed" if one.removed else "", one.track_id)
        for one in answer.tracks
    ]
    if rows:
        lines.append(table(("title", "artist", "share", "", "track id"), rows, right=(2,)))
    return "\n".join(lines), dataclasses.asdict(answer)


ACTIONS = {"tracks": _tracks, "search": _search}
