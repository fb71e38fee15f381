"""The model folder: what training exports and rebuild, evaluation and bundles read.

MODEL/model.json       format, model_id, dim, parents, metrics, sha256 and size of every file below
      features.json    the fitted FeatureSpec
      item_tower.onnx  user_tower.onnx  head.onnx
      neighbours.npy  neighbour_weights.npy   the co-listening table, by number of the track id
      metrics.jsonl    one line per epoch
      checkpoint/      what --resume continues from; not part of the model
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lhydra import files
from lhydra.bundle.networks import Head, ItemTower, UserTower
from lhydra.errors import ModelError, complain
from lhydra.features.spec import FeatureSpec

FORMAT = 3
GRAPHS = ("item_tower.onnx", "user_tower.onnx", "head.onnx")
TABLE = ("neighbours.npy", "neighbour_weights.npy")  # (1 + trained tracks, width) int32 and float16
PARTS = ("features.json", *GRAPHS, *TABLE)


@dataclass(frozen=True)
class Model:
    """An opened, checked model."""

    path: Path
    info: dict[str, Any]
    spec: FeatureSpec
    item_tower: ItemTower
    user_tower: UserTower
    head: Head
    neighbours: npt.NDArray[np.int32]
    neighbour_weights: npt.NDArray[np.float16]

    @property
    def model_id(self) -> str:
        """Name of this training run's result."""
        return str(self.info["model_id"])

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self.info["dim"])

    @classmethod
    def open(cls, path: Path, threads: int = 1) -> "Model":
        """Opens the model at `path` and checks every file. Raises ModelError when it is not a sound model."""
        path = Path(path)
        expected = "a folder made by `lhydra train`"
        if not path.exists():
            raise ModelError(complain(path, "nothing", expected))
        info = files.read_json(path / "model.json", ModelError, expected)
        if info.get("format") != FORMAT:
            raise ModelError(complain(path / "model.json", f"format {info.get('format')!r}", f"format {FORMAT}"))
        if sorted(info.get("files", ())) != sorted(PARTS):
            raise ModelError(complain(path / "model.json", f"files {sorted(info.get('files', ()))}", expected))
        files.check(path, info["files"], ModelError)
        spec = FeatureSpec.from_json((path / "features.json").read_text(encoding="utf-8"))
        towers = ItemTower(path / GRAPHS[0], threads), UserTower(path / GRAPHS[1], threads)
        table = (np.load(path / name, mmap_mode="r", allow_pickle=False) for name in TABLE)
        return cls(path, info, spec, *towers, Head(path / GRAPHS[2], threads), *table)
