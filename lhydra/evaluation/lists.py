"""Batch lists: every user of a dataset, one by one, through the `Recommender.recommend` that answers requests."""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lhydra import files
from lhydra.console import with_progress
from lhydra.data.dataset import AsOf, Dataset, Mask, user_states
from lhydra.data.plays import in_time, with_plays
from lhydra.domain import F32, I64, Hashes, Query, Recommendation, Repeat, UserState
from lhydra.errors import ConfigError, complain
from lhydra.queries import known_user

Stage = Literal["final", "retrieval"]
Rows = Sequence[tuple[str, int, str, np.float32]]  # user_id, rank, track_id, score
SUFFIXES = (".parquet", ".csv", ".csv.gz")
COLUMNS = pa.schema(
    [("user_id", pa.string()), ("rank", pa.int32()), ("track_id", pa.string()), ("score", pa.float32())]
)
_GROUP_ROWS = 1 << 16  # rows held in memory before they are written


class Tracks(Protocol):
    """What is needed of a catalog."""

    def __len__(self) -> int: ...

    @property
    def removed(self) -> I64:
        """Rows that are never returned."""

    def track_ids(self, rows: I64) -> list[str]:
        """Looks up ids.

        Args:
            rows: (n,) rows.

        Returns:
            n track ids.
        """

    def rows(self, hashes: Hashes) -> I64:
        """Looks up rows.

        Args:
            hashes: (n,) of track ids, in any order.

        Returns:
            (n,) rows, -1 where unknown.
        """


class Recommends(Protocol):
    """What is needed of `lhydra.recommender.Recommender`."""

    @property
    def bundle_id(self) -> str:
        """What the lists come from."""

    @property
    def catalog(self) -> Tracks:
        """The tracks that can be recommended."""

    def recommend(self, query: Query) -> Recommendation:
        """Answers one request.

        Args:
            query: what is asked for.

        Returns:
            The answer.
        """

    def score(self, state: UserState, rows: I64, now: int = 0) -> tuple[F32, F32]:
        """Scores tracks by the head.

        Args:
            state: of the user.
            rows: (n,) catalog rows.
            now: Unix seconds, from which ages count; 0 for the last play.

        Returns:
            (n,) float32 raw logits and (n,) calibrated probabilities.
        """


def recommend_users(
    recommender: Recommends,
    dataset: Dataset,
    as_of: AsOf,
    k: int,
    *,
    positions: I64 | None = None,
    repeat: Repeat = Repeat.EXCLUDE,
    now: int = 0,
    mask: Mask = "seen",
) -> Iterator[tuple[str, UserState, Recommendation]]:
    """Asks for users one by one; nothing is kept.

    Args:
        recommender: what is asked.
        dataset: whose users are asked for.
        as_of: the fold up to which their plays are known.
        k: tracks per list.
        positions: (n,) of the users, in this order; None for all.
        repeat: what happens to heard tracks.
        now: Unix seconds, from which ages count.
        mask: what counts as heard.

    Yields:
        (user id, state, answer).
    """
    for user_id, state in user_states(dataset, as_of, positions=positions, mask=mask):
        yield user_id, state, recommender.recommend(known_user(state, k, repeat=repeat, now=now))


def check_destination(out: Path, *, overwrite: bool = False) -> None:
    """Checks that `write_lists` can write a file, and that nothing but lists is lost by it.

    Args:
        out: its path.
        overwrite: whether another file there may be replaced.

    Raises:
        ConfigError: another ending than SUFFIXES, no such folder, a folder of that name, or a file that is no lists.
    """
    if not out.name.lower().endswith(SUFFIXES):
        raise ConfigError(complain("--out", out.name, "a name that ends in " + ", ".join(SUFFIXES)))
    if not out.parent.is_dir():
        raise ConfigError(complain("--out", f"no folder {out.parent}", "a file in a folder that exists"))
    if out.is_dir():
        raise ConfigError(complain("--out", f"the folder {out}", "a file"))
    if out.exists() and not overwrite and not _holds_lists(out):
        expected = "a free path or lists of `lhydra recommend` to replace; --overwrite replaces any file"
        raise ConfigError(complain("--out", f"{out}, which holds something else", expected))


def _holds_lists(path: Path) -> bool:
    """Whether a file is what `write_lists` writes, or empty."""
    name = path.name.lower()
    try:
        if path.stat().st_size == 0:
            return True
        if name.endswith(".parquet"):
            return bool(pq.read_schema(path).names == COLUMNS.names)
        with gzip.open(path) if name.endswith(".gz") else path.open("rb") as file:
            return file.readline(100).rstrip(b"\r\n") == ",".join(COLUMNS.names).encode()
    except (OSError, EOFError, zlib.error, pa.ArrowException):
        return False


def write_lists(
    recommender: Recommends,
    dataset: Dataset,
    out: Path,
    *,
    k: int,
    stage: Stage,
    as_of: AsOf,
    positions: I64,
    repeat: Repeat = Repeat.EXCLUDE,
    now: int = 0,
    mask: Mask = "seen",
) -> tuple[int, int]:
    """Writes the lists of a dataset's users to a file, as `write_states` does.

    Args:
        recommender: what is asked.
        dataset: whose users are asked for.
        out: the file; its ending tells the format.
        k: tracks per list.
        stage: the reranked list, or what retrieval alone finds.
        as_of: the fold up to which plays are known.
        positions: (n,) of the users, in this order.
        repeat: what happens to heard tracks.
        now: Unix seconds, from which ages count.
        mask: what counts as heard.

    Returns:
        How many lists are shorter than k, and how many rows were written.
    """
    states = user_states(dataset, as_of, positions=positions, mask=mask)
    if as_of == "now" or in_time(dataset):  # what a server knew; a fold drawn at random leaves a set
        states = with_plays(dataset, as_of, states, positions=positions)
    return write_states(recommender, states, len(positions), out, k=k, stage=stage, repeat=repeat, now=now)


def write_states(
    recommender: Recommends,
    states: Iterable[tuple[str, UserState]],
    n: int,
    out: Path,
    *,
    k: int,
    stage: Stage,
    repeat: Repeat = Repeat.EXCLUDE,
    now: int = 0,
) -> tuple[int, int]:
    """Writes lists to a file, which appears whole, or not at all when anything fails on the way.

    Args:
        recommender: what is asked.
        states: n pairs of user id and what is known of the user.
        n: how many.
        out: the file; its ending tells the format.
        k: tracks per list.
        stage: the reranked list, or what retrieval alone finds.
        repeat: what happens to heard tracks.
        now: Unix seconds, from which ages count.

    Returns:
        How many lists are shorter than k, and how many rows were written.
    """
    short = written = 0
    held: list[tuple[str, int, str, np.float32]] = []
    with _open(out) as write:
        for user_id, state in with_progress(states, n, "recommending"):
            answer = recommender.recommend(known_user(state, k, repeat=repeat, now=now))
            rows, scores = answer.rows, answer.scores
            if stage == "retrieval":
                rows, scores = answer.candidates[:k], answer.candidate_scores[:k]
            track_ids = recommender.catalog.track_ids(rows)
            held += zip([user_id] * len(rows), range(1, len(rows) + 1), track_ids, scores, strict=True)
            short += len(rows) < k
            written += len(rows)
            if len(held) >= _GROUP_ROWS:
                write(held)
                held = []
        write(held)
    return short, written


@contextmanager
def _open(out: Path) -> Iterator[Callable[[Rows], None]]:
    """Gives a function that appends rows to what becomes `out` when the block ends well."""
    name = out.name.lower()
    with files.replacing_file(out) as new, ExitStack() as stack:
        if name.endswith(".parquet"):
            parquet = stack.enter_context(pq.ParquetWriter(new, COLUMNS))
            yield lambda rows: parquet.write_table(_table(rows))
        else:
            file: io.BufferedWriter | gzip.GzipFile = stack.enter_context(new.open("wb"))
            if name.endswith(".gz"):  # no name, no time: the same lists are the same bytes
                file = gzip.GzipFile("", "wb", fileobj=file, mtime=0)
            text = csv.writer(stack.enter_context(io.TextIOWrapper(file, encoding="utf-8", newline="")))
            text.writerow(COLUMNS.names)
            yield lambda rows: text.writerows((*row[:3], f"{row[3]:.9g}") for row in rows)  # 9 digits: exact


def _table(rows: Rows) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, COLUMNS, strict=True)], schema=COLUMNS
    )
