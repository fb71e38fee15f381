"""How the service learns: its first bundle, and `lhydra retrain` after every week."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.drills.world import command
from benchmarks.loop.service import LEARNING, Played, track_id, user_id, write_released
from lhydra.bundle.manifest import current_bundle_id
from lhydra.data.world import World
from lhydra.files import write_text

MOMENTS = 1_000  # from which a retrain's head learns what comes next: few, to save time
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
    retrain = {"source": source, "store": store, "work": folder / "retrain", "plays": folder / "export.parquet"}
    retrain |= {"tracks": folder / "tracks.parquet", "model": model}
    sections: dict[str, Any] = {"retrain": {name: str(path.resolve()) for name, path in retrain.items()}}
    sections["train"] = {"epochs": epochs, "moments": MOMENTS}
    write_text(folder / "loop.yaml", json.dumps(sections, indent=1) + "\n")  # JSON is YAML


def learn(folder: Path, world: World, week: int, played: Sequence[Played]) -> dict[str, Any]:
    """Learns from what was played so far: one `lhydra retrain`, which decides whether its bundle is served.

    Args:
        folder: of the drill.
        world: the hidden truth, for what is released by the next week.
        week: that is over.
        played: since the service began.

    Returns:
        outcome, why, and the bundle that is served now.

    Raises:
        RuntimeError: it failed.
    """
    columns = {
        "user_id": [user_id(one.user) for one in played],
        "track_id": [track_id(one.track) for one in played],
        "timestamp": [one.time for one in played],
        "request_id": [one.request_id for one in played],
    }
    pq.write_table(pa.table(columns), folder / "export.parquet")
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
