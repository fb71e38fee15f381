"""Settings of `lhydra train`: one definition of flags, YAML keys and environment."""

from dataclasses import dataclass

from lhydra.config import setting
from lhydra.errors import ConfigError, complain


@dataclass(frozen=True)
class TrainSettings:
    """How to train. The defaults suit every data set; what must differ is tuned on the validation fold."""

    epochs: int = setting(16, "most passes over the users; fewer when validation stops improving")
    patience: int = setting(8, "epochs without a better validation NDCG@10 before stopping")
    batch_size: int = setting(0, "users per step; 0 chooses a fifteenth of the users, 64 to 256")
    learning_rate: float = setting(1e-3, "peak learning rate of the towers (cosine schedule with warm-up)")
    head_learning_rate: float = setting(1e-3, "peak learning rate of the head")
    weight_decay: float = setting(1e-5, "of the towers")
    head_weight_decay: float = setting(1e-2, "of the head")
    clip_norm: float = setting(5.0, "largest norm of the gradient")
    dim: int = setting(128, "width of the vectors")
    hidden: int = setting(128, "width of the hidden layers; half of it in the head")
    dropout: float = setting(0.2, "dropout in the dense layers")
    id_dropout: float = setting(0.05, "share of tracks whose id is hidden in a step, so that new tracks work")
    keep: float = setting(0.8, "chance that a play stays in the history rather than become a target")
    cold: float = setting(0.05, "share of users whose whole history is hidden in a step, so that new users work")
    longest_history: int = setting(512, "plays of a history seen in a step, chosen at random from a longer one")
    temperature: float = setting(0.1, "of the retrieval softmax; 0 tunes it on the validation fold by short runs")
    distil: float = setting(0.3, "weight of the closed-form teachers in the retrieval loss")
    full_softmax: int = setting(20_000, "largest catalogue with a full softmax; sampled with logQ beyond")
    uniform_negatives: int = setting(8_192, "tracks drawn uniformly in a step of the sampled softmax")
    depth: int = setting(300, "candidates that the head is trained to rerank")
    head_epochs: int = setting(6, "most passes of the head's deep part; fewer when held-out users say so")
    threads: int = setting(0, "threads of torch; 0 takes half the cores: waiting for a busy one costs more")
    seed: int = setting(0, "of everything random")

    def __post_init__(self) -> None:
        """Raises ConfigError naming the first value out of range."""
        for name in ("epochs", "patience", "dim", "hidden", "depth", "longest_history", "uniform_negatives"):
            if getattr(self, name) < 1:
                raise ConfigError(complain(f"train.{name}", str(getattr(self, name)), "at least 1"))
        for name in ("dropout", "id_dropout", "cold", "keep", "distil"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(complain(f"train.{name}", str(getattr(self, name)), "0 or more, below 1"))
        for name in ("learning_rate", "head_learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(complain(f"train.{name}", str(getattr(self, name)), "more than 0"))
        for name in (
            "temperature",
            "head_epochs",
            "batch_size",
            "threads",
            "seed",
            "weight_decay",
            "head_weight_decay",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(complain(f"train.{name}", str(getattr(self, name)), "0 or more"))
