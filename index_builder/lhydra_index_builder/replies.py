"""The parts of replies: every track as the API sends it, packed when the bundle is made so that a reply only joins."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.bundle.arrays import GrowingArrays
from lhydra.bundle.embedding import SHARD
from lhydra.bundle.strings import StringColumn
from lhydra.timing import timed
from lhydra_protos.v1.wire import track_part

REPLIES = "replies"


def packed(names: StringColumn, titles: StringColumn, artists: StringColumn) -> dict[str, npt.NDArray[Any]]:
    """Returns the parts of n tracks.

    Args:
        names: n track ids.
        titles: n titles, empty where unknown.
        artists: n names of artists, empty where unknown.

    Returns:
        `replies`, their bytes back to back, uint8, and `replies_lengths`, (n,) int64.
    """
    parts = [track_part(*texts) for texts in zip(names.raw(), titles.raw(), artists.raw(), strict=True)]
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    return {REPLIES: np.frombuffer(b"".join(parts), np.uint8), f"{REPLIES}_lengths": lengths}


@timed("rebuild.replies")
def write(names: StringColumn, titles: StringColumn, artists: StringColumn, folder: Path) -> None:
    """Writes the parts of all tracks of a catalog.

    Args:
        names: n track ids.
        titles: n titles, empty where unknown.
        artists: n names of artists, empty where unknown.
        folder: of the bundle.
    """
    with GrowingArrays(folder) as growing:
        for start in range(0, max(1, len(names)), SHARD):
            some = packed(*(texts.part(start, start + SHARD) for texts in (names, titles, artists)))
            growing.append(REPLIES, some[REPLIES])
            growing.append_lengths(f"{REPLIES}_offsets", some[f"{REPLIES}_lengths"])
