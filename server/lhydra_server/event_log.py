"""How the event log is, for status and metrics: a thread of its own looks, so that whoever asks waits for no store."""

import threading

from lhydra.errors import UserStoreError
from lhydra.users.store import UserStore
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.metrics.worker import Metrics

EVERY_S = 2.0  # between two looks


class EventLogWatch:
    """Looks at the event log every EVERY_S, once started. `status` is what was found last, or why nothing was.

    Args:
        users: the store that it lies in.
        metrics: what a worker counts; what cannot be told stays there as it was.
    """

    def __init__(self, users: UserStore, metrics: Metrics) -> None:
        self.status = pb.EventLogStatus()
        self._users, self._metrics = users, metrics
        self._ended = threading.Event()

    def start(self) -> None:
        """Begins to look."""
        threading.Thread(target=self._look_on, name="event-log", daemon=True).start()

    def stop(self) -> None:
        """Looks no more; one look may be under way."""
        self._ended.set()

    def _look_on(self) -> None:
        while True:
            self._look()
            if self._ended.wait(EVERY_S):
                return

    def _look(self) -> None:
        try:
            info = self._users.event_log()
        except UserStoreError as error:  # whoever is asked for plays counts it
            self.status = pb.EventLogStatus(error=str(error))
            return
        self._metrics.event_log(info.entries, info.n_bytes, info.oldest_ms // 1000, info.free_bytes or 0)
        self.status = pb.EventLogStatus(
            on=info.recording,
            entries=info.entries,
            bytes=info.n_bytes,
            oldest_ms=info.oldest_ms,
            free_bytes=info.free_bytes,
        )
