"""What a peer is told, through the environment: web servers start their workers by importing the app."""

import os
from dataclasses import dataclass
from pathlib import Path

from lhydra.bundle.manifest import current_bundle_id


@dataclass(frozen=True)
class PeerSettings:
    """The store to serve, the folder of the model behind it, candidates to rerank."""

    store: Path
    model: Path
    depth: int

    @property
    def bundle(self) -> Path:
        """The folder of the store's CURRENT bundle."""
        return self.store / current_bundle_id(self.store)

    def environment(self) -> dict[str, str]:
        """Returns the variables that `read` reads."""
        return {"PEER_STORE": str(self.store), "PEER_MODEL": str(self.model), "PEER_DEPTH": str(self.depth)}

    @classmethod
    def read(cls) -> "PeerSettings":
        """Returns what `environment` holds, in a worker."""
        return cls(Path(os.environ["PEER_STORE"]), Path(os.environ["PEER_MODEL"]), int(os.environ["PEER_DEPTH"]))
