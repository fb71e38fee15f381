"""How the service learns: its first bundle, and what is done with the plays of a week."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.drills.world import command
from benchmarks.loop.service import LEARNING, Played, track_id, user_id, write_released
from lhydra.bundle.manifest import BUNDLE_ID, Manifest, current_bundle_id
from lhydra.data.world import World


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


def learn(folder: Path, world: World, week: int, played: Sequence[Played], epochs: int) -> dict[str, Any]:
    """Learns from the plays of a week; the gate of the rebuild decides whether that is served.

    Args:
        folder: of the drill.
        world: the hidden truth, for what is released by the next week.
        week: that is over.
        played: in it.
        epochs: of training.

    Returns:
        outcome, why, and the bundle that is served now.
    """
    new = folder / f"week-{week}"
    new.mkdir(exist_ok=True)
    columns = {
        "user_id": [user_id(one.user) for one in played],
        "track_id": [track_id(one.track) for one in played],
        "timestamp": [one.time for one in played],
    }
    pq.write_table(pa.table(columns), new / "plays.parquet")
    write_released(folder, world, week + 1, new / "tracks.parquet")
    dataset, model, store = folder / "dataset", new / "model", folder / LEARNING
    command("prepare", new, dataset, "--append")
    command("train", dataset, model, "--refit", "--epochs", epochs, "--seed", week)
    command("index", "rebuild", "--model", model, "--data", dataset, "--store", store, ok=False)
    made = max(path.name for path in store.iterdir() if BUNDLE_ID.fullmatch(path.name))
    gate = Manifest.read(store / made, made).gate
    refused = [f"{one['name']}: {one['note']}" for one in gate["checks"] if one["verdict"] == "refused"]
    outcome = "published" if current_bundle_id(store) == made else "refused"
    return {"outcome": outcome, "why": "; ".join(refused), "bundle_id": current_bundle_id(store)}
