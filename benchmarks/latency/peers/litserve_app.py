"""LitServe with the tutorial's engine: its own process for HTTP, worker processes behind a queue. Needs `litserve`.

`python -m benchmarks.latency.peers.litserve_app --workers N --port P`
"""

import argparse
from typing import Any

import litserve

from benchmarks.latency.peers.settings import PeerSettings


class RecommendAPI(litserve.LitAPI):
    """One worker."""

    def setup(self, device: str) -> None:
        """Loads everything; the libraries too, so that the process for HTTP stays small.

        Args:
            device: named by LitServe, not used.
        """
        from benchmarks.latency.peers.tutorial import Engine

        self.engine = Engine(PeerSettings.read())

    def decode_request(self, request: dict[str, Any]) -> tuple[str, int]:
        """Reads a request.

        Args:
            request: the JSON.

        Returns:
            User id and k.
        """
        return request["user_id"], request["k"]

    def predict(self, asked: tuple[str, int]) -> list[dict[str, Any]]:
        """Answers a request.

        Args:
            asked: user id and k.

        Returns:
            The tracks as plain data.
        """
        return [track.model_dump() for track in self.engine.recommend(*asked)]

    def encode_response(self, tracks: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns what becomes JSON.

        Args:
            tracks: from `predict`.

        Returns:
            The reply.
        """
        return {"tracks": tracks}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    api = RecommendAPI(api_path="/recommend")
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=args.workers, timeout=30, healthcheck_path="/health"
    )
    server.run(host="127.0.0.1", port=args.port, generate_client_file=False, log_level="warning")
