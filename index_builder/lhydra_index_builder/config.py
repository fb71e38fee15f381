"""Settings of `lhydra index rebuild`."""

from dataclasses import dataclass

from lhydra.config import setting
from lhydra.errors import ConfigError, complain


@dataclass(frozen=True)
class RebuildConfig:
    """How to build the index of a bundle."""

    recipe: str = setting("flat", "flat (exact) or a FAISS factory string such as HNSW32 or IVF256,SQ8")
    recall_users: int = setting(500, "users whose vectors measure the index against exact search")
    threads: int = setting(0, "threads for embedding and building; 0 takes all cores")
    seed: int = setting(0, "of the training of approximate indexes and of the users drawn")

    def __post_init__(self) -> None:
        """Raises ConfigError naming the first value out of range."""
        if self.recall_users < 1:
            raise ConfigError(complain("index.recall_users", str(self.recall_users), "at least 1"))
        if self.threads < 0 or self.seed < 0:
            raise ConfigError(complain("index.threads, index.seed", f"{self.threads}, {self.seed}", "0 or more"))
