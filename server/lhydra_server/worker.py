"""One worker process: opens a bundle, serves it until told to stop. Started by the supervisor, not by hand.

What goes through stdin and stdout is defined in `lhydra_server.config`; stderr is for logs. A worker stops on SIGTERM
and when its stdin ends. Other signals, which a terminal sends to a whole group, are left to
the supervisor.
"""

import gc
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from lhydra import logs
from lhydra.errors import LhydraError
from lhydra.logs import AccessLog
from lhydra.timing import timed
from lhydra.users.store import open_users
from lhydra.users.tag import use_key
from lhydra_server.access import Access
from lhydra_server.answers import open_sampler
from lhydra_server.app import Listener
from lhydra_server.config import (
    GRACE_S,
    MAX_ERROR_CHARS,
    NOTICE_S,
    FleetStatus,
    WorkerSettings,
    longest_stop_s,
)
from lhydra_server.credentials import Certificates
from lhydra_server.descriptors import check_free_descriptors
from lhydra_server.event_log import EventLogWatch
from lhydra_server.heartbeat import Heart
from lhydra_server.metrics.counted import Sums
from lhydra_server.metrics.worker import Metrics
from lhydra_server.rules_file import rules_for
from lhydra_server.served import Served, open_served
from lhydra_server.service import RecommenderService
from lhydra_server.socket_file import MODE
from lhydra_server.tracing import Tracing

LEFT_TO_SUPERVISOR = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_log = logging.getLogger(__name__)


def run(load: Callable[[WorkerSettings], Served] = open_served, *, heart: Heart) -> int:
    """Serves until SIGTERM or the end of stdin.

    Args:
        load: opens what is served; tests open less.
        heart: beats since the process began.

    Returns:
        The exit code.
    """
    for number in LEFT_TO_SUPERVISOR:
        signal.signal(number, signal.SIG_IGN)
    logs.QUEUE.take_stderr()
    woken, wake = os.pipe()
    lines = _lines(0)
    settings = WorkerSettings.from_json(next(lines, ""))
    logs.configure(settings.log_level, as_json=True)
    if settings.log_key:
        use_key(bytes.fromhex(settings.log_key))
    fleet = FleetStatus()
    try:
        with _held_logs(), timed("worker.start"):
            served = load(settings)
            sets = rules_for(settings.rules, served)
            access = Access(settings.tokens, settings.token_share)
            certificates = Certificates(settings.certificates) if settings.certificates else None
            users = open_users(
                settings.users,
                Path(settings.store),
                sync_s=settings.users_sync_s,
                create=False,
                lasting=True,
                identity=settings.users_id,
                doubtful=settings.users_doubtful,
                events=settings.events,
                events_keep_ms=settings.events_keep_ms,
            )
            metrics = Metrics.open(settings.metrics)
            logs.QUEUE.count_lost = metrics.log_lines_lost
            tracing = Tracing(settings.trace_endpoint) if settings.trace_endpoint else None
            keep_to(settings.core)
            others = os.umask(0o777 & ~MODE)  # of a unix socket, which gRPC makes
            log = EventLogWatch(users, metrics)
            if settings.events:
                log.start()
            answers = open_sampler(settings, served, metrics)
            service = RecommenderService(
                served,
                users,
                max_k=settings.max_k,
                fleet=lambda: fleet,
                event_log=lambda: log.status,
                metrics=metrics,
                counted=Sums(settings.counted).counted,
                store=Path(settings.store),
                answers=answers,
            )
            service.rule_sets = sets
            listener = Listener(
                service,
                settings.address,
                max_in_flight=settings.max_in_flight,
                connection_age_s=settings.connection_age_s,
                metrics=metrics,
                access_log=AccessLog(settings.log_sample, name="lhydra_server.calls"),
                access=access,
                certificates=certificates,
                reflected=settings.reflected,
                tracing=tracing,
            )
            os.umask(others)
            check_free_descriptors()
            gc.collect()
            gc.freeze()  # what is loaded stays: the collector need not walk through it again
            gc.enable()
            wake_on_sigterm(wake)
            listener.start()
            heart.stuck_s = listener.stuck_s
    except Exception as error:
        if not isinstance(error, LhydraError):
            _log.exception("worker cannot start")
        reason = " ".join(str(error).split()) or type(error).__name__
        heart.report(error=reason[:MAX_ERROR_CHARS])
        return 1

    def listen() -> None:
        nonlocal fleet
        for line in lines:
            try:
                fleet, before = FleetStatus.from_json(line), fleet
                if fleet.rules != (before.rules or settings.rules):
                    service.rule_sets = rules_for(fleet.rules, served)
                if fleet.tokens != (before.tokens or settings.tokens):
                    access.take(fleet.tokens)
                if certificates is not None and fleet.certificates != (before.certificates or settings.certificates):
                    certificates.take(fleet.certificates)
            except (
                LhydraError,
                OSError,
            ) as error:  # the last status and rules stay: to answer is worth more than to know
                _log.error("%s", error)
        os.write(wake, b".")

    threading.Thread(target=listen, name="supervisor", daemon=True).start()
    if not heart.report(ready=True, model_id=served.model_id):
        _log.warning("the supervisor is gone")  # stdin says so too
    os.read(woken, 1)
    signal.alarm(math.ceil(longest_stop_s(settings.connection_age_s)))  # ends it if a thread hangs and nobody kills it
    listener.drain(NOTICE_S)
    listener.stop(GRACE_S)
    log.stop()
    users.close()
    if answers is not None:
        answers.close()
    if tracing is not None:
        tracing.stop()
    return 0


def wake_on_sigterm(descriptor: int) -> None:
    """Has SIGTERM write to a pipe instead of ending the process.

    The kernel may hand a signal to any thread, and Python runs handlers in the main thread only, once it runs bytecode:
    one that sleeps in `os.read` would never hear of it. The byte is written beneath Python, by whichever thread it is.

    Args:
        descriptor: of the end to write to.
    """
    os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # without a handler nothing is written


def keep_to(core: int) -> None:
    """Keeps every thread of this process, and those they start, to one core, on Linux.

    A call passes between several threads of which one runs at a time: on one core its data stay in the cache.

    Args:
        core: its number; below 0 any core will do.
    """
    if core >= 0 and hasattr(os, "sched_setaffinity"):
        with suppress(OSError):  # no /proc, or a core that was taken away meanwhile
            for thread in os.listdir("/proc/self/task"):
                os.sched_setaffinity(int(thread), {core})


@contextmanager
def _held_logs() -> Iterator[None]:
    """Drops the logs of the block if it raises: a start that fails is one line, which the supervisor prints."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    held = MemoryHandler(10_000, flushLevel=logging.CRITICAL, target=handlers[0], flushOnClose=False)
    root.handlers[:] = [held]
    try:
        yield
        held.flush()
    finally:
        root.handlers[:] = handlers


def _lines(descriptor: int) -> Iterator[str]:
    """Lines as they come; unbuffered, so that a thread left waiting here cannot disturb the exit."""
    pending = b""
    while chunk := os.read(descriptor, 65_536):
        *whole, pending = (pending + chunk).split(b"\n")
        yield from (line.decode() for line in whole)
