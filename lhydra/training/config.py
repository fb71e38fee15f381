"""Settings of `lhydra train`: one definition of flags, YAML keys and environment."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from lhydra.config import Settings, setting

if TYPE_CHECKING:
    from lhydra.data.dataset import Plays

CYCLE = 16  # epochs after which the learning rate starts anew
MAX_WIDTH = 4_096  # of vectors and layers: far above any use, so that a slip of the keyboard ends before any work
FEW_STEPS, CYCLES_OF_FEW = 32, 3  # an epoch of so few users has at most so many steps; cycles that they take at most
USERS_PER_STEP = 64, 256  # fewest and most, where nobody says how many


@dataclass(frozen=True)
class TrainSettings(Settings):
    """How to train. The defaults suit every data set; what must differ is tuned on the validation fold."""

    epochs: int = setting(
        0, "most passes over the users; fewer when validation stops improving; 0: 16, of few users 48", low=0
    )
    patience: int = setting(
        CYCLE, "epochs without a better validation quality before stopping, counted anew in each cycle", low=1
    )
    batch_size: int = setting(0, "users per step; 0 chooses a fifteenth of the users, 64 to 256", low=0)
    learning_rate: float = setting(1e-3, "peak learning rate of the towers (cosine schedule with warm-up)", above=0)
    head_learning_rate: float = setting(1e-3, "peak learning rate of the head", above=0)
    weight_decay: float = setting(1e-5, "weight decay of the towers", low=0)
    head_weight_decay: float = setting(1e-2, "weight decay of the head", low=0)
    clip_norm: float = setting(5.0, "largest norm of the gradient", above=0)
    dim: int = setting(128, "width of the vectors", low=1, high=MAX_WIDTH)
    hidden: int = setting(128, "width of the hidden layers; half of it in the head", low=1, high=MAX_WIDTH)
    dropout: float = setting(0.2, "dropout in the dense layers", low=0, below=1)
    id_dropout: float = setting(
        0.05, "share of tracks whose id is hidden in a step, so that new tracks work", low=0, below=1
    )
    keep: float = setting(0.8, "chance that a play stays in the history rather than become a target", low=0, below=1)
    cold: float = setting(
        0.05, "share of users whose whole history is hidden in a step, so that new users work", low=0, below=1
    )
    longest_history: int = setting(512, "plays of a history seen in a step, chosen at random from a longer one", low=1)
    temperature: float = setting(
        0.1, "temperature of the retrieval softmax; 0 tunes it on the validation fold by short runs", low=0
    )
    distil: float = setting(0.3, "weight of the closed-form teachers in the retrieval loss", low=0, below=1)
    full_softmax: int = setting(20_000, "largest catalogue with a full softmax; sampled with logQ beyond", low=0)
    uniform_negatives: int = setting(8_192, "tracks drawn uniformly in a step of the sampled softmax", low=1)
    depth: int = setting(300, "candidates that the head is trained to rerank", low=1)
    head_epochs: int = setting(6, "most passes of the head's deep part; fewer when held-out users say so", low=0)
    moments: int = setting(
        4_000, "most moments of the validation fold from which the head learns what comes next; 0: none", low=0
    )
    device: str = setting(
        "auto",
        "where the towers are trained; auto takes cuda, else mps, else cpu",
        choices=("auto", "cpu", "cuda", "mps"),
    )
    threads: int = setting(
        0, "0 takes all cores for the teachers, half for torch: waiting for a busy core costs more", low=0
    )
    seed: int = setting(0, "seed of everything random", low=0)

    @property
    def cycle(self) -> int:
        """Epochs of a cycle of the learning rate."""
        return min(self.epochs, CYCLE)

    def resolved(self, plays: "Plays") -> "TrainSettings":
        """Chooses what is left to the number of users.

        Args:
            plays: of all folds.

        Returns:
            The same with a batch size and a number of epochs.
        """
        import numpy as np

        from lhydra.data.dataset import TRAIN, VALID

        users = len(np.unique(plays.user[plays.fold == TRAIN]))
        batch_size = self.batch_size or int(np.clip(users // 15, *USERS_PER_STEP))
        longer = users <= FEW_STEPS * batch_size and (plays.fold == VALID).any()  # validation says when to stop
        return replace(self, batch_size=batch_size, epochs=self.epochs or (CYCLES_OF_FEW if longer else 1) * CYCLE)

    def recorded(self) -> dict[str, float]:
        """Tells the settings that decide what the model is: not the device, which another run may go on without.

        Returns:
            By name.
        """
        return {name: value for name, value in asdict(self).items() if name != "device"}
