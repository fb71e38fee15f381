"""The reply to Recommend as bytes, joined from parts that the bundle holds ready; see `lhydra_protos.v1.wire`."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import numpy as np

from lhydra import kernels
from lhydra.bundle.columns import FilterColumns
from lhydra.bundle.strings import StringColumn
from lhydra.domain import F32, I64, STAGES, Condition, Recommendation, Value
from lhydra.errors import one_line, quoted
from lhydra.features.columns import ProfileColumns, text_of
from lhydra.rules import Applied
from lhydra_protos.v1.wire import SCORE_BYTES, STAGE_TAG, TOOK_TAG, number_field, text_field, varint

_SCORE, _RETRIEVAL_SCORE = np.arange(1, 5), np.arange(6, 10)  # where the floats are among the last SCORE_BYTES bytes
_STAGE_NAMES = {stage: text_field(1, stage.encode()) for stage in STAGES}


def unused_columns(profile: Mapping[str, Value], columns: ProfileColumns) -> str:
    """Returns why an answer is less than its caller may think: a misspelt column or value says nothing to the model.

    Args:
        profile: of the request.
        columns: what the model knows.

    Returns:
        The reason, its name before the colon, of bounded length; "" where all of the profile is used.
    """
    numbers, categories = {name for name, *_ in columns.numbers}, {name for name, _ in columns.categories}
    used, told = {"country", *numbers, *categories}, []
    for name in sorted(profile.keys() - columns.known(profile)):
        value = text_of(profile[name])
        if name not in used:
            told.append(quoted(name))
        elif value.strip() and name in numbers:
            told.append(f"{quoted(name)}, as {quoted(value)} is no number")
        elif value.strip() and name in categories:
            told.append(f"{quoted(name)}, as the model knows no {quoted(value)}")
    if not told:
        return ""
    some = ", ".join(told[:3]) + (", ..." if len(told) > 3 else "")
    return one_line(f"unused_profile_columns: {some}; the model uses {', '.join(sorted(used)) or 'none'}", 500)


def unknown_values(columns: FilterColumns, conditions: Iterable[Condition]) -> str:
    """Returns why a list is shorter than asked for, where its filter wants values that no track has.

    Args:
        columns: of the bundle.
        conditions: of the filter, which have passed its `check`.

    Returns:
        The reason, its name before the colon, of bounded length; "" where some track has each value.
    """
    asked = (condition for condition in conditions if condition.where != "filter.explicit")  # of many spellings
    told = [
        f"{column} {quoted(value)}" + f" ({quoted(near)}?)" * bool(near)
        for column, value, near in islice(columns.unknown(asked), 4)  # a filter may have 1,000, 40 µs each
    ]
    some = ", ".join(told[:3]) + (", ..." if len(told) > 3 else "")
    return one_line(f"unknown_values: no track has {some}", 500) if told else ""


def reply(
    found: Recommendation,
    parts: StringColumn,
    stage_us: Mapping[str, int],
    *,
    bundle_id: str,
    degraded: Sequence[str],
    request_id: str,
) -> bytes:
    """Encodes a RecommendResponse: the tracks best first, every stage in order.

    Args:
        found: the tracks and their scores.
        parts: of every row of the catalog, its bytes of a reply.
        stage_us: microseconds by stage; 0 of one that is absent.
        bundle_id: of the bundle that answered.
        degraded: what was missing.
        request_id: of the call.

    Returns:
        The message as protobuf.
    """
    tail = [text_field(2, bundle_id.encode()), number_field(3, int(found.tier))]
    tail += [text_field(4, reason.encode()) for reason in degraded]
    tail += [_stages(stage_us), text_field(6, request_id.encode())]
    listed = tracks(found.rows, found.scores, found.retrieval_scores, parts)
    if found.applied or found.moved_by or found.sources:
        listed = with_more(listed, found)
        tail += [text_field(7, _applied(one)) for one in found.applied]
    return b"".join([listed, *tail])


def _stages(stage_us: Mapping[str, int]) -> bytes:
    if kernels.compiled is not None:
        return kernels.compiled.reply_stages(STAGE_TAG, TOOK_TAG, _STAGE_NAMES, stage_us)
    return b"".join(
        text_field(5, name + number_field(2, stage_us.get(stage, 0))) for stage, name in _STAGE_NAMES.items()
    )


def tracks(rows: I64, scores: F32, retrieval_scores: F32, parts: StringColumn) -> bytes | bytearray:
    """Encodes RecommendResponse.tracks.

    Args:
        rows: (n,) int64 rows of the catalog.
        scores: (n,) float32 probabilities of the head.
        retrieval_scores: (n,) float32.
        parts: of every row of the catalog, its bytes of a reply.

    Returns:
        The field, once per row, as protobuf.
    """
    if kernels.compiled is not None:
        both = np.asarray(scores, np.float32), np.asarray(retrieval_scores, np.float32)
        return kernels.compiled.reply_tracks(parts.data, parts.offsets, rows, *both, SCORE_BYTES)
    starts, ends = parts.offsets.take(rows), parts.offsets.take(rows + 1)
    data = parts.data.data  # a memoryview: slices of it cost a fifth of an array's
    joined = bytearray().join([data[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)])
    if len(rows):
        at = (np.cumsum(ends - starts) - SCORE_BYTES)[:, None]
        out = np.frombuffer(joined, np.uint8)
        out[at + _SCORE] = np.ascontiguousarray(scores, "<f4").view(np.uint8).reshape(-1, 4)
        out[at + _RETRIEVAL_SCORE] = np.ascontiguousarray(retrieval_scores, "<f4").view(np.uint8).reshape(-1, 4)
    return joined


def with_more(listed: bytes | bytearray, found: Recommendation) -> bytearray:
    """Adds to each track what rules did to it, where it came from, and the reasons for it.

    Args:
        listed: RecommendResponse.tracks as `tracks` encodes it.
        found: with `moved_by` or `sources` and `reasons`, and `propensity` where tracks were drawn.

    Returns:
        The field, once per row, as protobuf.
    """
    out, at = bytearray(), 0
    chances = found.propensity.tolist() if found.propensity is not None else [0.0] * len(found.rows)
    nothing = ((),) * len(found.rows)
    told = found.reasons or nothing, found.sources or nothing, found.moved_by or nothing
    for *names, chance in zip(*told, chances, strict=True):
        length, start = _read_varint(listed, at + 1)
        at = start + length
        fields = zip((6, 9, 10), names, strict=True)
        more = b"".join(text_field(number, name.encode()) for number, own in fields for name in own)
        more += b"\x45" + struct.pack("<f", chance) if chance else b""
        out += b"\x0a" + varint(length + len(more)) + listed[start:at] + more
    return out


def _read_varint(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """The number there, and where it ends."""
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def _applied(one: Applied) -> bytes:
    return text_field(1, one.rule.encode()) + number_field(2, one.moved) + text_field(3, one.gave_way.encode())
