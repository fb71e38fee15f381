"""The map of a catalogue, made of the vectors of its tracks: two principal components, or UMAP where it is wanted.

Principal components take one pass for the covariance and one for the places, in blocks. UMAP (McInnes et al. 2018)
keeps neighbourhoods better, is far slower, takes all vectors in memory, and is another package.
"""

import importlib
import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lhydra.bundle.arrays import blocks
from lhydra.bundle.track_map import FILES
from lhydra.domain import F32
from lhydra.errors import ConfigError, complain
from lhydra.timing import timed

PCA, UMAP = FILES.values()
BLOCK = 16_384  # rows: in double precision 16 MiB at 128 numbers a track
OUTLIERS = 0.005  # share of the tracks beyond either end of an axis, who lie on the edge
LAST = 2**16 - 1


def check(how: str) -> None:
    """Refuses a projection that cannot be made here.

    Args:
        how: PCA or UMAP.

    Raises:
        ConfigError: its package is not installed.
    """
    if how == UMAP and importlib.util.find_spec("umap") is None:
        raise ConfigError(complain("--map", "umap, which is not installed", "pca, or after `pip install umap-learn`"))


@timed("rebuild.map")
def write(folder: Path, how: str, seed: int) -> None:
    """Writes the map of the tracks in a folder.

    Args:
        folder: of the bundle, with vectors.npy.
        how: PCA or UMAP.
        seed: of UMAP; nothing else draws.
    """
    vectors = folder / "vectors.npy"
    points = principal_components(vectors) if how == PCA else _neighbourhoods(vectors, seed)
    name = next(name for name, projection in FILES.items() if projection == how)
    np.save(folder / name, in_sixteen_bits(points))


def principal_components(vectors: Path) -> F32:
    """Projects vectors to the two directions in which they differ most.

    Args:
        vectors: .npy file of (n, dim) floats.

    Returns:
        (n, 2) float32, about 0. The same for the same vectors: of each direction the largest part is positive.
    """
    n, total, squares = 0, np.zeros(1), np.zeros((1, 1))
    for block in blocks(vectors, BLOCK):
        exact = block.astype(np.float64)
        n, total, squares = n + len(exact), total + exact.sum(0), squares + exact.T @ exact
    if not n:
        return np.empty((0, 2), np.float32)
    mean = total / n
    _, directions = np.linalg.eigh(squares / n - np.outer(mean, mean))  # ascending by how far they spread
    axes = directions[:, :-3:-1]
    if axes.shape[1] < 2:
        axes = np.pad(axes, ((0, 0), (0, 2 - axes.shape[1])))
    largest = np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0)
    axes = axes * np.where(largest < 0, -1, 1)
    return np.concatenate([((block - mean) @ axes).astype(np.float32) for block in blocks(vectors, BLOCK)])


def _neighbourhoods(vectors: Path, seed: int) -> F32:
    umap = importlib.import_module("umap")
    whole = np.concatenate([block.astype(np.float32) for block in blocks(vectors, BLOCK)])
    found: F32 = umap.UMAP(n_components=2, metric="cosine", random_state=seed).fit_transform(whole).astype(np.float32)
    return found


def in_sixteen_bits(points: F32) -> npt.NDArray[np.uint16]:
    """Scales points to whole numbers, both axes alike, so that distances stay comparable.

    Args:
        points: (n, 2).

    Returns:
        (n, 2) from 0 to 65,535; the share OUTLIERS at either end of the longer axis lies on the edge.
    """
    if not len(points):
        return np.empty((0, 2), np.uint16)
    low, high = np.quantile(points.astype(np.float64), (OUTLIERS, 1 - OUTLIERS), axis=0)
    span = float((high - low).max()) or 1.0
    scaled = (points - (low + high) / 2) / span + 0.5
    found: npt.NDArray[np.uint16] = np.rint(np.clip(scaled, 0, 1) * LAST).astype(np.uint16)
    return found
