from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra.domain import F16, F32, I64, Hashes, History, Recent, Repeats

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
U16 = npt.NDArray[np.uint16]  # the bits of float16

class CoListeningTable:
    def __init__(self, neighbours: I32, weights: U16, items: I32, scale: float, fall: float, /) -> None: ...
    def scores(self, played: I64, entry: F32, candidates: I64, /) -> F32: ...

class MomentLaws:
    def __init__(
        self, *, falls: F64, rates: F64, powers: F64, exponentials: F64, numbers: Mapping[str, float]
    ) -> None: ...

class SequenceTables:
    def __init__(self, offsets: I32, others: I32, weights: U16, damping: U16) -> None: ...

class CompiledMoment:
    def __init__(self, laws: MomentLaws, tables: SequenceTables, n: int, now: int) -> None: ...
    def told(
        self,
        rows: I64,
        counts: F32,
        last: I64,
        first: I64,
        decayed: F32,
        recent: I64,
        times: I64,
        flags: I64,
        /,
    ) -> CompiledMoment: ...
    def recorded(
        self, rows: I64, counts: F32, last: I64, history: I64, repeats: Repeats, recent: I64, plays: Recent, /
    ) -> CompiledMoment: ...
    def candidates(
        self, n_own: int, n_few: int, n_many: int, n_together: int, repeats: bool, /
    ) -> tuple[I64, I64, I64]: ...
    def signals(self, rows: I64, /) -> F32: ...
    def context(self) -> F32: ...

class CompiledHead:
    def __init__(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        known_at: int,
        vectors: U16,
        dense: U16,
        ids: I32,
        popularity: F32,
        /,
    ) -> None: ...
    def score(
        self,
        user: F32,
        user_dense: F32,
        user_ids: I64,
        rows: I64,
        together: F32,
        signals: F32 | None,
        context: F32 | None,
    ) -> tuple[F32, F32]: ...
    def score_for(
        self,
        user: F32,
        user_dense: F32,
        user_ids: I64,
        rows: I64,
        table: CoListeningTable,
        played: I64,
        entry: F32,
        moment: CompiledMoment | None,
        /,
    ) -> tuple[F32, F32]: ...

class CompiledTower:
    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]], table: npt.NDArray[np.int8], /) -> None: ...
    def embed(self, dense: F32, ids: I64, offsets: I64, rows: I64, entry: F32, /) -> F32: ...

def encode_histories(
    track_dense: U16,
    track_ids: npt.NDArray[np.integer],
    offsets: I64,
    rows: I64,
    counts: F32,
    times: I64,
    profile_dense: list[list[float]],
    profile_ids: list[list[int]],
    columns: tuple[float, ...],
) -> tuple[F32, I64, F32]: ...
def profile_numbers(
    profiles: Sequence[Mapping[str, Any]],
    categories: tuple[tuple[str, dict[str, int]], ...],
    numbers: tuple[tuple[str, float, float, tuple[float, ...]], ...],
) -> tuple[list[list[float]], list[list[int]]] | None: ...
def known_plays(history: History, lengths: list[int], rows: I64) -> tuple[I64, I64, F32, I64]: ...
def history_vectors(table: npt.NDArray[np.int8], rows: I64) -> F16: ...

class HashTable:
    def __init__(self, hashes: Hashes, rows: I32, starts: I32) -> None: ...
    def rows_of(self, wanted: Hashes) -> I64: ...
    def state_rows(self, history: History, recent: Recent, heard: Hashes) -> I64: ...

def all_known(rows: I64) -> bool: ...
def all_finite(values: F32) -> bool: ...
def best_first(rows: I64, scores: F32, k: int, /) -> I64: ...
def selected(rows: I64, logits: F32, scores: F32, keys: F32, cosines: F32, k: int, /) -> tuple[I64, F32, F32, F32]: ...
def falls(scores: F32, /) -> bool: ...
def without(rows: I64, scores: F32, excluded: I64, most: int, /) -> tuple[I64, F32]: ...
def united(
    vectors: U16, vector: F32, parts: tuple[I64, ...], nearest: I64, cosines: F32, depth: int, /
) -> tuple[I64, F32]: ...
def brought(
    moment: CompiledMoment,
    room: tuple[int, int, int, int],
    repeats: bool,
    excluded: I64,
    removed: I64,
    mask: npt.NDArray[np.uint8] | None,
    vectors: U16,
    vector: F32,
    nearest: I64,
    cosines: F32,
    depth: int,
    /,
) -> tuple[list[I64], tuple[I64, F32]]: ...
def gathered(rows: I64, tables: tuple[npt.NDArray[Any], ...], /) -> list[npt.NDArray[Any]]: ...
def unchanged(
    data: bytes, lock: bytes, files: tuple[tuple[int, int], tuple[int, int]], data_size: int, lock_size: int, /
) -> bool: ...
def reply_stages(tag: int, time_tag: int, names: dict[str, bytes], stage_us: Mapping[str, int]) -> bytes: ...
def reply_tracks(
    data: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.integer],  # int32 or int64
    rows: I64,
    scores: F32,
    retrieval_scores: F32,
    score_bytes: int,
    /,
) -> bytes: ...
