"""The tables of `lhydra.features.sequences` on disk, in a model by number of the track id, in a bundle by row."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from lhydra.bundle.arrays import are_sealed, check_lists, check_rows, column
from lhydra.domain import I64
from lhydra.errors import BundleCorrupt, complain
from lhydra.features.histories import offsets_of
from lhydra.features.sequences import NO_SEQUENCES, Sequences

_PARTS = {
    "sequence_offsets": "int32",
    "sequence_rows": "int32",
    "sequence_weights": "float16",
    "sequence_damping": "float16",
    "sequence_shares": "float32",
}
FILES = tuple(f"{name}.npy" for name in _PARTS)


def names_in(folder: Path) -> list[str]:
    """Names the files.

    Args:
        folder: of a model or a bundle.

    Returns:
        Their names, none where the model knows nothing of what comes next.
    """
    return list(FILES) if (folder / FILES[0]).is_file() else []


def save(folder: Path, sequences: Sequences) -> None:
    """Writes the tables.

    Args:
        folder: where the files are written.
        sequences: the tables.
    """
    for name in _PARTS:
        np.save(folder / f"{name}.npy", getattr(sequences, name.removeprefix("sequence_")))


def open_sequences(folder: Path, sealed: Collection[str]) -> Sequences:
    """Maps the tables.

    Args:
        folder: of a model or a bundle.
        sealed: names of the files that its manifest knows.

    Returns:
        The tables; empty ones where there are none.

    Raises:
        BundleCorrupt: a file is missing, of another type, does not fit the others, or names no tracks.
    """
    if not are_sealed(folder, FILES, sealed):
        return NO_SEQUENCES
    arrays = (column(folder / f"{name}.npy", dtype) for name, dtype in _PARTS.items())
    offsets, rows, weights, damping, shares = arrays
    for name, found, expected in (
        ("sequence_offsets", len(offsets), 2 * len(damping) + 1),
        ("sequence_weights", len(weights), len(rows)),
        ("sequence_shares", len(shares), len(NO_SEQUENCES.shares)),
    ):
        if found != expected:
            raise BundleCorrupt(complain(folder / f"{name}.npy", f"{found} entries", f"{expected}"))
    check_lists(folder / FILES[0], len(rows))
    check_rows(folder / FILES[1], len(damping))
    if not ((shares >= 0) & (shares <= 1)).all():
        raise BundleCorrupt(complain(folder / FILES[4], f"shares of {shares.tolist()}", "each of 0 to 1"))
    return Sequences(offsets, rows, weights, damping, shares)


def rearranged(sequences: Sequences, to: I64, n: int) -> Sequences:
    """Names tracks by other rows.

    Args:
        sequences: tables of m tracks.
        to: (m,) int64 the new row of each, -1 for tracks that are left out.
        n: how many rows there are then; those that nothing goes to have no others.

    Returns:
        The tables of n tracks.
    """
    damping = np.zeros(n, np.float16)
    damping[to[to >= 0]] = sequences.damping[to >= 0]
    source = np.concatenate([to, np.where(to >= 0, to + n, -1)])  # both tables
    owner, rows = np.repeat(source, np.diff(sequences.offsets)), to[sequences.rows]
    kept = np.flatnonzero((owner >= 0) & (rows >= 0))
    order = kept[np.argsort(owner[kept], kind="stable")]
    offsets = offsets_of(np.bincount(owner[kept], minlength=2 * n)).astype(np.int32)
    weights = np.asarray(sequences.weights)[order]
    return Sequences(offsets, rows[order].astype(np.int32), weights, damping, sequences.shares)
