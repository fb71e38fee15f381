"""Callers side by side, and what their calls cost the server: of benchmarks that compare servers or ways to call."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle, islice, takewhile

from benchmarks.processes import cpu_times, process_tree

CALLERS = 8
Goes = Callable[[object], bool]  # whether there is time for one more


def cost_of_calls(
    pid: int, callers: int, seconds: float, calls: Callable[[int, Goes], Iterable[object]]
) -> dict[str, float]:
    """Calls a server from threads for some time; what is on its way at the end is waited for and counted.

    Args:
        pid: of the server; its descendants count too.
        callers: threads.
        seconds: how long.
        calls: the number of a caller, and what says of anything whether there is time for one more -> yields once
            for each call that is done, the error where it failed.

    Returns:
        Calls a second, and microseconds of processor a call: of the server, and of this process.

    Raises:
        Exception: what a call raised.
    """
    errors: list[Exception] = []
    counts = [0] * callers
    tree = process_tree(pid)
    used, own, started = cpu_times(tree), time.process_time(), time.perf_counter()

    def goes(_: object) -> bool:
        return time.perf_counter() < started + seconds

    def call(number: int) -> None:
        try:
            for answer in calls(number, goes):
                if isinstance(answer, Exception):
                    raise answer
                counts[number] += 1
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s, own_s = time.perf_counter() - started, time.process_time() - own
    if errors:
        raise errors[0]
    done, server_s = sum(counts), cpu_times(tree).since(used)
    return {"per_s": done / took_s, "server_us": 1e6 * server_s / done, "client_us": 1e6 * own_s / done}


def users_of(users: Sequence[str], number: int, callers: int, goes: Goes) -> Iterator[str]:
    """Yields whom one caller asks for: all users over and over, divided among the callers.

    Args:
        users: of all callers.
        number: of this one.
        callers: how many there are.
        goes: whether there is time for one more.

    Yields:
        User ids, as long as there is time.
    """
    return takewhile(goes, islice(cycle(users), number, None, callers))
