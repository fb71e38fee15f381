"""What `lhydra prepare` makes of an export, in plain Python, to be compared with an independent count."""

import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

import pytest

from lhydra import cli
from lhydra.data.dataset import Dataset

ALL_TRAIN = ("--split", "random", "--valid", "0", "--test", "0")  # any plays can be divided so
SAMPLES = Path(__file__).parent / "formats" / "samples"


class Heard(NamedTuple):
    """One play; what is unknown is -1, a time 0."""

    user: str
    track: str
    time: int
    skipped: int = -1
    completed: int = -1
    ms: int = -1
    position: int = -1


def heard(dataset: Path) -> list[Heard]:
    """The plays of a dataset, sorted."""
    opened = Dataset.open(dataset)
    users, tracks, events = opened.users["user_id"].to_pylist(), opened.tracks["track_id"].to_pylist(), opened.events
    columns = (events.time, events.skipped, events.completed, events.ms_played, events.position)
    values = zip(*(column.tolist() for column in columns), strict=True)
    ids = zip(events.user.tolist(), events.track.tolist(), strict=True)
    return sorted(Heard(users[user], tracks[track], *row) for (user, track), row in zip(ids, values, strict=True))


def prepare(capsys: pytest.CaptureFixture[str], source: Path, out: Path, *flags: str) -> str:
    """Runs `lhydra prepare` and returns what it printed, or the one line of its refusal."""
    code = cli.main(["prepare", str(source), str(out), *flags])
    printed = capsys.readouterr()
    assert code == (0 if printed.out else 1), printed.err
    if code:
        assert not out.exists()
        return printed.err.splitlines()[-1]
    return printed.out


def song_id(artist: str, title: str) -> str:
    """The id of a song without one, as the documentation says, for names in Latin script or without accents."""

    def plain(name: str) -> str:
        name = re.sub(r"\s*\(feat\..*?\)", "", name).casefold()
        marked = unicodedata.normalize("NFD", name) if re.search("[a-zà-ÿ]", name) else name
        bare = "".join(c for c in marked if not unicodedata.combining(c))
        return " ".join(re.sub(r"[^\w]|_", " ", bare.replace("'", "")).split())

    return f"{plain(artist)} - {plain(title)}"
