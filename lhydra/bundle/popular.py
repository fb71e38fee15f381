"""What is played most, for those of whom nothing is known: the chart of a country, then that of the world."""

import numpy as np
import numpy.typing as npt

from lhydra.bundle.catalog import Catalog
from lhydra.domain import F32, I64, Value


def most_played(
    catalog: Catalog, country: Value, k: int, excluded: I64, eligible: npt.NDArray[np.bool_] | None
) -> tuple[I64, F32]:
    """Returns the most played tracks that may be shown.

    Args:
        catalog: the tracks.
        country: as profiles name it; None for none.
        k: how many.
        excluded: rows that may not be shown.
        eligible: (n,) which may; None for all.

    Returns:
        (min(k, left),) rows, those of the country's chart first, and the share of listeners, which descends.
    """
    out = np.zeros(len(catalog), np.bool_)
    out[excluded] = True
    out[catalog.removed] = True
    if eligible is not None:
        out |= ~eligible
    rows, share = catalog.chart(country)
    kept = np.flatnonzero(~out.take(rows))[:k]
    rows, share = rows[kept], share[kept]
    if len(rows) < k:  # filled up from the worldwide chart
        out[rows] = True
        wide = min(k + int(np.count_nonzero(out)), len(out))
        others = catalog.popular[:wide].astype(np.int64)
        others = others[~out.take(others)][: k - len(rows)]
        least = share[-1] if len(share) else np.float32(1)
        rows = np.concatenate([rows, others])
        share = np.concatenate([share, np.minimum(catalog.share[others], least)])
    return rows, share
