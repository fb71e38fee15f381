"""Progress of a training: one frozen dataclass for each kind of thing that a training reports while it runs.

`str()` of each is the line that `lhydra train` shows.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What all kinds have in common. fold: of a cross-validation with --folds, from 0; None for the plain training."""

    fold: int | None = None

    def text(self) -> str:
        """Returns the line of this kind, without the fold."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.text() if self.fold is None else f"fold {self.fold + 1}: {self.text()}"


@dataclass(frozen=True, kw_only=True)
class TeacherTried(Progress):
    """A setting of a teacher. ndcg: NDCG@10 on the validation fold, 0 where it is not measured."""

    teacher: str
    setting: tuple[float, ...]
    ndcg: float = 0.0

    def text(self) -> str:
        """Returns teacher, setting and NDCG@10."""
        measured = f": NDCG@10 {self.ndcg:.4f}" if self.ndcg else ""
        return f"teacher {self.teacher} {', '.join(f'{value:g}' for value in self.setting)}{measured}"


@dataclass(frozen=True, kw_only=True)
class TemperatureTried(Progress):
    """A short run of the temperature search. retrieval: its metrics on the validation fold."""

    temperature: float
    retrieval: dict[str, float]

    def text(self) -> str:
        """Returns temperature and NDCG@10."""
        return f"temperature {self.temperature:.2f}: retrieval NDCG@10 {self.retrieval['ndcg@10']:.4f}"


@dataclass(frozen=True, kw_only=True)
class EpochDone(Progress):
    """An epoch of the towers. retrieval: metrics on the validation fold, None without one; took_s: with validation."""

    epoch: int
    temperature: float
    retrieval_loss: float
    distillation_loss: float
    retrieval: dict[str, float] | None
    took_s: float
    plays_per_s: int
    epochs: int  # at most
    best: bool

    def metrics(self) -> dict[str, Any]:
        """Returns the line of metrics.jsonl."""
        left_out = {"fold", "epochs", "best"} | ({"retrieval"} if self.retrieval is None else set())
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def text(self) -> str:
        """Returns losses, validation metrics and seconds."""
        text = f"epoch {self.epoch:>3}/{self.epochs}  loss {self.retrieval_loss:.4f} + {self.distillation_loss:.4f}"
        if self.retrieval:
            text += f"  NDCG@10 {self.retrieval['ndcg@10']:.4f}  Recall@20 {self.retrieval['recall@20']:.4f}"
        return f"{text}  {self.took_s:.1f} s{'  best' if self.best else ''}"


@dataclass(frozen=True, kw_only=True)
class ContentFitted(Progress):
    """What content says of tracks that ids do not carry. setting: shrinkage and height, None as the towers learnt it.

    retrieval: metrics on the validation fold; rare: of so many targets that few or none have played, those found.
    """

    setting: tuple[float, float] | None
    retrieval: dict[str, float]
    rare: int
    of_rare: int

    def text(self) -> str:
        """Returns the setting, NDCG@10, and how many targets that few have played are found."""
        setting = "as trained" if self.setting is None else "{:g}, {:g}".format(*self.setting)
        found = f"  rare targets {self.rare:,} of {self.of_rare:,}" if self.of_rare else ""
        return f"content {setting}: retrieval NDCG@10 {self.retrieval['ndcg@10']:.4f}{found}"


@dataclass(frozen=True, kw_only=True)
class RefitDone(Progress):
    """An epoch of --refit, which is not validated."""

    epoch: int
    epochs: int
    retrieval_loss: float
    took_s: float

    def text(self) -> str:
        """Returns epoch, loss and seconds."""
        return f"refit {self.epoch}/{self.epochs}  loss {self.retrieval_loss:.4f}  {self.took_s:.1f} s"


@dataclass(frozen=True, kw_only=True)
class HeadPart(Progress):
    """A part of the users whose head is about to be cross-fitted, from 1."""

    part: int
    parts: int

    def text(self) -> str:
        """Returns part and parts."""
        return f"head: cross-fitted on part {self.part} of {self.parts}"


@dataclass(frozen=True, kw_only=True)
class HeadFitted(Progress):
    """The finished head. share: of the candidates, for those by co-listening. cascade: cross-fitted metrics on the
    validation fold, {} without one.
    """

    epochs: int
    strength: float
    cascade: dict[str, float]
    share: float = 0.0

    def text(self) -> str:
        """Returns epochs, strength, the share of co-listening and the metrics of the cascade."""
        text = f"head: {self.epochs} epochs, strength {self.strength:g}"
        if self.share:
            text += f", co-listening {self.share:.0%} of the candidates"
        if self.cascade:
            text += f"  NDCG@10 {self.cascade['ndcg@10']:.4f}  Recall@20 {self.cascade['recall@20']:.4f}"
        return text


@dataclass(frozen=True, kw_only=True)
class MomentsFitted(Progress):
    """The part of the head for what comes next.

    ndcg: NDCG@10 of users that were held out, 0 where there were none. joined: whether all sessions of a
    user count as one for what follows what.
    """

    moments: int
    epochs: int
    ndcg: float
    shares: tuple[float, ...]
    joined: bool

    def text(self) -> str:
        """Returns moments, epochs, NDCG@10 and how the depth is shared out."""
        measured = f"  NDCG@10 {self.ndcg:.4f}" if self.ndcg else ""
        own, following, together = self.shares
        shares = f"own {own:.0%}, following {following:.0%}, together {together:.0%}"
        across = "; sessions joined" if self.joined else ""
        return f"next: {self.moments:,} moments, {self.epochs} epochs{measured}; candidates {shares}{across}"


Report = Callable[[Progress], None]


def unreported(progress: Progress) -> None:
    """Takes what a training reports where nobody watches.

    Args:
        progress: dropped.
    """
