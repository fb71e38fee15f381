"""Settings of `lhydra retrain`: what is learnt from, what is held out, and what the result must be to be published."""

from dataclasses import dataclass
from pathlib import Path

from lhydra.config import Settings, setting
from lhydra.errors import ConfigError, complain


@dataclass(frozen=True)
class RetrainSettings(Settings):
    """One turn of the loop: what goes in, and what is asked of the model that comes out."""

    source: Path | None = setting(None, "what the first model was prepared from: a file or folder, as prepare takes it")
    store: Path | None = setting(None, "where bundles are published, and compared with the current one")
    work: Path | None = setting(None, "folder for a run that is under way and for the model in service")
    users: str | None = setting(None, "user store whose log of plays is exported (default: STORE/users.lmdb)")
    plays: Path | None = setting(None, "plays that came since, as `lhydra plays export` writes them, instead of a log")
    tracks: Path | None = setting(
        None, "a table of tracks (.csv, .csv.gz, .tsv, .jsonl or .parquet) that are new since source"
    )
    model: Path | None = setting(None, "the model of the served bundle, for a work folder that does not have it")
    warm: bool = setting(True, "go on from the model of the served bundle; off trains from the start")
    holdout: float = setting(0.3, "share of the new plays, the newest, that judges", above=0, below=1)
    min_plays: int = setting(1_000, "new plays below which nothing is done", low=1)
    margin: float = setting(
        0.0, "share of the served NDCG@10 that the candidate may lose and still help", low=0, below=1
    )
    ahead_s: int = setting(86_400, "seconds that a play may be ahead of the clock of this machine", low=0)
    late_s: int = setting(2_592_000, "seconds before its recording that a play may lie; 30 days", low=0)
    oldest_s: int = setting(
        946_684_800, "Unix second before which no play was recorded (default: the year 2000)", low=0
    )
    max_clock: float = setting(0.01, "share of the new plays that may have an impossible time", low=0, high=1)
    max_pushed: float = setting(
        0.02, "share of the new plays that users may give one track who play little else", above=0
    )
    min_own: float = setting(
        0.5, "how much of what tells users apart before must be left in the new plays", low=0, high=1
    )
    keep: int = setting(20, "reports of past runs to keep, in the store's folder reports", low=1)

    def __post_init__(self) -> None:
        """Checks every field."""
        super().__post_init__()
        if self.plays is not None and self.users is not None:
            raise ConfigError(complain("retrain.plays and retrain.users", "both", "one of the two"))

    def place(self, name: str) -> Path:
        """Returns a path that a run cannot do without.

        Args:
            name: `source`, `store` or `work`.

        Returns:
            The path.

        Raises:
            ConfigError: it is not given.
        """
        found = getattr(self, name)
        if found is None:
            raise ConfigError(complain(f"retrain.{name}", "nothing", "a path"))
        return Path(found)
