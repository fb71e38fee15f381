"""What rules name and a bundle does not have: a value or track that is misspelt makes a rule that does nothing."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from lhydra.bundle.columns import FilterColumns, Numbers
from lhydra.domain import I64, Condition, Hashes, track_hashes
from lhydra.errors import one_line, quoted
from lhydra.rules import Match, Rules

_TOLD = 5  # in a line


def unmatched(sets: Mapping[str, Rules], rows: Callable[[Hashes], I64], filters: FilterColumns) -> str:
    """Says which values and tracks of rules no track of a bundle is.

    Args:
        sets: rule sets by name, whose columns the bundle has.
        rows: of its catalog, -1 for tracks that it does not hold.
        filters: its columns.

    Returns:
        One line of bounded length; "" where the bundle has all.
    """
    told = [
        f"{name}.{where}: {one}"
        for name, rules in sets.items()
        for where, match in rules.matches
        for one in _unmatched(match, rows, filters)
    ]
    more = f"; and {len(told) - _TOLD} more" * (len(told) > _TOLD)
    return one_line("; ".join(told[:_TOLD]), 1_000) + more


def _unmatched(match: Match, rows: Callable[[Hashes], I64], filters: FilterColumns) -> Iterator[str]:
    if match.tracks:
        for one, row in zip(match.tracks, rows(track_hashes(match.tracks)), strict=True):
            if row < 0:
                yield f"no track {quoted(one)}"
    if not match.column:
        return
    column = filters.columns[match.column]
    if isinstance(column, Numbers):
        known = np.isin(np.array([float(one) for one in match.values], column.values.dtype), column.values)
        unknown = [(value, "") for value, is_known in zip(match.values, known, strict=True) if not is_known]
    else:
        asked = (Condition(match.column, any_of=(value,)) for value in match.values)  # in the order of the file
        unknown = [(value, near) for _, value, near in filters.unknown(asked)]
    for value, near in unknown:
        yield f"no track has {match.column} {quoted(value)}" + f" ({quoted(near)}?)" * bool(near)
