"""What people would run instead: the same users, catalogue, index and model behind other servers, for `--peers`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

UVICORN = ("uvicorn", "--log-level", "warning", "--no-access-log")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
TUTORIAL = (*UVICORN, "benchmarks.latency.peers.tutorial:app")


@dataclass(frozen=True)
class Peer:
    """A server of somebody else: the module that runs it with its arguments, its environment, the package it needs."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: str = "fastapi"


PEERS = {
    "tutorial": Peer(TUTORIAL),
    "tutorial-1-thread": Peer(TUTORIAL, ONE_THREAD),
    "tuned": Peer((*UVICORN, "benchmarks.latency.peers.tuned:app"), ONE_THREAD),
    "litserve": Peer(("benchmarks.latency.peers.litserve_app",), ONE_THREAD, needs="litserve"),
}
