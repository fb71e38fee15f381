"""The map of a catalogue: each track as a point of a plane, so that tracks alike lie close together.

    map_pca.npy  or  map_umap.npy   (n, 2) uint16, x and y by row: 4 bytes a track

The name of the file tells how the vectors were projected. Bundles of before have none.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lhydra.bundle.arrays import mapped
from lhydra.errors import BundleCorrupt, complain

FILES = {"map_pca.npy": "pca", "map_umap.npy": "umap"}


@dataclass(frozen=True)
class TrackMap:
    """Where n tracks lie."""

    projection: str  # pca or umap
    places: npt.NDArray[np.uint16]  # (n, 2)

    @classmethod
    def open(cls, folder: Path, n: int, sealed: Collection[str]) -> "TrackMap | None":
        """Maps the file.

        Args:
            folder: of the bundle.
            n: its tracks.
            sealed: names of the files that its manifest knows.

        Returns:
            The map; None where the bundle has none.

        Raises:
            BundleCorrupt: the file holds something else.
        """
        name = next((name for name in FILES if name in sealed), None)
        if name is None:
            return None
        places = mapped(folder / name)
        if places.dtype != np.uint16 or places.shape != (n, 2):
            expected = f"uint16 of shape {(n, 2)}"
            raise BundleCorrupt(complain(folder / name, f"{places.dtype} of shape {places.shape}", expected))
        return cls(FILES[name], places)


def names_in(folder: Path) -> list[str]:
    """Names the file.

    Args:
        folder: of a bundle.

    Returns:
        Its name, none where there is none.
    """
    return [name for name in FILES if (folder / name).is_file()]
