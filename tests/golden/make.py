"""Makes the golden bundle of the current format: python tests/golden/make.py, from the root of the repository.

A world of 50 tracks, a model 8 numbers wide, its bundle, and what the bundle answers to some users at a moment, with
repeats and without. Run once when the
format changes, never to make a failing test pass: what is there already is not touched.
"""

import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.manifest import FORMAT
from lhydra.data.dataset import Dataset, user_states
from lhydra.data.plays import with_plays
from lhydra.data.prepare import prepare
from lhydra.data.settings import PrepareSettings
from lhydra.data.synth import write_world
from lhydra.domain import Query, UserState, no_hashes, no_history
from lhydra.recommender import Recommender
from lhydra.training.config import TrainSettings
from lhydra.training.train import train
from lhydra_index_builder.build import rebuild
from lhydra_index_builder.config import RebuildSettings

HERE = Path(__file__).resolve().parent
K = 5


def main() -> int:
    """Writes bundle_v<format>/ and answers_v<format>.json beside this file."""
    bundle, answers = HERE / f"bundle_v{FORMAT}", HERE / f"answers_v{FORMAT}.json"
    if bundle.exists() or answers.exists():
        print(f"format {FORMAT} has its golden files: they stay as they are", file=sys.stderr)
        return 1
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
    ):  # the manifest names no place of this machine
        write_world(Path("world"), users=200, tracks=50, plays=3_000, seed=3)
        options = PrepareSettings(split="next-session", valid_sessions=2, test_sessions=1)
        prepare(Path("world"), Path("dataset"), options)
        dataset = Dataset.open(Path("dataset"))
        train(dataset, Path("model"), TrainSettings(epochs=6, dim=8, hidden=8, temperature=0.15, threads=1))
        made = rebuild(Path("model"), dataset, Path("store"), RebuildSettings())
        shutil.copytree(Path("store") / made.bundle_id, bundle)
        recommender = Recommender(Bundle.open_folder(bundle))
        if not recommender.knows_repeats:
            raise SystemExit("the head knows nothing of moments: its answers would prove little")
        found = [asked(recommender, user_id, state) for user_id, state in queries(dataset)]
    answers.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{bundle}: tiers {sorted({answer['tier'] for answer in found})}")
    return 0


def queries(dataset: Dataset) -> list[tuple[str, UserState]]:
    """Eight users with all they have, then a profile alone, a history alone, and nobody."""
    states = list(with_plays(dataset, "test", user_states(dataset, "test")))
    known = [(user_id, state) for user_id, state in states if len(state.history) > 3 and state.profile][:8]
    _, some = known[0]
    profile = UserState(some.profile, no_history(), no_hashes())
    history = UserState({}, some.history, some.heard)
    return [*known, ("profile", profile), ("history", history), ("nobody", UserState())]


def asked(recommender: Recommender, user_id: str, state: UserState) -> dict[str, Any]:
    """What `recommender` answers, with all it takes to ask again."""
    now = int(state.recent["time"][-1]) + 600 if len(state.recent) else 0
    found = recommender.recommend(Query(k=K, state=state, exclude=state.heard, known=True, now=now))
    again = recommender.recommend(Query(k=K, state=state, known=True, now=now))
    return {
        "user_id": user_id,
        "profile": dict(state.profile),
        "history": [state.history[name].tolist() for name in ("track", "count", "time")],
        "heard": state.heard.tolist(),
        "repeats": [state.repeats[name].tolist() for name in ("first", "decayed")],
        "recent": [state.recent[name].tolist() for name in ("track", "time", "flags")],
        "now": now,
        "with_repeats": recommender.catalog.track_ids(again.rows),
        "tier": found.tier.label,
        "track_ids": recommender.catalog.track_ids(found.rows),
        "logits": np.round(found.logits.astype(float), 6).tolist(),
        "scores": np.round(found.scores.astype(float), 6).tolist(),
    }


if __name__ == "__main__":
    sys.exit(main())
