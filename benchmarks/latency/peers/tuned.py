"""FastAPI as fast as we could make it.

Our own `Recommender` in the process: the bundle's ONNX graphs, its mapped index and arrays, its feature code; one
thread per library, by `OMP_NUM_THREADS=1`. orjson in and out, no pydantic, no response model. The endpoint is a
coroutine that computes right away, since handing over to a thread only costs. uvloop and httptools, no access log.
"""

import gc
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
from fastapi import FastAPI, Request, Response

from benchmarks.latency.peers.settings import PeerSettings
from lhydra.bundle.bundle import Bundle
from lhydra.domain import Query, UserState
from lhydra.recommender import Recommender
from lhydra.users.store import open_users


class Engine:
    """Everything a worker loads.

    Args:
        settings: what this peer serves.
    """

    def __init__(self, settings: PeerSettings) -> None:
        self.recommender = Recommender(Bundle.open(settings.store), settings.depth)
        self.recommender.warm_up()
        self.users = open_users(None, settings.store)
        gc.collect()
        gc.freeze()

    def recommend(self, user_id: str, k: int) -> bytes:
        """Answers one request.

        Args:
            user_id: whom to answer.
            k: tracks.

        Returns:
            JSON.
        """
        stored = self.users.get(user_id)
        state = stored or UserState()
        found = self.recommender.recommend(Query(k, state, stored is not None, state.heard))
        catalog, rows = self.recommender.catalog, found.rows
        columns = (catalog.track_ids(rows), found.scores.tolist(), catalog.titles(rows), catalog.artists(rows))
        tracks = [
            {"track_id": track_id, "score": score, "title": title, "artist": artist}
            for track_id, score, title, artist in zip(*columns, strict=True)
        ]
        return orjson.dumps({"user_id": user_id, "tracks": tracks})


engine: Engine


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Loads everything before the first request."""
    global engine
    engine = Engine(PeerSettings.read())
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/health")
async def health() -> dict[str, int]:
    """Which worker answers."""
    return {"pid": os.getpid()}


@app.post("/recommend")
async def recommend(request: Request) -> Response:
    """Answers with tracks for a user.

    Args:
        request: JSON with user_id and k.

    Returns:
        JSON.
    """
    asked = orjson.loads(await request.body())
    return Response(engine.recommend(asked["user_id"], asked["k"]), media_type="application/json")
