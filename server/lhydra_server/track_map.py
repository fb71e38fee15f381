"""GetMap: tracks as points of a plane, and what of a column each has."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lhydra.bundle.catalog import Catalog
from lhydra.bundle.columns import FilterColumns, Words
from lhydra.bundle.track_map import TrackMap
from lhydra.domain import track_hashes
from lhydra.errors import InvalidRequest
from lhydra.limits import check_id, check_range
from lhydra_protos.v1 import recommender_pb2 as pb

MAX_POINTS, DEFAULT_POINTS, MAX_ASKED = 200_000, 100_000, 1_000
MOST_VALUES, NONE = 255, 255


def answer(
    request: pb.GetMapRequest,
    catalog: Catalog,
    filters: FilterColumns,
    genre: str | None,
    track_map: TrackMap | None,
    check: Callable[[], None],
) -> pb.GetMapResponse:
    """Answers a request.

    Args:
        request: as it came.
        catalog: of the bundle.
        filters: of the bundle.
        genre: the column of the genres, None without one.
        track_map: of the bundle, None where it has none.
        check: runs between steps; its error ends the call.

    Returns:
        The reply, without the ids of bundle and request; no tracks where there is no map.

    Raises:
        InvalidRequest: a limit is passed, or the bundle has no such column; names the field.
    """
    check_range("max_points", request.max_points, 0, MAX_POINTS)
    asked = list(request.track_ids)
    check_range("track_ids", len(asked), 0, MAX_ASKED, "tracks")
    for i, track in enumerate(asked):
        check_id(f"track_ids[{i}]", track)
    if request.column and request.column not in filters.names:
        expected = ", ".join(sorted(filters.names)) or "none: this bundle has no columns"
        raise InvalidRequest("column", request.column, f"a column of the catalogue: {expected}"[:300])
    if track_map is None:
        return pb.GetMapResponse()
    wanted = catalog.rows(track_hashes(dict.fromkeys(asked)))
    wanted = wanted[wanted >= 0]
    left_out = np.zeros(len(catalog), bool)
    left_out[catalog.removed] = left_out[wanted] = True
    most = request.max_points or DEFAULT_POINTS
    popular = catalog.popular[: most + len(wanted) + len(catalog.removed)]
    rows = np.concatenate([wanted, popular[~left_out[popular]][:most].astype(np.int64)])
    check()
    places = track_map.places[rows].astype("<u2").tobytes()
    reply = pb.GetMapResponse(track_ids=catalog.track_ids(rows), places=places, projection=track_map.projection)
    check()
    if column := request.column or (genre if genre in filters.names else ""):
        values, value_of = labels(filters, column)
        reply.column, reply.value_of = column, value_of[rows].tobytes()
        reply.values.extend(values)
    else:
        reply.value_of = bytes([NONE]) * len(rows)
    return reply


def labels(filters: FilterColumns, column: str) -> tuple[list[str], npt.NDArray[np.uint8]]:
    """Returns the most common values of a column, and which of them each track has.

    Args:
        filters: of n tracks.
        column: one of theirs.

    Returns:
        Up to 255 values, most tracks first, equally many by value; (n,) the place of the most common value of each
        track, NONE for a track without one of them.
    """
    kept, value_of = filters.columns[column], np.full(filters.n, NONE, np.uint8)
    if isinstance(kept, Words):
        counts = np.diff(kept.offsets)
        common = np.argsort(-counts, kind="stable")[:MOST_VALUES]
        for place in range(len(common) - 1, -1, -1):  # the most common last, so that it stays
            at = common[place]
            value_of[kept.rows[kept.offsets[at] : kept.offsets[at + 1]].astype(np.int64)] = place
        return kept.texts.at(common), value_of
    known = np.flatnonzero(~np.isnan(kept.values))
    numbers, codes, counts = np.unique(kept.values[known], return_inverse=True, return_counts=True)
    common = np.argsort(-counts, kind="stable")[:MOST_VALUES]
    place_of = np.full(len(numbers), NONE, np.uint8)
    place_of[common] = np.arange(len(common))
    value_of[known] = place_of[codes]
    return [f"{number:.10g}" for number in numbers[common].tolist()], value_of
