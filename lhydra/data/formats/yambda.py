"""Listens of Yambda: Parquet with relative times and the share of a track that was played."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from lhydra.data.formats.format import SKIPPED_MS, Export, Format, Sample, Tables, not_read
from lhydra.data.table import Derived, Part, Table
from lhydra.errors import DataError, complain

_NEEDED = {"uid", "item_id", "timestamp", "played_ratio_pct", "track_length_seconds"}
_BIN = 5  # seconds: the times are rounded to it
_MS = "TRY_CAST(round(CAST(played_ratio_pct AS DOUBLE) * track_length_seconds * 10) AS BIGINT)"
_NO_LISTEN = "CASE WHEN event_type IS DISTINCT FROM 'listen' THEN 'a like, a dislike or the withdrawal of one' END"


def _schema(sample: Sample) -> pa.Schema | None:
    if not sample.name.endswith(".parquet"):
        return None
    try:
        return pq.read_schema(sample.path)
    except (OSError, pa.ArrowException):
        return None


def _open(export: Export) -> Tables | None:
    """The flat form: listens.parquet, or multi_event.parquet, where other events are left out."""
    schemas = {sample: schema for sample in export.samples if (schema := _schema(sample)) is not None}
    flat = [
        sample
        for sample, schema in schemas.items()
        if set(schema.names) >= _NEEDED and all(_is_number(schema.field(name).type) for name in _NEEDED)
    ]
    if not flat:
        return None
    listens = [sample for sample in flat if "event_type" not in schemas[sample].names] or flat
    schema = schemas[listens[0]]
    for sample in listens[1:]:
        if schemas[sample].names != schema.names:
            found = f"the columns {', '.join(schemas[sample].names)}"
            raise DataError(complain(sample.path, found, f"those of the others: {', '.join(schema.names)}"))
    unit = _unit(listens)
    columns = {
        "user_id": "uid",
        "track_id": "item_id",
        "timestamp": f'CASE WHEN "timestamp" = 0 THEN 1 ELSE "timestamp" * {unit} END',
        "ms_played": _MS,
        "skipped": f"{_MS} < {SKIPPED_MS}",
        "completed": "played_ratio_pct >= 100",
        "duration_ms": "track_length_seconds * 1000.0",
        **{name: f'"{name}"' for name in schema.names if name == "is_organic"},
    }
    path = listens[0].path if len(listens) == 1 else export.path
    left_out = _NO_LISTEN if "event_type" in schema.names else ""
    derived = Derived(tuple(schema.names), tuple(columns.items()), left_out=left_out)
    parts = tuple(Part(sample.path) for sample in listens)
    plays = Table(path, tuple(columns), parts, tuple(pa.string() for _ in columns), derived=derived)
    said = "seconds, in steps of 5," if unit == 1 else "units of 5 s, turned into seconds,"
    notes = (f"times are {said} from a start that the data do not say (kept as from 1970; 0 is kept as 1 s)",)
    return Tables(plays, notes=(*notes, *not_read(export, listens)))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _unit(listens: Sequence[Sample]) -> int:
    """Seconds of a unit of time: one in the published files, where each time is a multiple of the step."""
    with pq.ParquetFile(listens[0].path) as file:
        if not file.num_row_groups:
            return 1
        times = file.read_row_group(0, columns=["timestamp"])["timestamp"]
    return 1 if all(time % _BIN == 0 for time in times.unique().to_pylist() if time is not None) else _BIN


FORMATS = (
    Format(
        "yambda",
        "listens of Yambda",
        "Parquet with uid, item_id, timestamp, played_ratio_pct and track_length_seconds (the flat form)",
        _open,
    ),
)
