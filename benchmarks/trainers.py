"""What other recommender libraries reach in how long on the same plays, beside `lhydra train`.

    python -m benchmarks.trainers DATASET --librecommender PYTHON --recbole PYTHON --out FILE.json

Each PYTHON is the interpreter of an environment that holds the library: neither agrees with the versions that Lhydra is
tested with. A library that cannot be imported is skipped, with what it said. All learn from the train and valid plays,
with the defaults of their makers but for the numbers of vectors, and are judged by NDCG@10 on the test tracks that a
user has not played, over the full catalogue. Peers know ids alone; they are judged after each epoch, off the clock,
until `--limit` seconds of training. Lhydra is judged once, as `lhydra train` leaves it, teachers and head included.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import untuned_blas
from benchmarks.machine import core_scaling, machine, noise_line, versions
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.data.dataset import TEST, Dataset
from lhydra.errors import LhydraError
from lhydra.evaluation.metrics import rank_metrics
from lhydra.features.histories import offsets_of
from lhydra.files import write_text

K, DIM = 10, 128
# Each program reads users and tracks of known plays, and prints JSON lines: the version, then an epoch each, with the
# seconds since training began that were training, and (users, K) tracks.
START = """
import json, sys, time
from importlib.metadata import version
import numpy as np
plays, limit_s, seed, dim, k, folder = sys.argv[1], float(sys.argv[2]), *map(int, sys.argv[3:6]), sys.argv[6]
user, track = np.load(plays)
n_users, n_tracks = int(user.max()) + 1, int(track.max()) + 1
def told(took_s, scores):
    scores[user, track] = -np.inf
    print(json.dumps({"took_s": took_s, "lists": np.argsort(-scores, 1, kind="stable")[:, :k].tolist()}), flush=True)
"""
LIBRECOMMENDER = (
    START
    + """
import os
os.environ["TF_USE_LEGACY_KERAS"] = "1"
import pandas as pd
from libreco.algorithms import TwoTower
from libreco.data import DatasetPure
frame = pd.DataFrame({"user": user, "item": track, "label": 1})
train, info = DatasetPure.build_trainset(frame)
print(json.dumps({"version": version("librecommender")}), flush=True)
model = TwoTower("ranking", info, embed_size=dim, n_epochs=1, seed=seed)
users = [info.user2id[u] if u in info.user2id else -1 for u in range(n_users)]
items = [info.item2id[i] if i in info.item2id else -1 for i in range(n_tracks)]
took_s = 0.0
while took_s < limit_s:
    began = time.monotonic()
    model.fit(train, neg_sampling=True, verbose=0)
    took_s += time.monotonic() - began
    model.set_embeddings()  # fit does that the first time alone
    scores = model.user_embeds_np[users] @ model.item_embeds_np[items].T
    scores[:, np.array(items) < 0] = -np.inf
    told(took_s, scores)
"""
)
RECBOLE = (
    START
    + """
import os
from pathlib import Path
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.general_recommender import BPR
from recbole.trainer import Trainer
from recbole.utils import init_seed
rows = [f"{u}\\t{i}" for u, i in zip(user.tolist(), track.tolist())]
os.makedirs(f"{folder}/plays")
for name, part in (("train", rows), ("valid", rows[:1]), ("test", rows[:1])):
    Path(f"{folder}/plays/plays.{name}.inter").write_text("\\n".join(["user_id:token\\titem_id:token", *part]) + "\\n")
config = Config(model="BPR", dataset="plays", config_dict={
    "data_path": folder, "benchmark_filename": ["train", "valid", "test"],
    "load_col": {"inter": ["user_id", "item_id"]},
    "embedding_size": dim, "seed": seed, "state": "ERROR", "show_progress": False, "checkpoint_dir": folder,
})
init_seed(seed, True)
dataset = create_dataset(config)
train, _, _ = data_preparation(config, dataset)
print(json.dumps({"version": version("recbole")}), flush=True)
model = BPR(config, train.dataset)
trainer, took_s, epoch = Trainer(config, model), 0.0, 0
users = [dataset.field2token_id["user_id"].get(str(u), 0) for u in range(n_users)]
items = [dataset.field2token_id["item_id"].get(str(i), 0) for i in range(n_tracks)]
while took_s < limit_s:
    began = time.monotonic()
    trainer._train_epoch(train, epoch, show_progress=False)
    took_s, epoch = took_s + time.monotonic() - began, epoch + 1
    scores = (model.user_embedding.weight[users] @ model.item_embedding.weight[items].T).detach().numpy()
    scores[:, np.array(items) == 0] = -np.inf
    told(took_s, scores)
"""
)
PEERS = {"LibRecommender, TwoTower": LIBRECOMMENDER, "RecBole, BPR": RECBOLE}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each library and writes the JSON.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 when Lhydra failed, or FILE holds something else.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--librecommender", metavar="PYTHON", help="interpreter that has it, with TensorFlow")
    parser.add_argument("--recbole", metavar="PYTHON", help="interpreter that has it")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of training of each peer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON to write")
    args = parser.parse_args(argv)
    untuned_blas()
    before = core_scaling()
    try:
        check_output("--out", args.out, is_json_with("benchmark", "trainers"))
        dataset = Dataset.open(args.dataset)
        found = {"Lhydra": lhydra(args.dataset, args.seed)}
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"a process failed: {error.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return 1
    wanted = found["Lhydra"]["ndcg"]
    print(f"Lhydra: NDCG@{K} {wanted:.4f} after {found['Lhydra']['took_s']:.0f} s", flush=True)
    for (name, program), python in zip(PEERS.items(), (args.librecommender, args.recbole), strict=True):
        found[name] = peer(dataset, program, python, args.limit, args.seed) if python else {"skipped": "not asked for"}
        print(f"{name}: {told(found[name], wanted)}", flush=True)
    noise = noise_line(before, core_scaling())
    source = Path(dataset.info.source).name
    document = {
        "benchmark": "trainers",
        "command": f"python -m benchmarks.trainers {source} --limit {args.limit:g} --seed {args.seed}",
        "machine": machine(),
        "noise": noise,
        "versions": versions(),
        "settings": {"k": K, "dim": DIM},
        "trainers": found,
    }
    if args.out:
        write_text(args.out, json.dumps(document, indent=1) + "\n")
    print(noise)
    return 0


def lhydra(path: Path, seed: int) -> dict[str, Any]:
    """Trains Lhydra by its command, and evaluates it by its command.

    Args:
        path: the dataset.
        seed: of the training.

    Returns:
        Seconds of `lhydra train`, and NDCG@10 of retrieval and head.

    Raises:
        subprocess.CalledProcessError: a command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lhydra.cli"]
        began = time.monotonic()
        words = ["train", str(path), f"{folder}/model", "--seed", str(seed), "--dim", str(DIM)]
        subprocess.run([*command, *words], check=True, capture_output=True, text=True)
        took_s = time.monotonic() - began
        words = ["evaluate", str(path), "--model", f"{folder}/model", "--json", f"{folder}/found.json"]
        subprocess.run([*command, *words, "--baselines", "none"], check=True, capture_output=True, text=True)
        found = json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))
        return {"took_s": took_s, "ndcg": found["ranking"]["cascade"]["ndcg@10"]["mean"]}


def peer(dataset: Dataset, program: str, python: str, limit_s: float, seed: int) -> dict[str, Any]:
    """Trains a peer in a process of its own.

    Args:
        dataset: whose train and valid plays it learns from.
        program: one of PEERS.
        python: interpreter that has the library.
        limit_s: seconds of training, of which the epoch that begins last is the end.
        seed: of the training.

    Returns:
        Its version, plays learnt a second, and of each epoch seconds of training so far and NDCG@10; or why it is
        skipped.
    """
    plays = dataset.plays
    known = plays.where(plays.fold != TEST)
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/plays.npy", np.unique(np.stack([known.user, known.track]), axis=1))
        words = [f"{folder}/plays.npy", str(limit_s), str(seed), str(DIM), str(K), folder]
        try:
            done = subprocess.run(
                [python, "-c", program, *words], capture_output=True, text=True, check=False, cwd=folder
            )
        except OSError as error:
            return {"skipped": str(error)}
    if done.returncode:
        return {"skipped": done.stderr.strip().splitlines()[-1]}
    first, *epochs = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    curve = [(round(epoch["took_s"], 2), ndcg(dataset, epoch["lists"])) for epoch in epochs]
    n_plays = len(np.unique(known.user.astype(np.int64) * dataset.n_tracks + known.track))
    return {**first, "plays_per_s": round(n_plays * len(curve) / curve[-1][0]), "epochs": curve}


def ndcg(dataset: Dataset, lists: list[list[int]]) -> float:
    """Judges lists by the test tracks that a user has not played before.

    Args:
        dataset: of the plays.
        lists: of the first users, ten tracks of each.

    Returns:
        NDCG@10, the mean over users with such tracks.
    """
    plays, n = dataset.plays, dataset.n_tracks
    pair = plays.user.astype(np.int64) * n + plays.track
    test = np.setdiff1d(pair[plays.fold == TEST], pair[plays.fold != TEST])
    n_users = len(dataset.user_ids)
    rows = np.full((n_users, K), -1, np.int64)
    rows[: len(lists)] = lists
    offsets = offsets_of(np.bincount(test // n, minlength=n_users).astype(np.int64))
    return float(rank_metrics(rows, offsets, test % n, n, (K,)).means()[f"ndcg@{K}"])


def told(found: dict[str, Any], wanted: float) -> str:
    """Tells of a peer in a line.

    Args:
        found: from `peer`.
        wanted: NDCG@10 of Lhydra.

    Returns:
        The line.
    """
    if "skipped" in found:
        return f"skipped: {found['skipped']}"
    best_s, best = max(found["epochs"], key=lambda epoch: epoch[1])
    equal = next((f"after {took_s:.0f} s" for took_s, quality in found["epochs"] if quality >= wanted), "not reached")
    last_s = found["epochs"][-1][0]
    return (
        f"NDCG@{K} {best:.4f} at best, after {best_s:.0f} of {last_s:.0f} s; Lhydra's {wanted:.4f} {equal}; "
        f"{found['plays_per_s']:,} plays/s"
    )


if __name__ == "__main__":
    sys.exit(main())
