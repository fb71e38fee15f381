"""Index recipes, and operating points as FAISS search parameters: passed with each search, never set on the index."""

from typing import Any

import faiss
import numpy as np

from lhydra.bundle.manifest import OperatingPoint
from lhydra.domain import I64
from lhydra.errors import ConfigError, complain

BLOCK = 65_536  # vectors added at a time


def untrained(dim: int, recipe: str) -> Any:
    """Returns an empty index as FAISS makes it from a recipe.

    Args:
        dim: width of the vectors.
        recipe: a FAISS factory string.

    Returns:
        faiss.Index.

    Raises:
        ConfigError: FAISS does not know the recipe.
    """
    try:
        return faiss.index_factory(dim, recipe, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise ConfigError(complain("recipe", recipe, "flat or a FAISS factory string")) from None


def knob(index: Any) -> str:
    """Returns the name of what `OperatingPoint.effort` sets.

    Args:
        index: faiss.Index.

    Returns:
        `nprobe`, `efSearch`, or "" where there is nothing to set.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, (faiss.IndexPreTransform, faiss.IndexIDMap)):
        return knob(index.index)
    if isinstance(index, faiss.IndexRefine):
        return knob(index.base_index)
    if isinstance(index, faiss.IndexIVF):
        return "nprobe"
    return "efSearch" if isinstance(index, faiss.IndexHNSW) else ""


def parameters(index: Any, point: OperatingPoint) -> Any:
    """Returns an operating point as FAISS takes it.

    Args:
        index: faiss.Index.
        point: the operating point.

    Returns:
        faiss.SearchParameters, None where the defaults of the index hold.
    """
    stubless: Any = faiss
    index = faiss.downcast_index(index)
    if isinstance(index, (faiss.IndexPreTransform, faiss.IndexIDMap)):
        return parameters(index.index, point)  # both pass them on
    if isinstance(index, faiss.IndexRefine):
        factor = point.refine if point.refine > 1 else index.k_factor
        base = parameters(index.base_index, point)
        return stubless.IndexRefineSearchParameters(k_factor=factor, base_index_params=base)
    if point.effort and isinstance(index, faiss.IndexIVF):
        return stubless.SearchParametersIVF(nprobe=point.effort)
    if point.effort and isinstance(index, faiss.IndexHNSW):
        return stubless.SearchParametersHNSW(efSearch=point.effort)
    return None


def is_plain(index: Any) -> bool:
    """Tells whether the k best are the first k of any wider search, and several queries are answered as one is.

    So it is of some inverted files: who refines orders what is fetched anew, a graph is walked as wide as the search,
    and matrices (OPQ, PCA, tables of packed codes) round several queries otherwise than one.

    Args:
        index: faiss.Index.

    Returns:
        True where it is known to be so.
    """
    stubless: Any = faiss
    index = faiss.downcast_index(index)
    if type(index) not in (stubless.IndexIVFFlat, stubless.IndexIVFScalarQuantizer, stubless.IndexIVFPQ):
        return False
    quantizers = (stubless.IndexFlat, stubless.IndexFlatIP, stubless.IndexHNSWFlat)
    return type(faiss.downcast_index(index.quantizer)) in quantizers


def lists_of(recipe: str) -> int:
    """Returns how many inverted lists a recipe asks for.

    Args:
        recipe: `flat` or a FAISS factory string.

    Returns:
        The number of lists, 0 for none.
    """
    for part in recipe.split(","):
        digits = part.removeprefix("IVF").partition("_")[0]
        if part.startswith("IVF") and digits.isdigit():
            return int(digits)
    return 0


def sample_rows(n: int, recipe: str, seed: int) -> I64:
    """Draws the rows that an index is trained on: 48 a list, 65,536 at least, all if fewer.

    Args:
        n: how many tracks there are.
        recipe: `flat` or a FAISS factory string.
        seed: of the draw.

    Returns:
        (m,) int64 rows, ascending.
    """
    most = max(BLOCK, 48 * lists_of(recipe))
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))
