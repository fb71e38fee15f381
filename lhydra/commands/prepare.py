"""`lhydra prepare`: a listening log in, a dataset out."""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lhydra import config
from lhydra.commands.outputs import check_output, is_page
from lhydra.commands.summary import tell
from lhydra.console import step_display
from lhydra.data.settings import PrepareSettings
from lhydra.errors import ConfigError, complain

if TYPE_CHECKING:
    from lhydra.data.logged import Logged

HELP = "check a listening log, split it and write it as a dataset"
EXTRA = "data"
SETTINGS = PrepareSettings
_EPILOG = """\
SOURCE is one of
  a flat file    one .csv, .csv.gz, .jsonl or .parquet: a row per user and track, with the columns
                 of the play, the track and the user side by side
  a folder       plays.csv, tracks.csv and users.csv (or .csv.gz, .tsv, .jsonl, .parquet); users and
                 tracks may be left out; plays-1.csv, plays-2.csv and so on are one table
  an export      of another program, as it is: a file, a folder, a zip; see --format
  'a pattern*'   several files of one table; - is standard input

Only user_id and track_id are required; every other column may be missing. Known by name, in any
case:
  plays    user_id  track_id  playcount (1)  timestamp (Unix seconds or ISO 8601, UTC)
           split (train, valid or test)  session  position (order without a clock)
           skipped  completed  ms_played
  tracks   track_id  name  artist  album  genre  main_genre  explicit  year
           tags (a|b, a;b, a, b or a list)  duration_ms  danceability  energy  key  loudness
           mode  speechiness  acousticness  instrumentalness  liveness  valence  tempo  time_signature
  users    user_id  age  gender  region  country  occupation

Ids are text and stay exactly as they are ('007', '1.0', 'NA'). An empty cell is a missing value.
Any other column is listed, and used when the YAML file of --config declares it:
  columns:
    tracks:
      mood: {kind: categorical}      # numeric, categorical, multi or year
    users:
      plan: {kind: categorical}
  prepare:
    split: random                    # any flag below, by its name

Splits
  column       the column split as it is
  temporal     the last plays of the whole log: all up to one moment are train, the next valid
  leave-last   each user's last track is test, the one before valid
  random       each pair of user and track by itself, by a hash of the ids and the seed
  next-session of each user the last sessions test, those before valid (a pause of 30 minutes ends a
               session that the source does not name)
  global-time  the last day test, a day before a gap valid, what lies before another gap train
  With temporal and leave-last a user with fewer than 3 tracks is all train.

Bad rows (empty ids, playcounts that are negative or no number, tracks twice with different data,
tracks missing from the tracks file, unreadable times) are counted and dropped; --strict refuses
them. A file that is not what it claims to be is always refused. DATASET is written as a whole at
the end; one that exists already is replaced, unless its folder holds other things.

example
  lhydra prepare listening/ dataset/ --split temporal
  lhydra prepare listening/ dataset/ --report prepare.html   # plays by time, user and track, drawn
  lhydra prepare plays.csv.gz dataset/ --config lhydra.yaml --strict
  lhydra prepare log.txt dataset/ --sep tab --columns user=userid,track=artistid,timestamp=uts
  lhydra prepare my_spotify_data/ dataset/ --append          # one person's plays beside the others
  lhydra prepare listening/ dataset/ --plays store/          # with the plays that servers recorded
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `lhydra prepare`.

    Args:
        parser: of the command.
    """
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a CSV, JSON or Parquet file, or a folder of them")
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="folder to write")
    config.add_flags(parser, PrepareSettings)
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="draw what the log is like as a page")
    parser.add_argument("--json", action="store_true", help="print what dataset.json says, nothing else")


def run(args: argparse.Namespace) -> int:
    """Runs `lhydra prepare`.

    Args:
        args: of the command line.

    Returns:
        0.
    """
    settings = config.resolve("prepare", PrepareSettings, args)
    from lhydra.data.prepare import prepare
    from lhydra.data.schema import DeclaredColumns

    columns = DeclaredColumns.from_config(args.config)
    if args.report is not None:
        _check_report(args.report, args.dataset)
    start = time.perf_counter()
    with _recorded(settings.plays) as logged, step_display() as show:
        info = prepare(args.source, args.dataset, settings, columns, lambda step: show(f"{step} ..."), logged=logged)
    if args.json:
        print(info.to_json(), end="")
    else:
        print(tell(info, args.dataset, time.perf_counter() - start))
    if args.report is not None:
        _draw(args.report, args.dataset)
        if not args.json:
            print(f"wrote {args.report}: open it in a browser")
    return 0


@contextmanager
def _recorded(place: str | None) -> "Iterator[Logged | None]":
    """Yields the plays that servers recorded, as files: exports as they are, or what a user store holds, exported."""
    from lhydra.data.logged import Logged, read_logged

    if place is None:
        yield None
        return
    path = Path(place)
    if path.is_file() or (path.is_dir() and any(path.glob("*.parquet"))):
        found = read_logged(path)
        if not found.until:
            print(f"note: no recorded plays in {path}", file=sys.stderr)
        yield found if found.until else None
        return
    from lhydra.commands.user_store import opened
    from lhydra.events.export import write

    url, store = (place, None) if ":" in place and not path.exists() else (None, path)
    with tempfile.TemporaryDirectory(prefix="lhydra-") as work, opened(url, store) as (users, where):
        out = Path(work) / "plays.parquet"
        n_plays, span = write(out, users.event_log().identity, "", users.entries())
        if not n_plays:
            print(f"note: no recorded plays in {where}", file=sys.stderr)
        yield Logged(out, span.store, span.end, where) if n_plays else None


def _draw(path: Path, dataset: Path) -> None:
    """Writes the page of a dataset, once what was made is told: it stays whole where the page cannot be written."""
    from lhydra.data.dataset import Dataset
    from lhydra.data.page import render
    from lhydra.files import write_text

    page = render(Dataset.open(dataset))
    try:
        write_text(path, page)
    except OSError as error:
        expected = f"a file that can be written; {dataset} is whole"
        raise ConfigError(complain(f"--report {path}", str(error.strerror), expected)) from None


def _check_report(path: Path, dataset: Path) -> None:
    """Refuses a page that could not be written, before any work."""
    from lhydra.page.page import tools

    check_output("--report", path, is_page("dataset"))
    if path.resolve().is_relative_to(dataset.resolve()):
        raise ConfigError(
            complain("--report", f"{path} in the dataset", "a file elsewhere: a dataset holds nothing else")
        )
    tools()
