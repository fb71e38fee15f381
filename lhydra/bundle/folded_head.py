"""Head and user tower as compiled loops of a request, in place of their graphs.

    head.npz    the weights of both, multiplied out as far as no user is needed, by `lhydra.training.folded`

    of_user (D + du, h)  bias (h,)  of_user_ids (ids of all columns, h)  user_id_starts (cu + 1,)   what users say
    of_track, of_product (D, h)  of_dense, of_distance (dt, h)  preference (1,) where it begins in the user's columns
    of_signals (4, h), gate (du, 4), gate_bias (4,)   cosine, popularity, co-listening of two kinds
    popularity (2,)   from which on a track is not rare, and what one without listeners is lifted by
    of_crosses (8 c, h)  cross_user (ids, 8)  cross_user_columns (c,)  cross_user_starts (c + 1,)
    cross_track (flat)  cross_track_columns, cross_track_pairs (k,)  cross_track_starts (k + 1,)
    second (h, h2)  second_bias, out (h2,)  calibration (2,)
    moment (4 + 2 s, m + 1), moment_own (own signals, m + 1), moment_context (c, m + 1), moment_bias (m + 1,)
        the last output is that of the linear part; the 4 are logit, cosine, popularity, rarity
    moment_offsets (signals - 1,)  moment_second (m, m2)  moment_second_bias, moment_out (m2,)  moment_out_bias (1,)
    moment_calibration (2,)
    tower_weigh (3,)  tower_dense (du, t)  tower_ids (ids of all columns, t)  tower_bias (t,)   of the user tower
    tower_scale, tower_shift (t,)   of its layer norm   tower_second (t, D)  tower_second_bias (D,)

The graphs are the definition. What the loops give equals them but for rounding, about 1e-5 of a logit; training
compares both before it keeps a model, and so does whoever opens a bundle. Models and bundles of before have no such
file, or no tower in it, and without a C compiler nothing reads it: then the graphs run.
"""

from collections.abc import Collection
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lhydra import kernels
from lhydra.bundle.arrays import NOT_NPZ
from lhydra.domain import F16, F32
from lhydra.errors import ModelError, complain
from lhydra.features.moment import CONTEXT

if TYPE_CHECKING:
    from lhydra.kernels.compiled import CompiledHead, CompiledTower

Weights = dict[str, npt.NDArray[Any]]  # float32, or int64 where they say what lies where
FILE = "head.npz"
LANE = 8  # numbers that the loop adds at once: the outputs of its layers are filled up to a multiple of it
_AS_WIDE = (  # what the outputs of each layer meet
    ("second", "second_bias", "out"),
    ("moment", "moment_own", "moment_bias", "moment_context"),
    ("moment_second", "moment_second_bias", "moment_out"),
)


def names_in(folder: Path) -> list[str]:
    """Names the file.

    Args:
        folder: of a model or a bundle.

    Returns:
        Its name; none in those of before.
    """
    return [FILE] if (folder / FILE).is_file() else []


def read(folder: Path, sealed: Collection[str]) -> Weights | None:
    """Reads the weights.

    Args:
        folder: of a model or a bundle.
        sealed: names of the files that its manifest knows.

    Returns:
        Them by name; None where there is no such file, or nothing compiled to use them.

    Raises:
        ModelError: the file is not what was written.
    """
    if kernels.compiled is None or FILE not in sealed:
        return None
    try:
        with np.load(folder / FILE, allow_pickle=False) as archive:
            weights = dict(archive)
            if bad := [name for name, array in weights.items() if not np.isfinite(array).all()]:
                raise ValueError(f"{bad[0]} is not finite")
            return weights
    except NOT_NPZ as error:
        raise ModelError(complain(folder / FILE, str(error), "the weights of head.onnx")) from None


def compiled(weights: Weights, vectors: F16, dense: F16, ids: npt.NDArray[np.int32], popularity: F32) -> "CompiledHead":
    """Makes what scores rows of a catalog of n tracks.

    Args:
        weights: of a head, all finite.
        vectors: (n, dim) retrieval vectors.
        dense: (n, dt) encoded features.
        ids: (n, ct) encoded ids.
        popularity: (n,) of the tracks.

    Returns:
        The compiled head.

    Raises:
        ValueError: the weights do not fit each other or the catalog.
        KeyError: some are missing.
    """
    assert kernels.compiled is not None
    for names in _AS_WIDE:
        if len({weights[name].shape[-1] for name in names if name in weights}) > 1:
            raise ValueError(f"{' and '.join(names)} are not of one width")
    if "moment" in weights:
        found = weights["moment"].shape[1], len(weights["moment_context"])
        if found != (expected := (len(weights["moment_second"]) + 1, len(CONTEXT))):
            raise ValueError(f"a part for moments of widths {found}, expected {expected}")
    # Inputs: vector, crosses, dense, distance, popularity, co-listening of two kinds, rarity. Outputs: those of the
    # layer, cosine, weighted signals. What depends on the user is filled in for each.
    of_pair = weights["of_dense"], weights["of_distance"], weights["of_signals"][1:]
    layer = np.concatenate(
        [weights["of_track"], weights["of_crosses"], *of_pair, np.zeros_like(weights["of_track"][:1])]
    )
    layer = np.pad(layer, ((0, 0), (0, 2)))
    layer[-1, -1] = weights["popularity"][1]
    ready = {**weights, "layer": layer, "of_cosine": weights["of_signals"][0]}
    ready |= {name: _in_lanes(ready[name]) for name in ("layer", *chain(*_AS_WIDE)) if name in ready}
    return kernels.compiled.CompiledHead(
        ready, CONTEXT.index("tracks"), vectors.view(np.uint16), dense.view(np.uint16), ids, popularity
    )


def compiled_tower(weights: Weights, history: npt.NDArray[Any]) -> "CompiledTower | None":
    """Makes what embeds users of a catalog.

    Args:
        weights: of a head, and maybe of a tower, all finite.
        history: the table of `HistoryVectors` of the catalog.

    Returns:
        The compiled tower; None where there are no weights of it, or history vectors of before.

    Raises:
        ValueError: the weights do not fit each other or the catalog.
        KeyError: some are missing.
    """
    assert kernels.compiled is not None
    if "tower_weigh" not in weights or history.itemsize != 1:
        return None
    return kernels.compiled.CompiledTower(weights, history)


def _in_lanes(array: F32) -> F32:
    """Fills the last axis up with zeros."""
    return np.ascontiguousarray(np.pad(array, [*[(0, 0)] * (array.ndim - 1), (0, -array.shape[-1] % LANE)]))
