"""How large the files of a bundle will be, told before it is built by the model, the dataset and some of its tracks.

Every file has its name here but the index, so that none is forgotten: a test compares them with those of a bundle. What
grows with the tracks is counted. What texts take is the mean of a sample; distinct texts grow as they did from its half
to its whole, which is more than they will: of many tracks ever fewer texts are new.
"""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lhydra.bundle import co_listening_files, fitted, folded_head, track_map
from lhydra.bundle.arrays import MAX_NARROW
from lhydra.bundle.catalog import ARRAYS, CHART, OWN_LENGTH, TEXT, hash_shift
from lhydra.bundle.catalog_writer import CHART_USERS, co_listening_share
from lhydra.bundle.columns import WORDS
from lhydra.bundle.columns_writer import values_of, written
from lhydra.bundle.embedding import embed
from lhydra.bundle.model import Model
from lhydra.bundle.strings import StringColumn
from lhydra.bundle.title_words import TitleWords
from lhydra.data.dataset import Dataset
from lhydra.errors import DataError, complain
from lhydra.features.co_listening import STRONGEST
from lhydra_index_builder.replies import REPLIES, packed

SLICES, ROWS = 4, 8_192  # of the sample: as many tracks in as many places
MARGIN = 1.05  # what the tracks that are not looked at may have more
HEADER = 128  # bytes of a .npy file before its numbers
TEXTS = {"names": "track_id", "title_texts": "name", "artist_texts": "artist"}  # and the columns they come from
SMALL = {"golden.npz": 1 << 20, "filters.json": 1 << 16, "added.parquet": 1 << 17}  # the same for any number of tracks


@dataclass(frozen=True)
class FileSizes:
    """Bytes.

    Args:
        files: by name, each file of a bundle but the index.
        widest: all files of the column to filter by that has the largest.
        entries: values of all tracks in that column which has most.
        values: those of a track in all columns to filter by, in the mean.
    """

    files: dict[str, int]
    widest: int
    entries: int
    values: float


def file_sizes(model: Model, dataset: Dataset) -> FileSizes:
    """Tells how large the files of a bundle will be.

    Args:
        model: whose graphs and tables come along, and which embeds.
        dataset: whose tracks are embedded.

    Returns:
        Upper bounds; of texts estimates, where there are more tracks than are looked at.

    Raises:
        DataError: the table of tracks cannot be read.
    """
    n = dataset.n_tracks
    texts = {
        name: StringColumn.of(text or "" for text in _sample(dataset, of).to_pylist()) for name, of in TEXTS.items()
    }
    times = n / max(1, len(texts["names"]))
    times *= MARGIN if times > 1 else 1
    sizes: dict[str, float] = {name: (model.path / name).stat().st_size for name in model.info.files}
    sizes |= SMALL | {"catalog.parquet": (dataset.path / "tracks.parquet").stat().st_size}
    sizes |= _arrays(model, dataset)
    sizes |= _texts(texts, n, times)
    kinds = written({column.name: column.kind for column in dataset.info.track_columns})
    widest = entries = values = 0.0
    for i, (name, kind) in enumerate(kinds.items()):
        if kind in WORDS:
            own = _words(_sample(dataset, name), times)
            parts = ("_words", "_words_offsets", "_offsets", "_rows")
            sizes |= {f"filter{i}{part}.npy": size for part, size in zip(parts, own, strict=True)}
            widest, entries, values = max(widest, sum(own)), max(entries, own[-1] / 4), values + own[-1] / 4
        else:
            sizes[f"filter{i}.npy"] = 8 * n
    files = {name: math.ceil(size) + HEADER for name, size in sizes.items()}
    return FileSizes(files, math.ceil(widest), math.ceil(entries), values / max(1, n))


def _sample(dataset: Dataset, column: str) -> pa.Array:
    """A column of the first tracks of some row groups, which of a small table are all; nulls where there is none."""
    path = dataset.path / "tracks.parquet"
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            groups = sorted({file.num_row_groups * i // SLICES for i in range(SLICES)} - {file.num_row_groups})
            size = SLICES * ROWS // max(1, len(groups))
            known = [column] if column in file.schema_arrow.names else []
            batches = [next(file.iter_batches(size, [group], known, use_threads=False)) for group in groups]
    except (OSError, pa.ArrowException) as error:
        raise DataError(complain(path, " ".join(str(error).split()), "a Parquet table")) from None
    rows: list[pa.Array] = [batch[column] if known else pa.nulls(len(batch), pa.string()) for batch in batches]
    return pa.concat_arrays(rows) if rows else pa.nulls(0, pa.string())


def _arrays(model: Model, dataset: Dataset) -> dict[str, float]:
    """What is an array of numbers: as wide as those that no tracks are embedded to."""
    n, countries = dataset.n_tracks, 0
    none = embed(model.spec, model.item_tower, dataset.track_rows(0, 0), dataset.columns_of)
    sizes: dict[str, float] = {}
    for array in ARRAYS:
        if array.extent != OWN_LENGTH and array.dtype != TEXT:
            empty = none.get(array.name, np.empty(0, array.dtype))
            sizes[f"{array.stem}.npy"] = n * empty.itemsize * math.prod(empty.shape[1:])
    sizes["hash_starts.npy"] = 4 << 64 - hash_shift(n)
    sizes["removed.npy"] = 8 * n  # all of CURRENT's that were removed stay it
    if "country" in dataset.users.column_names:
        countries = min(pc.count_distinct(dataset.users["country"]).as_py(), len(dataset.user_ids) // CHART_USERS)
    sizes |= {"chart_rows.npy": 4 * CHART * countries, "chart_share.npy": 4 * CHART * countries}
    sizes |= {"charts.npy": 64 * countries, "charts_offsets.npy": 8 * (countries + 1)}
    sizes |= {next(iter(track_map.FILES)): 4 * n, "index_rows.npy": 0}
    if len(model.sequences):
        sizes |= {"sequence_offsets.npy": 4 * (2 * n + 1), "sequence_damping.npy": 2 * n}
    if co_listening_share(model):
        entries = len(model.neighbours) * min(STRONGEST, model.neighbours.shape[1])
        sizes |= dict(zip(co_listening_files.FILES, (8 * (n + 1), 4 * entries, 2 * entries, 4), strict=True))
    if fitted.FILE in model.info.files:
        sizes[fitted.FILE] = (model.path / fitted.FILE).stat().st_size + 8 * len(dataset.user_ids)
    if folded_head.FILE in model.info.files:
        sizes[folded_head.FILE] = (model.path / folded_head.FILE).stat().st_size
    return sizes


def _texts(texts: dict[str, StringColumn], n: int, times: float) -> dict[str, float]:
    """What is made of ids, titles and artists: themselves, the parts of replies, the words to search by."""
    sizes = {name: len(column.data) * times for name, column in texts.items()}
    sizes[REPLIES] = len(packed(*texts.values())[REPLIES]) * times
    out: dict[str, float] = {f"{name}.npy": size for name, size in sizes.items()}
    out |= {f"{name}_offsets.npy": (4 if size <= MAX_NARROW else 8) * (n + 1) for name, size in sizes.items()}
    searched = texts["title_texts"], texts["artist_texts"]
    whole = TitleWords.of(*searched)
    half = TitleWords.of(*(StringColumn.of(text.decode() for text in column.raw()[::2]) for column in searched))
    distinct = _grown(len(whole.words), len(half.words), times)
    out["search_words.npy"] = _grown(len(whole.words.data), len(half.words.data), times)
    out |= dict.fromkeys(("search_words_offsets.npy", "search_offsets.npy"), 8 * (distinct + 1))
    return out | {"search_rows.npy": 4 * len(whole.rows) * times}


def _words(column: pa.Array, times: float) -> tuple[float, float, float, float]:
    """Bytes of texts, their offsets, those of their rows, and their rows, for `times` as many tracks."""
    values, some = (values_of(rows)[0] for rows in (column, column.take(pa.array(range(0, len(column), 2)))))
    distinct, of_some = values.unique(), some.unique()
    text, half = (pc.sum(pc.binary_length(one)).as_py() or 0 for one in (distinct, of_some))
    offsets = 8 * (_grown(len(distinct), len(of_some), times) + 1)
    return _grown(text, half, times), offsets, offsets, 4 * len(values) * times


def _grown(whole: int, half: int, times: float) -> float:
    """What `times` as much holds of something distinct, of which a sample holds `whole` and its half `half`."""
    return whole * times ** min(1.0, math.log2(whole / half)) if half else whole * times
