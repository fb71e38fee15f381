"""`timed` measures a pipeline step, or a part of a request; stages of the request path are timed by `lhydra.traced`."""

import logging
import time
from collections.abc import MutableMapping
from contextlib import ContextDecorator
from types import TracebackType

_log = logging.getLogger(__name__)


class timed(ContextDecorator):  # lower case: it reads as a verb where it is used
    """Times the enclosed code.

    With `into`, adds the elapsed whole microseconds to `into[name]` (a request's `stage_us`) and logs
    nothing, which costs about a microsecond. Without it, logs `name took_ms=…` at INFO when the step
    ends, and at INFO with `failed` when it raises.

        @timed("prepare.split")
        def split(...): ...

        with timed("retrieve", into=stage_us):
            ...

    Args:
        name: of the step or stage.
        into: microseconds by name, added to.
    """

    def __init__(self, name: str, into: MutableMapping[str, int] | None = None) -> None:
        self.name = name
        self.into = into
        self._starts: list[int] = []  # a stack: one decorated function may recurse

    def __enter__(self) -> "timed":
        self._starts.append(time.perf_counter_ns())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        took_ns = time.perf_counter_ns() - self._starts.pop()
        if self.into is not None:
            self.into[self.name] = self.into.get(self.name, 0) + took_ns // 1000
        else:
            took_ms = took_ns / 1e6
            outcome = " failed" if kind else ""
            _log.info(
                "%s took_ms=%.1f%s",
                self.name,
                took_ms,
                outcome,
                extra={"step": self.name, "took_ms": round(took_ms, 3)},
            )

    def _recreate_cm(self) -> "timed":
        return timed(self.name, self.into)  # each decorated call gets its own stack: safe across threads
