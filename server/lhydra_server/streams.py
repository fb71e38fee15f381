"""RecommendMany: a stream of requests, answered in batches, in order; an error is the answer to its own request alone.

A stream holds a thread and few requests: those of one batch, and those that are read ahead (`admission.Requests`).
gRPC sends a reply once the caller has room for it, so that a caller who reads nothing stops its own stream.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import grpc

from lhydra.errors import DeadlineExceeded, NotReady
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.access import Access
from lhydra_server.admission import Requests
from lhydra_server.errors import status_of
from lhydra_server.interceptors import Call, HandlerFactory, parsed

NAME = "RecommendMany"
STREAM_S = 4.0  # a stream takes requests: less than connections live on after their age, and callers find new workers
MOST_TOGETHER = 16

Method = Callable[[Sequence[tuple[pb.RecommendRequest, Call]]], Iterator[bytes | Exception]]


def behavior(
    factory: HandlerFactory, method: Method, access: Access
) -> Callable[[Requests, grpc.ServicerContext], Iterator[bytes]]:
    """Makes what answers a stream.

    Args:
        factory: translates errors, counts requests and writes their log lines.
        method: answers up to MOST_TOGETHER requests, with the bytes of a reply or an error for each.
        access: counts each request against the rate of its caller.

    Returns:
        What a `ReadAheadPool` runs.
    """

    def handle(requests: Requests, context: grpc.ServicerContext) -> Iterator[bytes]:
        ends_s, numbers = time.monotonic() + STREAM_S, itertools.count(1)
        stream_id = factory.begin(context)
        metadata = context.invocation_metadata()
        while data := requests.take(MOST_TOGETHER, ends_s):
            started_ns = time.perf_counter_ns()
            calls = [factory.call(context, f"{stream_id}/{next(numbers)}") for _ in data]
            answers = _answers(data, calls, method, lambda: access.spend(metadata))
            for call, answer in zip(calls, answers, strict=True):
                code, details = grpc.StatusCode.OK, ""
                if isinstance(answer, Exception):
                    code, details = factory.told(NAME, answer, call)
                factory.ended(NAME, code, call, started_ns)
                if isinstance(answer, DeadlineExceeded):
                    context.abort(code, details)  # the caller has left, or does now: raises
                before_ns = time.perf_counter_ns()
                yield _error(call, code, details) if isinstance(answer, Exception) else answer
                started_ns += time.perf_counter_ns() - before_ns  # the caller's time, not ours
        if not requests.ended and context.is_active():
            error = NotReady(f"stream: open for {STREAM_S:g} s, send what has no answer on a new one")
            context.abort(*status_of(error, stream_id))

    return handle


def _answers(
    data: Sequence[bytes], calls: Sequence[Call], method: Method, spend: Callable[[], None]
) -> Iterator[bytes | Exception]:
    """An answer or an error for each request; those too many, or that cannot be parsed, are not asked."""
    asked: list[tuple[pb.RecommendRequest, Call]] = []
    refused: list[Exception | None] = []
    for one, call in zip(data, calls, strict=True):
        try:
            spend()
            asked.append((parsed(one, pb.RecommendRequest), call))
            refused.append(None)
        except Exception as error:
            refused.append(error)
    answers = method(asked)
    for why in refused:
        yield next(answers) if why is None else why


def _error(call: Call, code: grpc.StatusCode, details: str) -> bytes:
    error = pb.Error(code=code.value[0], message=details)
    return pb.RecommendResponse(request_id=call.request_id, error=error).SerializeToString()
