"""How the service learns: its first bundle, and `lhydra retrain` after every week."""

import json
from pathlib import Path
from typing import Any

from benchmarks.drills.world import command
from benchmarks.loop.service import LEARNING, write_released
from lhydra.bundle.manifest import current_bundle_id
from lhydra.data.world import World
from lhydra.files import write_text

MOMENTS = 1_000  # from which a retrain's head learns what comes next: few, to save time
LATE_S = 10**9  # the weeks of the drill lie years before the day on which their plays are recorded
NOT_PUBLISHED = (3, 4)  # exit codes of a turn that ends well without a bundle


def begin(folder: Path, source: Path, epochs: int) -> None:
    """Trains the first model and publishes its bundle, with all listeners loaded.

    Args:
        folder: of the drill.
        source: what is known when the service begins.
        epochs: of training.
    """
    dataset, model, store = folder / "dataset", folder / "model", folder / LEARNING
    command("prepare", source, dataset)
    command("train", dataset, model, "--refit", "--epochs", epochs)
    command("index", "rebuild", "--model", model, "--data", dataset, "--store", store)
    command("users", "load", dataset, "--store", store)
    places = {"source": source, "store": store, "work": folder / "retrain", "tracks": folder / "tracks.parquet"}
    retrain = {name: str(path.resolve()) for name, path in {**places, "model": model}.items()}
    train = {"epochs": epochs, "moments": MOMENTS}
    sections = {"retrain": {**retrain, "late_s": LATE_S}, "train": train}
    write_text(folder / "loop.yaml", json.dumps(sections, indent=1) + "\n")  # JSON is YAML


def learn(folder: Path, world: World, week: int) -> dict[str, Any]:
    """Learns from what was recorded so far: one `lhydra retrain`, which decides whether its bundle is served.

    Args:
        folder: of the drill.
        world: the hidden truth, for what is released by the next week.
        week: that is over.

    Returns:
        outcome, why, and the bundle that is served now.

    Raises:
        RuntimeError: it failed.
    """
    write_released(folder, world, week + 1, folder / "tracks.parquet")
    ended = command("retrain", "--config", folder / "loop.yaml", "--json", ok=False)
    if ended.returncode and ended.returncode not in NOT_PUBLISHED:
        raise RuntimeError(f"lhydra retrain: {ended.stderr.strip().splitlines()[-1:]}")
    told = json.loads(ended.stdout)
    return {
        "outcome": told["outcome"],
        "why": told["why"],
        "judged": told["steps"].get("judge", {}).get("change"),
        "bundle_id": current_bundle_id(folder / LEARNING),
    }
