"""FastAPI, torch and FAISS, as a good tutorial would write it.

A sync endpoint (so FastAPI runs it on its threads), pydantic models in and out, FastAPI's own JSON, torch in eager
mode, the FAISS index read into memory, titles and artists from a pandas table, `uvicorn --workers 2`. Everything is
loaded once per worker, inference runs without gradients: no mistake is built in. Run with `OMP_NUM_THREADS=1` it is
the peer `tutorial-1-thread`: tutorials do not do that, and it may help. Tracks of `lhydra index add` are left out.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import faiss
import numpy as np
import pandas as pd
import torch
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.latency.peers.settings import PeerSettings
from benchmarks.latency.peers.torch_model import TorchModel
from lhydra.bundle.manifest import Manifest
from lhydra.domain import UserState
from lhydra.users.store import open_users


class RecommendRequest(BaseModel):
    """Whom to recommend how much."""

    user_id: str
    k: int = 10


class Track(BaseModel):
    """One recommended track."""

    track_id: str
    score: float
    title: str
    artist: str


class RecommendResponse(BaseModel):
    """Tracks, best first."""

    user_id: str
    tracks: list[Track]


class Engine:
    """Everything a worker loads.

    Args:
        settings: what this peer serves.
    """

    def __init__(self, settings: PeerSettings) -> None:
        self.depth = settings.depth
        self.model = TorchModel(settings.bundle, settings.model)
        self.index = faiss.read_index(str(settings.bundle / "index.faiss"))
        manifest = Manifest.read(settings.bundle)
        if isinstance(self.index, faiss.IndexIVF):
            self.index.nprobe = manifest.point["effort"]
        self.rows = np.load(settings.bundle / "index_rows.npy")  # of each position; empty: they are one
        tracks = pd.read_parquet(settings.bundle / "catalog.parquet", columns=["track_id", "name", "artist"])
        tracks = tracks.fillna("").sort_values("track_id")
        self.track_ids, self.titles, self.artists = (tracks[name].tolist() for name in ("track_id", "name", "artist"))
        self.users = open_users(None, settings.store)

    def recommend(self, user_id: str, k: int) -> list[Track]:
        """Answers one request.

        Args:
            user_id: whom to answer.
            k: tracks at most.

        Returns:
            Tracks that the user has not heard, best first.
        """
        state = self.users.get(user_id) or UserState()
        user = self.model.encode(state)
        vector = self.model.embed(user)
        heard = self.model.catalog.rows(state.heard)
        _, found = self.index.search(vector.numpy(), self.depth + len(heard))
        rows = found[0][found[0] >= 0]
        rows = self.rows[rows].astype(np.int64) if len(self.rows) else rows
        rows = rows[~np.isin(rows, heard)][: self.depth]
        scores = self.model.score(vector, user, rows)
        best = torch.topk(scores, min(k, len(rows)))
        return [
            Track(track_id=self.track_ids[row], score=score, title=self.titles[row], artist=self.artists[row])
            for row, score in zip(rows[best.indices.numpy()].tolist(), best.values.tolist(), strict=True)
        ]


engine: Engine


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Loads everything before the first request."""
    global engine
    engine = Engine(PeerSettings.read())
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/health")
def health() -> dict[str, int]:
    """Which worker answers."""
    return {"pid": os.getpid()}


@app.post("/recommend")
def recommend(request: RecommendRequest) -> RecommendResponse:
    """Answers with tracks for a user.

    Args:
        request: whom to recommend how much.

    Returns:
        The tracks.
    """
    return RecommendResponse(user_id=request.user_id, tracks=engine.recommend(request.user_id, request.k))
