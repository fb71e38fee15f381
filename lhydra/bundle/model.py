"""The model folder: what training exports and rebuild, evaluation and bundles read.

MODEL/model.json       format, model_id, dim, parents, metrics, sha256 and size of every file below
      features.json    the fitted FeatureSpec
      item_tower.onnx  user_tower.onnx  head.onnx
      neighbours.npy  neighbour_weights.npy   the co-listening table, by number of the track id
      sequence_*.npy   what goes with what in time, likewise; only where single plays tell
      fitted_users.npz   whom it was fitted on, by keyed hash; not in models of before
      head.npz         the weights of head.onnx for the compiled loop; not in models of before
      metrics.jsonl    one line per epoch
      checkpoint/      what --resume continues from; not part of the model
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from lhydra import files
from lhydra.bundle import fitted, folded_head, sequence_files
from lhydra.bundle.networks import Head, ItemTower, UserTower
from lhydra.errors import BundleCorrupt, ModelError, complain
from lhydra.features.sequences import NO_SEQUENCES, Sequences
from lhydra.features.spec import FeatureSpec
from lhydra.files import FileInfo

FORMAT = 4
FORMATS = (3, FORMAT)  # those that open: 3 knows nothing of what comes next
GRAPHS = ("item_tower.onnx", "user_tower.onnx", "head.onnx")
TABLE = ("neighbours.npy", "neighbour_weights.npy")  # (1 + trained tracks, width) int32 and float16
PARTS = ("features.json", *GRAPHS, *TABLE)
OPTIONAL = (fitted.FILE, folded_head.FILE)  # models of before lack them
FITTED, REFITTED = "train", "train and valid"  # folds that the towers learnt from, as model.json names them

Chosen = TypedDict(
    "Chosen",
    {
        "ials": list[float],  # width, regularisation, alpha
        "co-listening": list[float],  # penalty: constant, share of the track's own weight
        "mix": list[float],  # weights of table and factors in the teacher's logits
        "temperature": float,
        "head epochs": int,
        "head strength": float,
        "co-listening share": NotRequired[float],  # of the candidates; not in models of before
        "sessions joined": NotRequired[bool],  # for what follows what; not in models of before
    },
)


class Parents(TypedDict):
    """What a model was made from: the source of its dataset, and how that was split."""

    dataset: str
    split: dict[str, Any]


class Quality(TypedDict, total=False):
    """Metrics on the validation fold, by name; `cascade` is cross-fitted. Without a validation fold there are none."""

    epoch: int  # of the towers that were kept
    retrieval: dict[str, float]
    cascade: dict[str, float]


@dataclass(frozen=True)
class ModelInfo:
    """What model.json says. Training fills what it knows, `lhydra.training.export` the rest."""

    format: int = FORMAT
    model_id: str = ""
    created: str = ""  # ISO 8601, UTC
    lhydra_version: str = ""
    dim: int = 0  # width of the vectors
    features: str = ""  # fingerprint of the feature spec
    files: dict[str, FileInfo] = field(default_factory=dict)
    parents: Parents | None = None
    config: dict[str, float] = field(default_factory=dict)  # fields of `TrainSettings`
    chosen: Chosen | None = None
    quality: Quality = field(default_factory=Quality)
    fitted_on: str = FITTED  # or REFITTED
    folds: tuple[Quality, ...] = ()  # of a cross-validation with --folds
    warm_from: str = ""  # model_id of the model whose towers it went on from, with --warm

    def to_json(self) -> str:
        """Returns the text of model.json."""
        unsaid = ("parents", "chosen", "folds", "warm_from")  # where there are none
        said = {name: value for name, value in asdict(self).items() if value or name not in unsaid}
        return json.dumps(said, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, folder: Path) -> "ModelInfo":
        """Reads the model.json of the model in `folder`.

        Args:
            folder: the model.

        Returns:
            What it says; keys that nobody knows are left out.

        Raises:
            ModelError: there is none, its format is another, or a part is missing or of another kind.
        """
        path, expected = folder / "model.json", "a folder made by `lhydra train`"
        if not folder.exists():
            raise ModelError(complain(folder, "nothing", expected))
        raw = files.read_json(path, ModelError, expected)
        if raw.get("format") not in FORMATS:
            raise ModelError(complain(path, f"format {raw.get('format')!r}", f"format {FORMAT}"))
        for name, kind in _KINDS.items():
            if name in raw and not isinstance(raw[name], kind):
                raise ModelError(complain(path, f"{name} {raw[name]!r}", f"{name} of type {kind.__name__}"))
            if name in ("model_id", "dim", "features", "files") and not raw.get(name):
                raise ModelError(complain(path, f"no {name}", expected))
        if raw["files"].keys() - {*OPTIONAL} not in (set(PARTS), {*PARTS, *sequence_files.FILES}):
            raise ModelError(complain(path, f"files {sorted(raw['files'])}", expected))
        known = {one.name: raw[one.name] for one in fields(cls) if one.name in raw}
        return cls(**known | {"folds": tuple(raw.get("folds", ()))})


_KINDS: dict[str, type] = {
    "model_id": str,
    "created": str,
    "lhydra_version": str,
    "dim": int,
    "features": str,
    "files": dict,
    "parents": dict,
    "config": dict,
    "chosen": dict,
    "quality": dict,
    "fitted_on": str,
    "folds": list,
    "warm_from": str,
}


@dataclass(frozen=True)
class Model:
    """An opened, checked model."""

    path: Path
    info: ModelInfo
    spec: FeatureSpec
    item_tower: ItemTower
    user_tower: UserTower
    head: Head
    neighbours: npt.NDArray[np.int32]
    neighbour_weights: npt.NDArray[np.float16]
    sequences: Sequences = NO_SEQUENCES

    @property
    def model_id(self) -> str:
        """Name of this training run's result."""
        return self.info.model_id

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.info.dim

    @classmethod
    def open(cls, path: Path, threads: int = 1) -> "Model":
        """Opens the model at `path` and checks every file.

        Args:
            path: folder made by `lhydra train`.
            threads: of each graph.

        Returns:
            The model; its table stays on disk until it is read.

        Raises:
            ModelError: it is not a sound model.
        """
        path = Path(path)
        info = ModelInfo.read(path)
        files.check(path, info.files, ModelError)
        spec = FeatureSpec.from_json((path / "features.json").read_text(encoding="utf-8"))
        towers = ItemTower(path / GRAPHS[0], threads), UserTower(path / GRAPHS[1], threads)
        table = (np.load(path / name, mmap_mode="r", allow_pickle=False) for name in TABLE)
        try:
            sequences = sequence_files.open_sequences(path, info.files)
        except BundleCorrupt as error:
            raise ModelError(str(error)) from None
        neighbours, weights = table
        head = Head(path / GRAPHS[2], threads, folded_head.read(path, info.files))
        return cls(path, info, spec, *towers, head, neighbours, weights, sequences)
