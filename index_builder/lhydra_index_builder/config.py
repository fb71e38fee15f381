"""Settings of `lhydra index rebuild`, `add` and `remove`: how to build, and what may be published."""

from dataclasses import dataclass
from pathlib import Path

from lhydra.config import Settings, setting

GATE = (
    *("max_recall_miss", "max_cascade_loss", "max_quality_loss", "max_shrink", "max_changed_lists", "max_overlap"),
    *("gate_users", "requests", "force", "keep", "sign_key"),
)  # what `add` and `remove` take too


@dataclass(frozen=True)
class RebuildSettings(Settings):
    """How to build the index of a bundle, and what its gate lets through."""

    recipe: str = setting("auto", "auto (chosen by size and measured), flat (exact), or a FAISS factory string")
    recall: float = setting(0.95, "share of the exact nearest 100 that must be among the candidates", above=0, high=1)
    depth: int = setting(0, "candidates to rerank; 0 takes the fewest that lose at most 1 % of NDCG@10", low=0)
    max_bytes_per_track: int = setting(0, "most bytes of index.faiss per track; 0 for no limit", low=0)
    max_memory_gib: float = setting(0.0, "memory the build may use; 0 takes what is free", low=0)
    recall_users: int = setting(500, "users whose vectors measure the index against exact search", low=1)
    map: str = setting(
        "pca", "the map of the catalogue: pca, or umap, which is slow and another package", ("pca", "umap")
    )
    threads: int = setting(0, "processes and threads for embedding and building; 0 takes all cores", low=0)
    seed: int = setting(0, "of the training of approximate indexes and of the users drawn", low=0)
    explain: bool = setting(False, "print the tables that recipe, operating point and depth were chosen from")
    gate_users: int = setting(500, "users whose lists are compared before anything is published", low=1)
    requests: Path | None = setting(
        None, "answer log, a file or its folder: the gate compares the lists of its requests, not of --gate-users"
    )
    max_recall_miss: float = setting(0.01, "gate: how far the measured coverage may lie below --recall", low=0, high=1)
    max_cascade_loss: float = setting(0.05, "gate: share of the head's NDCG@10 that candidates may lose", low=0, high=1)
    max_quality_loss: float = setting(
        0.01, "gate: share of the current bundle's NDCG@10 that may be lost", low=0, high=1
    )
    max_shrink: float = setting(0.05, "gate: share of the current bundle's tracks that may be gone", low=0, high=1)
    max_changed_lists: float = setting(0.5, "gate: share of users whose top 10 may change wholly", low=0, high=1)
    max_overlap: float = setting(0.6, "gate: share in common that the top 10 of two users may have", low=0, high=1)
    force: bool = setting(False, "publish whatever the gate says, and record it")
    sign_key: Path | None = setting(None, "private Ed25519 key, PEM, that the manifest is signed with")
    keep: int = setting(0, "bundles to keep in the store, older ones are deleted; 0 keeps all", low=0)
