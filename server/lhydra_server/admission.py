"""Admission: a call counts, and takes a thread, once its request has come; until then it is a few kB of memory.

gRPC hands a call to a pool of threads as soon as its headers are there, and the thread then waits for the request. A
caller that never sends one would hold the thread and, since it counts, a place of the limit. The pools here ask
gRPC for the request first, without a thread. That is a part of grpcio without a public name, kept to `Task`.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition, Lock
from typing import Any

import grpc
from grpc import _server
from grpc._cython import cygrpc  # type: ignore[attr-defined]

MOST_AWAITED = 64  # calls of a pool whose request has not come: gRPC keeps up to 1 MiB of each
CALL_LIMIT_S = 5.0  # a call that runs for longer hangs: a slow one takes some 0.1 s
MOST_AHEAD, MOST_BYTES_AHEAD = (
    16,
    2**20,
)  # requests of a stream that have come and are not taken; what comes last may pass it
_SUBMITTED: "Future[None]" = Future()  # gRPC does nothing with it but wait for its end
_SUBMITTED.set_result(None)

Behavior = Callable[[Any, grpc.ServicerContext], Any]


class Task:
    """A call as gRPC hands it to a pool of threads.

    Args:
        run: enters the call's context.
        in_pool: computes and sends the answer.
        event: the call that has come.
        state: of the call.
        behavior: the method.
        argument: waits for the request and returns it.
        more: for `in_pool`.
    """

    __slots__ = ("_argument", "_behavior", "_event", "_in_pool", "_more", "_run", "_state")

    def __init__(
        self,
        run: Callable[..., None],
        in_pool: Callable[..., None],
        event: Any,
        state: Any,
        behavior: Behavior,
        argument: Callable[[], Any],
        *more: Any,
    ) -> None:
        self._run, self._in_pool, self._event, self._state = run, in_pool, event, state
        self._behavior, self._argument, self._more = behavior, argument, more

    def receive(self, received: Callable[["Task", bytes | None], None]) -> None:
        """Asks for the request; takes no time. Called by the thread in which gRPC receives calls.

        Args:
            received: called in that thread, with None where the caller sends no request or has gone.
        """
        state, call = self._state, self._event.call
        message = _server._receive_message(state, call, None)

        def came(event: Any) -> Any:
            finished = message(event)
            with state.condition:
                data, state.request = state.request, None
            received(self, data)
            return finished

        with state.condition:
            if active := _server._is_rpc_state_active(state):
                call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), came)
                state.due.add(_server._RECEIVE_MESSAGE_TOKEN)
        if not active:
            received(self, None)

    def answer(self, data: "bytes | Requests", behavior: Behavior | None = None) -> None:
        """Answers the call.

        Args:
            data: its request, or those of its stream.
            behavior: answers in place of the method.
        """
        self._run(self._in_pool, self._event, self._state, behavior or self._behavior, lambda: data, *self._more)

    def stream(self) -> None:
        """Answers the call, waiting for its requests in this thread."""
        self._run(self._in_pool, self._event, self._state, self._behavior, self._argument, *self._more)

    def cancel(self) -> None:
        """Ends the call now."""
        self._event.call.cancel()


class DirectPool(ThreadPoolExecutor):
    """Answers calls in the thread in which gRPC receives them: none waits for a thread that others hold.

    For methods that take some 0.1 ms and wait for nothing. Of calls whose request has not come, the oldest makes room.

    Args:
        refusal: answers in place of the method where there is no room.
    """

    def __init__(self, refusal: Behavior) -> None:
        super().__init__(1)  # never started
        self._refusal, self._most = refusal, 0
        self._awaited: OrderedDict[Task, None] = OrderedDict()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Takes a call whose headers have come.

        Args:
            fn: of `Task`.
            args: of `Task`.
            kwargs: none.

        Returns:
            A future that has ended.
        """
        self._take(Task(fn, *args))
        return _SUBMITTED

    def end_awaited(self) -> None:
        """Ends the calls whose request has not come."""
        for task in list(self._awaited):
            task.cancel()

    def _take(self, task: Task) -> None:
        self._awaited[task] = None
        if len(self._awaited) > max(MOST_AWAITED, self._most):
            oldest, _ = self._awaited.popitem(last=False)
            oldest.answer(b"", self._refusal)
        task.receive(self._received)

    def _received(self, task: Task, data: bytes | None) -> None:
        if self._awaited.pop(task, self) is self:
            return  # it made room
        if data is None:
            task.answer(b"", _no_request)
        else:
            self._start(task, data)

    def _start(self, task: Task, data: bytes) -> None:
        task.answer(data)


def _no_request(data: bytes, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNIMPLEMENTED, "request: found none, expected one message")  # gRPC's code for it


class RefusalPool(DirectPool):
    """Answers calls that are refused by their headers: at once, and without their request."""

    def __init__(self) -> None:
        ThreadPoolExecutor.__init__(self, 1)  # never started

    def _take(self, task: Task) -> None:
        task.answer(b"")


class CallPool(DirectPool):
    """Threads for calls, and a limit on those in flight: those that run and those that wait for a thread.

    A call above the limit is refused at once, in the thread in which gRPC receives calls: nothing can be ahead of it.

    Args:
        name: of the threads.
        threads: how many.
        most: calls in flight.
        refusal: answers in place of the method above that.
        changed: called at every change of the number in flight.
    """

    def __init__(
        self, name: str, threads: int, most: int, refusal: Behavior, changed: Callable[[], None] = lambda: None
    ) -> None:
        ThreadPoolExecutor.__init__(self, threads, name)
        self._refusal, self._awaited = refusal, OrderedDict()
        self.in_flight = 0
        self._most, self._changed, self._lock = most, changed, Lock()
        self._running: dict[Task, float] = {}

    def stuck_s(self) -> float:
        """Returns for how many seconds the call that has run for the longest has been past CALL_LIMIT_S; 0 if none."""
        with self._lock:
            started_s = next(iter(self._running.values()), None)
        return 0.0 if started_s is None else max(0.0, time.monotonic() - started_s - CALL_LIMIT_S)

    def cancel(self) -> None:
        """Ends the calls that run; their threads end when they notice."""
        with self._lock:
            running = list(self._running)
        for task in running:
            task.cancel()

    def _take(self, task: Task) -> None:
        if self.in_flight < self._most:
            super()._take(task)
        else:
            task.answer(b"", self._refusal)

    def _start(self, task: Task, data: bytes) -> None:
        if self.in_flight < self._most:
            self._queue(task, lambda: task.answer(data))
        else:
            task.answer(b"", self._refusal)

    def _queue(self, task: Task, work: Callable[[], None]) -> None:
        with self._lock:
            self.in_flight += 1
        self._changed()
        ThreadPoolExecutor.submit(self, self._work, task, work)

    def _work(self, task: Task, work: Callable[[], None]) -> None:
        with self._lock:
            self._running[task] = time.monotonic()
        try:
            work()
        finally:
            with self._lock:
                del self._running[task]
                self.in_flight -= 1
            self._changed()


class StreamPool(CallPool):
    """Threads for calls that send a stream of requests: each holds one, from its headers to its end.

    Where there is no room, a stream that is older than CALL_LIMIT_S makes some.
    """

    def _take(self, task: Task) -> None:
        if self._has_room():
            self._queue(task, task.stream)
        else:
            task.answer(b"", self._refusal)

    def _has_room(self) -> bool:
        if self.in_flight >= self._most and self.stuck_s():
            with self._lock:
                oldest = next(iter(self._running), None)
                if oldest is not None:
                    self._running[oldest] = self._running.pop(oldest)  # the next to make room is another
            if oldest is not None:
                oldest.cancel()
            return True
        return self.in_flight < self._most


class Requests:
    """The requests of a stream: read ahead up to a bound, without a thread that waits for them.

    Args:
        task: the call.
        first: its first request, None where the caller sends none.
    """

    def __init__(self, task: Task, first: bytes | None) -> None:
        self._task, self._ahead = task, deque(() if first is None else (first,))
        self._bytes, self._ended, self._asked = len(first or b""), first is None, False
        self._changed = Condition()
        self._ask()

    def take(self, most: int, until_s: float) -> list[bytes]:
        """Waits for requests and returns those that have come.

        Args:
            most: how many at most.
            until_s: when to give up, on the clock of `time.monotonic`.

        Returns:
            One or more in order; none when no more will come, or none came in time.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ahead or self._ended, until_s - time.monotonic())
            taken = [self._ahead.popleft() for _ in range(min(most, len(self._ahead)))]
            self._bytes -= sum(map(len, taken))
        self._ask()
        return taken

    @property
    def ended(self) -> bool:
        """Whether the last request has been taken."""
        return self._ended and not self._ahead

    def _ask(self) -> None:
        with self._changed:
            full = len(self._ahead) >= MOST_AHEAD or self._bytes >= MOST_BYTES_AHEAD
            if full or self._ended or self._asked:
                return
            self._asked = True
        self._task.receive(self._came)

    def _came(self, task: Task, data: bytes | None) -> None:
        with self._changed:
            self._asked = False
            if data is None:
                self._ended = True
            else:
                self._ahead.append(data)
                self._bytes += len(data)
            self._changed.notify()
        self._ask()


class ReadAheadPool(StreamPool):
    """Threads for streams, each from its first request to its end; their requests are read ahead."""

    def _take(self, task: Task) -> None:
        DirectPool._take(self, task)

    def _received(self, task: Task, data: bytes | None) -> None:
        if self._awaited.pop(task, self) is self:
            return  # it made room
        if self._has_room():
            requests = Requests(task, data)
            self._queue(task, lambda: task.answer(requests))
        else:
            task.answer(b"", self._refusal)
