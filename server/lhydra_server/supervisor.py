"""The supervisor: spawns workers on one address, watches CURRENT, moves to a new bundle, replaces dead workers.

A set of workers is called a fleet. A new bundle gets a new fleet beside the serving one; when all of it is
ready the serving one is drained, and when any of it fails it is ended and the serving one stays.
"""

import contextlib
import logging
import math
import os
import select
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from lhydra.bundle.listed import find_bundle_id
from lhydra.bundle.manifest import current_bundle_id
from lhydra.errors import ConfigError, LhydraError, complain
from lhydra.lines import say
from lhydra.users.place import claim
from lhydra_server.address import Reservation, check_exposure, joined
from lhydra_server.answers_folder import answers_folder
from lhydra_server.config import FleetStatus, ServeSettings, WorkerSettings, longest_stop_s
from lhydra_server.descriptors import use_all_descriptors
from lhydra_server.files_in_force import FilesInForce
from lhydra_server.fleet import LONGEST_S, LONGEST_SERVED_S, LONGEST_SPAWN_S, Backoff, Fleet
from lhydra_server.heartbeat import Limits
from lhydra_server.keys import keys_of
from lhydra_server.metrics.counts import Counts
from lhydra_server.processes import COMMAND, WorkerProcess
from lhydra_server.socket_file import SCHEME, SocketFile

if TYPE_CHECKING:
    from lhydra_server.metrics.totals import Totals

TICK_S = 0.2  # how often CURRENT is looked at; everything else wakes the loop
SUM_S = 0.5  # how often what all workers counted is added up for GetStatus
KILL_TIMEOUT_S = 5.0  # a killed worker that is there after so long hangs in the kernel: the supervisor ends without it
STABLE_S = 10.0  # a worker that lived so long died of something new: no backoff
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
UNUSED = (signal.SIGUSR1, signal.SIGUSR2)
_log = logging.getLogger(__name__)


class Supervisor:
    """Serves the CURRENT bundle of a store until SIGTERM or SIGINT.

    Args:
        store: the folder of bundles.
        settings: of the command.
        log_level: of supervisor and workers.
        command: what starts a worker.
    """

    def __init__(
        self, store: Path, settings: ServeSettings, *, log_level: str = "info", command: Sequence[str] = COMMAND
    ) -> None:
        self._store, self._settings, self._log_level, self._command = store, settings, log_level, command
        self._host = settings.host.removeprefix("[").removesuffix("]")  # [::1] is ::1
        self._stop_s = longest_stop_s(settings.connection_age_s)
        self.limits = Limits()
        self._awake_s, self._ticked_s, self._summed_s = 0.0, time.monotonic(), 0.0
        self._on_file = self._host.startswith(SCHEME)
        self._metrics_host = "127.0.0.1" if self._on_file else self._host
        if self._on_file and settings.workers > 1:
            expected = f"1 with --host {SCHEME}PATH: workers cannot share a unix socket"
            raise ConfigError(complain("--workers", str(settings.workers), expected))
        self._n_workers = 1 if self._on_file else settings.workers or len(_cores())
        self._serving: Fleet | None = None
        self._coming: Fleet | None = None
        self._leaving: list[WorkerProcess] = []
        self._refused = ""  # the bundle that could not be served, tried again when CURRENT changes or time has passed
        self._retry = Backoff()
        self._current = self._swap_error = self._users_id = self._users_made = ""
        self._users_doubtful = False  # since a worker crashed: the next ones try the user store's files first
        self._counts = Counts()
        self._totals = _totals_of(self._counts) if settings.metrics_port or settings.count else None
        self._keys = keys_of(settings)
        self._answers = answers_folder(settings, store)
        self._files = FilesInForce(settings, store)
        self._signals: list[str] = []
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)

    def run(self) -> int:
        """Serves until told to stop; returns the exit code.

        Raises:
            LhydraError: the first fleet cannot serve: no bundle, a bad one, port in use.
        """
        use_all_descriptors()
        check_exposure(self._host, secured=bool(self._settings.tls_cert), insecure=self._settings.insecure)
        bundle_id = self._current = current_bundle_id(self._store)
        if self._settings.bundle:
            bundle_id = find_bundle_id(self._store, self._settings.bundle)
        place = SocketFile(self._host) if self._on_file else Reservation(self._host, self._settings.port)
        with place as self._place, contextlib.closing(self._files), self._metrics_shown():
            self._listen_to_signals()
            try:
                claimed = claim(self._settings.users, self._store, self._settings.users_create)
                self._coming = self._started(bundle_id, self._n_workers)
                self._users_id, self._users_made = claimed()  # workers load meanwhile
                self._begin(self._coming)
                while not self._signals:
                    self._tick()
                    self._sleep(TICK_S)
            finally:
                self._stop()
        return 0

    def _metrics_shown(self) -> contextlib.AbstractContextManager[None]:
        self._files.open(self._current)
        if self._totals is None or not self._settings.metrics_port:
            return contextlib.nullcontext()
        from lhydra_server.metrics.exposition import exposed  # and asyncio with it

        return exposed(self._totals, self._metrics_host, self._settings.metrics_port, self._files)

    def _tick(self) -> None:
        self._look()
        self._keep_serving()
        self._watch_coming()
        self._watch_current()
        self._leaving = [worker for worker in self._leaving if not worker.finished(self._stop_s)]
        if self._serving:
            self._files.look(self._serving.bundle_id)
            self._counts.file_failures, self._counts.expires_s = self._files.failures, self._files.expires_s
        n_ready = self._serving.n_ready if self._serving else 0
        self._counts.workers = n_ready
        if self._totals is not None and self._awake_s - self._summed_s >= SUM_S:
            self._totals.sum_up()
            self._summed_s = self._awake_s
        for worker in self._all_workers():
            worker.tell(FleetStatus(n_ready, self._current, self._swap_error, **self._files.told))

    def _publish(self, fleet: Fleet) -> bool:
        """Lets new connections reach the ready workers of a fleet; tried again at the next tick where that fails."""
        try:
            for worker in fleet.workers:
                if worker.ready:
                    self._place.publish(worker.address)
        except OSError as error:
            if self._serving is None:
                raise ConfigError(complain(self._place.address, str(error), "a folder to write to")) from None
            if fleet.publish_error != str(error):
                _log.error("%s cannot be bound: %s", self._place.address, error)
            fleet.publish_error = str(error)
            return False
        fleet.publish_error = ""
        return True

    def _look(self) -> None:
        """Hears all workers, and kills those that are lost.

        Time in which this process itself did not run does not count: a machine that was suspended has lost nobody.
        """
        now_s = time.monotonic()
        self._awake_s += min(now_s - self._ticked_s, 2 * TICK_S)
        self._ticked_s = now_s
        for worker in self._all_workers():
            worker.look(self._awake_s)
        for workers in (*(fleet.workers for fleet in (self._serving, self._coming) if fleet), self._leaving):
            worked_s = max((worker.pulse.worked_s for worker in workers if worker.opening), default=0.0)
            for worker in workers:
                worker.judge(self._awake_s, self.limits, worked_s)

    def _keep_serving(self) -> None:
        """Replaces workers of the serving fleet that died or were killed."""
        fleet = self._serving
        if fleet is None:
            return
        self._publish(fleet)
        if self._place.lost() and fleet.workers:
            _log.error("%s was taken away: making it again", self._place.address)
            self._dismiss(fleet.workers)
            fleet.workers = []
        for worker in [worker for worker in fleet.workers if worker.failure]:
            fleet.workers.remove(worker)
            self._users_doubtful |= worker.crashed
            if not worker.ended:  # it may hang in the kernel: nobody waits for that
                self._dismiss([worker])
            self._counts.worker_failures[worker.failure] += 1
            if worker.age_s > STABLE_S:
                fleet.backoff = Backoff()  # and the next one is started at once
            else:
                fleet.backoff.failed(LONGEST_SERVED_S if worker.served else LONGEST_S)
            _log.error("worker died: %s", worker.error, extra={"pid": worker.pid, "bundle": fleet.bundle_id})
        if len(fleet.workers) < self._n_workers and fleet.backoff.over:
            fresh = self._spawn(fleet.bundle_id, self._n_workers - len(fleet.workers))
            fleet.workers += fresh.workers
            self._users_doubtful &= not fresh.workers
            self._counts.worker_restarts += len(fresh.workers)
            if fresh.spawn_error:
                fleet.backoff.failed(LONGEST_SPAWN_S)
                _log.error("%s", fresh.spawn_error, extra={"bundle": fleet.bundle_id})

    def _watch_coming(self) -> None:
        """Moves to the coming fleet when all of it is ready; gives it up when any of it failed."""
        fleet = self._coming
        if fleet is None:
            return
        error = next((worker.error for worker in fleet.workers if worker.error), fleet.spawn_error)
        if error:
            if self._serving is None:
                raise LhydraError(error)
            self._refused, self._swap_error = fleet.bundle_id, error
            self._retry.failed()
            self._counts.swap_failures += 1
            _log.error("swap failed: %s", error, extra={"bundle": fleet.bundle_id})
            self._give_up_coming()
        elif fleet.n_ready == self._n_workers and self._publish(fleet):
            took_ms = round((time.monotonic() - fleet.started_s) * 1e3)
            if self._serving is None:
                if self._users_made:
                    _log.warning("made an empty user store", extra={"folder": self._users_made})
                if self._settings.log_key is None:
                    _log.info("user ids in this log are hashed with a key of this start; --log-key FILE joins starts")
                address = self._place.address
                if not self._on_file:  # as the caller wrote the host
                    address = joined(self._host, address.rpartition(":")[2])
                n_workers = f"{self._n_workers} worker" + "s" * (self._n_workers > 1)
                say(f"serving bundle {fleet.bundle_id} on {address} with {n_workers}")
                if self._settings.metrics_port:
                    scheme = "https" if self._settings.tls_cert else "http"
                    say(f"metrics on {scheme}://{joined(self._metrics_host, self._settings.metrics_port)}/metrics")
            else:
                self._dismiss(self._serving.workers)
            _log.info("serving", extra={"bundle": fleet.bundle_id, "workers": self._n_workers, "took_ms": took_ms})
            self._serving, self._coming = fleet, None
            self._counts.serving = fleet.bundle_id, fleet.workers[0].model_id
            self._refused, self._swap_error, self._retry = "", "", Backoff()

    def _watch_current(self) -> None:
        """Starts a fleet on CURRENT when that is not served or tried already, nor another bundle was asked for."""
        if self._serving is None:
            return
        try:
            self._current = current_bundle_id(self._store)
        except (LhydraError, OSError) as error:
            if self._swap_error != str(error):
                self._counts.swap_failures += 1
                _log.error("CURRENT cannot be read: %s", error)
            self._current, self._swap_error = "", str(error)
            self._give_up_coming()
            return
        if self._settings.bundle or self._current == self._serving.bundle_id:
            self._give_up_coming()
            self._refused, self._swap_error, self._retry = "", "", Backoff()
            return
        under_way = self._coming is not None and self._coming.bundle_id == self._current
        too_early = self._current == self._refused and not self._retry.over
        if not under_way and not too_early:
            self._give_up_coming()
            _log.info("swap begins", extra={"bundle": self._current, "from": self._serving.bundle_id})
            self._coming = self._spawn(self._current)

    def _give_up_coming(self) -> None:
        if self._coming is not None:
            self._dismiss(self._coming.workers)
            self._coming = None

    def _dismiss(self, workers: list[WorkerProcess]) -> None:
        for worker in workers:
            worker.stop()
        self._leaving += workers

    def _spawn(self, bundle_id: str, n_workers: int | None = None) -> Fleet:
        fleet = self._started(bundle_id, self._n_workers if n_workers is None else n_workers)
        self._begin(fleet)
        return fleet

    def _begin(self, fleet: Fleet) -> None:
        """Tells new workers what to serve."""
        settings = WorkerSettings(
            store=str(self._store),
            bundle_id=fleet.bundle_id,
            address="",
            users=self._settings.users,
            users_id=self._users_id,
            users_doubtful=self._users_doubtful,
            users_sync_s=self._settings.users_sync_s,
            events=self._settings.events == "on",
            events_keep_ms=math.ceil(self._settings.events_days * 86_400_000),
            depth=self._settings.depth,
            max_k=self._settings.max_k,
            max_in_flight=self._settings.max_in_flight,
            connection_age_s=self._settings.connection_age_s,
            **self._files.in_force,
            token_share=1 / self._n_workers,
            reflected=not self._settings.closed_reflection,
            trace_endpoint=self._settings.trace_endpoint or "",
            log_answers=self._settings.log_answers,
            answers=self._answers,
            answers_bytes=self._settings.answers_bytes,
            log_level=self._log_level,
            log_sample=self._settings.log_sample,
            **self._keys,
        )
        for worker in fleet.workers:
            worker.begin(settings)

    def _started(self, bundle_id: str, n_workers: int) -> Fleet:
        """Starts processes, which load what every worker needs."""
        totals = self._totals
        fleet = Fleet(bundle_id)
        for core in self._free_cores(bundle_id)[:n_workers]:
            try:
                block = totals.block(bundle_id) if totals is not None else None
                fleet.workers.append(
                    WorkerProcess(
                        self._command,
                        core,
                        self._place.for_worker(),
                        self._awake_s,
                        block,
                        totals.share() if totals is not None else -1,
                    )
                )
            except OSError as error:  # no descriptor, memory or process is left for now
                fleet.spawn_error = complain("a new worker", str(error), "one more process: see `ulimit -a`")
                self._counts.worker_failures["not_started"] += 1
                break
        return fleet

    def _free_cores(self, bundle_id: str) -> list[int]:
        """A core for each worker of a fleet that has none yet, -1 for any: threads that take turns share its cache."""
        cores = _cores()
        if not self._settings.pin or len(cores) < self._n_workers:
            return [-1] * self._n_workers
        there = self._serving.workers if self._serving and self._serving.bundle_id == bundle_id else []
        taken = [worker.core for worker in there]
        return [core for core in cores if core not in taken]

    def _all_workers(self) -> list[WorkerProcess]:
        fleets = [fleet for fleet in (self._serving, self._coming) if fleet is not None]
        return [worker for fleet in fleets for worker in fleet.workers] + self._leaving

    def _listen_to_signals(self) -> None:
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup has SIGHUP ignored, and means it
                signal.signal(number, self._on_signal)
        for number in UNUSED:
            if signal.getsignal(number) is signal.SIG_DFL:  # which is to end the process without a line
                signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # the byte it writes wakes the loop

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(signal.Signals(number).name)

    def _sleep(self, most_s: float) -> None:
        """Returns when a signal or a report has arrived, or after `most_s`."""
        poll = select.poll()  # select.select takes no descriptor beyond 1,023
        poll.register(self._woken, select.POLLIN)
        for worker in self._all_workers():
            if worker.report >= 0:
                poll.register(worker.report, select.POLLIN)
        poll.poll(most_s * 1000)
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken, 4096)

    def _stop(self) -> None:
        """Drains every worker; a second signal kills them."""
        if self._signals:
            _log.info("draining", extra={"signal": self._signals[0]})
        self._give_up_coming()
        if self._serving is not None:
            self._dismiss(self._serving.workers)
            self._serving = None
        n_signals, started_s, most_s = len(self._signals), time.monotonic(), self._stop_s
        while self._leaving:
            if most_s and len(self._signals) != n_signals:
                started_s, most_s = time.monotonic(), 0.0
            self._look()
            self._leaving = [worker for worker in self._leaving if not worker.finished(most_s)]
            if self._leaving and time.monotonic() - started_s > most_s + KILL_TIMEOUT_S:
                _log.error("killed workers do not end", extra={"pids": [worker.pid for worker in self._leaving]})
                break
            if self._leaving:
                self._sleep(TICK_S)


def _totals_of(counts: Counts) -> "Totals":
    from lhydra_server.metrics.totals import Totals  # and numpy with it

    return Totals(counts)


def _cores() -> list[int]:
    """The cores this process may use, where the system can tell."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
