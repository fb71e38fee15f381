"""A request's filter into conditions of the core: the short forms spelled out, and every limit checked."""

from collections.abc import Mapping

from lhydra.bundle.columns import NUMBERS, check, normalised
from lhydra.domain import Condition
from lhydra.errors import InvalidRequest
from lhydra_protos.v1 import recommender_pb2 as pb

MAX_CONDITIONS = 64
MAX_VALUES = 1_000  # in all conditions together
MAX_VALUE_CHARS = 256
BOOLEAN_SPELLINGS = {  # what people write in a column of yes and no
    True: ("true", "True", "TRUE", "t", "T", "yes", "Yes", "YES", "y", "Y", "1", "1.0"),
    False: ("false", "False", "FALSE", "f", "F", "no", "No", "NO", "n", "N", "0", "0.0"),
}


def to_conditions(wanted: pb.Filter, names: Mapping[str, str], genre: str | None) -> tuple[Condition, ...]:
    """Returns a filter as conditions that hold together.

    Args:
        wanted: as it came.
        names: the columns of the bundle and their kinds, `FilterColumns.names`.
        genre: the column that `genres` is about; None where the bundle has none.

    Returns:
        The conditions, normalised; none for an empty filter.

    Raises:
        InvalidRequest: a limit is passed, or the bundle has no such column or cannot answer; names the field.
    """
    _check_limits(wanted)
    conditions = [
        Condition(
            column=condition.column,
            any_of=tuple(condition.any_of),
            all_of=tuple(condition.all_of),
            none_of=tuple(condition.none_of),
            min=condition.min if condition.HasField("min") else None,
            max=condition.max if condition.HasField("max") else None,
            where=f"filter.conditions[{i}].",
        )
        for i, condition in enumerate(wanted.conditions)
    ]
    if wanted.genres:
        conditions.append(Condition(genre or "genre", any_of=tuple(wanted.genres), where="filter.genres"))
    if wanted.artists:
        conditions.append(Condition("artist", any_of=tuple(wanted.artists), where="filter.artists"))
    low = wanted.min_year if wanted.HasField("min_year") else None
    high = wanted.max_year if wanted.HasField("max_year") else None
    if low is not None or high is not None:
        where = "filter.max_year" if low is None else "filter.min_year"
        conditions.append(Condition("year", min=low, max=high, where=where))
    if wanted.HasField("explicit"):
        numbers = names.get("explicit") in NUMBERS
        spelled = (str(int(wanted.explicit)),) if numbers else BOOLEAN_SPELLINGS[wanted.explicit]
        conditions.append(Condition("explicit", any_of=spelled, where="filter.explicit"))
    check(conditions, names)
    return normalised(conditions)


def _check_limits(wanted: pb.Filter) -> None:
    if len(wanted.conditions) > MAX_CONDITIONS:
        found = f"{len(wanted.conditions):,} conditions"
        raise InvalidRequest("filter.conditions", found, f"at most {MAX_CONDITIONS}")
    texts = {"filter.genres": wanted.genres, "filter.artists": wanted.artists}
    for i, condition in enumerate(wanted.conditions):
        for name in ("any_of", "all_of", "none_of"):
            texts[f"filter.conditions[{i}].{name}"] = getattr(condition, name)
    if (total := sum(map(len, texts.values()))) > MAX_VALUES:
        raise InvalidRequest("filter", f"{total:,} values", f"at most {MAX_VALUES:,} in all")
    for field, values in texts.items():
        for i, value in enumerate(values):
            if not 1 <= len(value) <= MAX_VALUE_CHARS:
                expected = f"1 to {MAX_VALUE_CHARS} characters"
                raise InvalidRequest(f"{field}[{i}]", f"{len(value)} characters", expected)
