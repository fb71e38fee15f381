"""What the drills serve: a store with two bundles of different models, and the lists that each must answer with."""

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.latency.own_server import child_environment
from lhydra.bundle.manifest import BUNDLE_ID, current_bundle_id

LHYDRA = (sys.executable, "-m", "lhydra.cli")
K, N_USERS = 20, 200
NOW_S = 2_000_000_000  # the clock of every request: after every play
TOLERANCE = 1e-5  # of a score, between a process and another

List = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class World:
    """A store, and what is right of it.

    Attributes:
        folder: for what drills write.
        dataset: what the models were fitted on.
        store: with two bundles.
        bundles: the ids of both.
        now_s: the clock of every request.
        lists: (track id, score) of every list, by bundle id and user id.
    """

    folder: Path
    dataset: Path
    store: Path
    bundles: tuple[str, str]
    now_s: int
    lists: dict[tuple[str, str], List]

    @property
    def users(self) -> list[str]:
        """Those whose lists are known."""
        return [user for bundle, user in self.lists if bundle == self.bundles[0]]

    def right(self, bundle: str, user: str, found: Sequence[tuple[str, float]]) -> bool:
        """Compares a list with the one that the bundle which it names gives.

        Args:
            bundle: that the answer named.
            user: who asked.
            found: (track id, score) in order.

        Returns:
            Whether ids and order are equal, and scores within TOLERANCE.
        """
        wanted = self.lists[bundle, user]
        return [track for track, _ in found] == [track for track, _ in wanted] and all(
            abs(score - right) <= TOLERANCE for (_, score), (_, right) in zip(found, wanted, strict=True)
        )

    def copy(self, name: str) -> Path:
        """Copies the store for a drill that harms it.

        Args:
            name: of the copy; one of before is replaced.

        Returns:
            The copy.
        """
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return Path(shutil.copytree(self.store, self.folder / name))


def command(*words: object, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs `lhydra` with these words.

    Args:
        words: of the command line.
        ok: whether it must succeed.

    Returns:
        The ended process, with what it printed.

    Raises:
        RuntimeError: it failed, and should not have; says its last line.
    """
    ended = subprocess.run(
        [*LHYDRA, *map(str, words)], env=child_environment(), capture_output=True, text=True, errors="replace"
    )
    if ok and ended.returncode:
        raise RuntimeError(f"lhydra {words[0]}: {ended.stderr.strip().splitlines()[-1:]}")
    return ended


def make(folder: Path) -> World:
    """Opens the world of a folder; makes it where it is not there yet, in two or three minutes.

    Args:
        folder: of the drills.

    Returns:
        The world.
    """
    demo = folder / "demo"
    if not (demo / "store" / "CURRENT").exists():
        command("demo", demo)
    dataset, store = demo / "dataset", demo / "store"
    found = sorted(path.name for path in store.iterdir() if BUNDLE_ID.fullmatch(path.name))
    if len(found) == 1:
        command("train", dataset, demo / "other", "--seed", 1, "--epochs", 3, "--head-epochs", 2)
        command("index", "rebuild", "--model", demo / "other", "--data", dataset, "--store", store, "--force")
        command("index", "rollback", found[0], "--store", store)
        found = sorted(path.name for path in store.iterdir() if BUNDLE_ID.fullmatch(path.name))
    first, second = found[-2:]
    if current_bundle_id(store) != first:
        command("index", "rollback", first, "--store", store)
    return known(folder, dataset, store, (first, second))


def known(folder: Path, dataset: Path, store: Path, bundles: tuple[str, str]) -> World:
    """Opens the world of a store, with the lists that `lhydra recommend` writes for each bundle.

    Args:
        folder: for what drills write.
        dataset: whose listeners the store knows.
        store: with both bundles.
        bundles: their ids, the current one first.

    Returns:
        The world.
    """
    users = _users(dataset)
    lists = {
        (bundle, user): one
        for bundle in bundles
        for user, one in _lists(dataset, store, bundle, users, folder / f"{bundle}.csv").items()
    }
    return World(folder, dataset, store, bundles, NOW_S, lists)


def _users(dataset: Path) -> list[str]:
    from lhydra.data.dataset import Dataset

    return Dataset.open(dataset).user_ids[:N_USERS]


def _lists(dataset: Path, store: Path, bundle: str, users: Sequence[str], out: Path) -> dict[str, List]:
    """What `lhydra recommend` writes, in a process of its own."""
    if not out.exists():
        words = ["--users", ",".join(users), "--as-of", "now", "--now-s", NOW_S, "--k", K, "--bundle", bundle]
        command("recommend", dataset, store, *words, "--out", out)
    lists: dict[str, list[tuple[str, float]]] = {}
    with out.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            lists.setdefault(row["user_id"], []).append((row["track_id"], float(row["score"])))
    return {user: tuple(found) for user, found in lists.items()}


def publish(store: Path, bundle: str) -> None:
    """Names another bundle in CURRENT, as the commands do.

    Args:
        store: with the bundle.
        bundle: its id.
    """
    fresh = store / ".CURRENT.drill"
    fresh.write_text(f"{bundle}\n")
    os.replace(fresh, store / "CURRENT")
