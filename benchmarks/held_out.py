"""Tells whether a published split validates on what it tests on, and draws a validation fold that does.

    python -m benchmarks.held_out SOURCE [--last OUT] [--out FILE.json]

SOURCE/plays.csv has the columns user_id, track_id and split, rows of a user in order of listening. A published split
may tell no times and still hold out what came last. What is held out is then most like the last train rows of its user.
Validation rows drawn at random among the train rows, with train rows before and after them, are another task, and an
easier one. A model that is tuned on them is tuned for that.

The measure is the mean cosine of co-listening (of the train rows, shrunk) between the tracks of a fold and the train
tracks of their user, by tenths of the user's train rows in the order of the file. --last writes a source to OUT whose
test rows are the same. Of each user's other rows the last ninth, at least one, is valid. Former validation rows, whose
place is not known, count as the oldest.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from benchmarks.machine import machine, versions
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.errors import LhydraError
from lhydra.files import write_text

F64 = npt.NDArray[np.float64]
TENTHS, LEAST = 10, 20  # parts of the train rows of a user, who has at least LEAST of them
SHRINKAGE = 20.0  # of the cosine
USERS, SEED = 3_000, 0  # a random choice of more
SHARE = 1 / 9  # of the rows that are not test
COLUMNS = ("user_id", "track_id", "split")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the likeness of each fold to train, writes what is asked for.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 after bad input.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("--last", type=Path, metavar="OUT", help="folder to write, new")
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "likeness"))
        plays = pd.read_csv(args.source / "plays.csv", dtype=dict.fromkeys(COLUMNS, str))
        found = {name: likeness(plays, name).round(5).tolist() for name in ("valid", "test")}
        if args.last:
            shutil.copytree(args.source, args.last)
            last_valid(plays).to_csv(args.last / "plays.csv", index=False)
    except (LhydraError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for name, values in found.items():
        print(f"{name:5}", *(f"{value:.4f}" for value in values))
    if args.out:
        document = {
            "benchmark": "held_out",
            "command": f"python -m benchmarks.held_out {args.source.name}{' --last OUT' if args.last else ''}",
            "machine": machine(),
            "versions": versions() | {name: version(name) for name in ("pandas", "scipy")},
            "users": USERS,
            "seed": SEED,
            "likeness": found,
        }
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    return 0


def likeness(plays: pd.DataFrame, fold: str) -> F64:
    """Measures how like what is held out is to earlier and later train rows.

    Args:
        plays: columns COLUMNS, the rows of a user in order.
        fold: valid or test.

    Returns:
        (TENTHS,) float64 mean cosine to each tenth of the train rows, NaN where nobody has rows of both.
    """
    users, tracks = (pd.factorize(plays[name])[0] for name in COLUMNS[:2])
    train, held = (plays["split"] == name for name in ("train", fold))
    weight = np.ones(int(train.sum()), np.float32)
    by_user = sp.csr_matrix((weight, (users[train], tracks[train])), shape=(users.max() + 1, tracks.max() + 1))
    scale = sp.diags(1 / np.sqrt(np.asarray(by_user.sum(0)).ravel() + SHRINKAGE))
    listeners = (by_user @ scale).T.tocsr()
    shown, wanted = (pd.Series(tracks[some]).groupby(users[some]).agg(list) for some in (train, held))
    both = np.intersect1d(shown.index[shown.map(len) >= LEAST], wanted.index)
    total, count = np.zeros(TENTHS), np.zeros(TENTHS)
    for user in np.sort(np.random.default_rng(SEED).permutation(both)[:USERS]):
        own = shown[user]
        cosine = np.asarray((listeners[wanted[user]] @ listeners[own].T).mean(0)).ravel()
        tenth = np.arange(len(own)) * TENTHS // len(own)
        total += np.bincount(tenth, cosine, TENTHS)
        count += np.bincount(tenth, minlength=TENTHS)
    with np.errstate(invalid="ignore"):
        return total / count


def last_valid(plays: pd.DataFrame) -> pd.DataFrame:
    """Draws the validation fold from the end of what is not test.

    Args:
        plays: columns COLUMNS, the rows of a user in order.

    Returns:
        The same rows, of each user those of the former validation fold first, those of test last.
    """
    rank = plays["split"].map({"valid": 0, "train": 1, "test": 2})
    ordered = plays.assign(rank=rank).sort_values(["user_id", "rank"], kind="stable", ignore_index=True)
    test = ordered.pop("rank") == 2
    by_user = ordered.loc[~test].groupby("user_id")["track_id"]
    size, place = by_user.transform("size"), by_user.cumcount()
    valid = place >= size - np.maximum(1, (size * SHARE).round())
    ordered.loc[~test, "split"] = np.where(valid, "valid", "train")
    return ordered


if __name__ == "__main__":
    sys.exit(main())
