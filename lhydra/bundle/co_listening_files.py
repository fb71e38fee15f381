"""What `lhydra.features.co_listening` keeps on disk in a bundle, by row; a bundle without it retrieves by vector alone.

A model holds the table that it is made of, and the share in what was chosen.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.bundle.arrays import MAX_NARROW, are_sealed, check_lists, check_rows, column
from lhydra.errors import BundleCorrupt, complain
from lhydra.features.co_listening import NO_CO_LISTENING, CoListening

_PARTS = {
    "co_listening_offsets": ("int32", "int64"),  # int64 in bundles of before, and beyond MAX_NARROW
    "co_listening_rows": ("int32",),
    "co_listening_weights": ("float16",),
    "co_listening_share": ("float32",),
}
FILES = tuple(f"{name}.npy" for name in _PARTS)


def names_in(folder: Path) -> list[str]:
    """Names the files.

    Args:
        folder: of a bundle.

    Returns:
        Their names, none where co-listening is no source of candidates.
    """
    return list(FILES) if (folder / FILES[0]).is_file() else []


def save(folder: Path, co_listening: CoListening) -> None:
    """Writes the arrays; nothing where there are none.

    Args:
        folder: where the files are written.
        co_listening: by row of the catalog.
    """
    if len(co_listening):
        offsets = co_listening.offsets.astype(np.int32 if len(co_listening.rows) <= MAX_NARROW else np.int64)
        arrays: tuple[npt.NDArray[Any], ...] = offsets, co_listening.rows, co_listening.weights, co_listening.share
        for file, array in zip(FILES, arrays, strict=True):
            np.save(folder / file, array)


def open_co_listening(folder: Path, sealed: Collection[str]) -> CoListening:
    """Maps the arrays.

    Args:
        folder: of a bundle.
        sealed: names of the files that its manifest knows.

    Returns:
        What was played to candidates; nothing where there are no such files.

    Raises:
        BundleCorrupt: a file is missing, of another type, does not fit the others, or names no tracks.
    """
    if not are_sealed(folder, FILES, sealed):
        return NO_CO_LISTENING
    offsets, rows, weights, share = (column(folder / f"{name}.npy", *dtypes) for name, dtypes in _PARTS.items())
    for name, found, expected in (
        ("co_listening_weights", len(weights), len(rows)),
        ("co_listening_share", len(share), 1),
    ):
        if found != expected:
            raise BundleCorrupt(complain(folder / f"{name}.npy", f"{found} entries", f"{expected}"))
    check_lists(folder / FILES[0], len(rows))
    check_rows(folder / FILES[1], len(offsets) - 1)
    if not 0 <= share[0] <= 1:
        raise BundleCorrupt(complain(folder / FILES[3], f"a share of {share[0]:g}", "one of 0 to 1"))
    return CoListening(offsets, rows, weights, share)
