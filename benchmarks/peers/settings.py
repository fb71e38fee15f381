"""What a peer is told: through the environment, because web servers start their workers by importing the app."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lhydra.bundle import current_bundle_id


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

    @classmethod
    def read(cls) -> "PeerSettings":
        """Returns what `start` was given, in a worker."""
        return cls(Path(os.environ["PEER_STORE"]), Path(os.environ["PEER_MODEL"]), int(os.environ["PEER_DEPTH"]))


@dataclass(frozen=True)
class Start:
    """How a peer is to be started."""

    settings: PeerSettings
    port: int
    workers: int


def start(argv: Sequence[str] | None = None) -> Start:
    """Reads the command line that all peers share and puts it where workers find it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--depth", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    args = parser.parse_args(argv)
    os.environ |= {"PEER_STORE": str(args.store), "PEER_MODEL": str(args.model), "PEER_DEPTH": str(args.depth)}
    return Start(PeerSettings.read(), args.port, args.workers)
