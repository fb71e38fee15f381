"""Logged answers as traffic: what callers really asked, for bundles that are to be compared."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np

from lhydra.answers import folder
from lhydra.answers.entry import LoggedAnswer
from lhydra.bundle.bundle import Bundle
from lhydra.domain import Query
from lhydra.errors import DataError, LhydraError, MissingExtra, complain

GROUP = "lhydra.logged_requests"  # of entry points: who reads the requests of an answer log, whose words are the API's
SEED = 0


@dataclass(frozen=True)
class Traffic:
    """Logged requests as queries, and whose they are, in words."""

    queries: Sequence[Query] = ()
    words: str = ""


NO_TRAFFIC = Traffic()


def is_log(place: Path) -> bool:
    """Says whether a place is an answer log.

    Args:
        place: a file or a folder.

    Returns:
        Whether it is a folder, or a file that begins as one does.
    """
    if place.is_dir():
        return True
    try:
        folder.check_log(place)
    except DataError:
        return False
    return True


def check_traffic(place: Path) -> None:
    """Checks that there is an answer log, and somebody who reads its requests.

    Args:
        place: a file of it, or its folder.

    Raises:
        DataError: there is none.
        MissingExtra: the server, which reads requests, is not installed.
    """
    _reader()
    if not (place.exists() and is_log(place)):
        raise DataError(complain(place, "none", "an answer log of `lhydra serve --log-answers`: a file or its folder"))


def logged_traffic(place: Path, bundles: Sequence[Bundle], n: int, say: folder.Say) -> Traffic:
    """Returns logged requests, drawn at random, in their order, as a server makes queries of them.

    Each has the state, the clock, the filter and the rules that it had when it was answered.

    Args:
        place: a file of an answer log, or its folder.
        bundles: that will be asked; what one of them cannot be asked is left out.
        n: requests at most.
        say: is told of torn ends and damaged files.

    Returns:
        The queries.

    Raises:
        DataError: it is no answer log, or nothing in it can be asked.
        MissingExtra: the server, which reads requests, is not installed.
    """
    to_query, (columns, genre) = _reader(), _common(bundles)
    answers, others = _drawn(place, n, say)
    queries, unfit = [], 0
    for answer in answers:
        try:
            queries.append(replace(to_query(answer, columns, genre), explain=False))
        except DataError:  # damaged
            raise
        except LhydraError:  # a filter or a rule on a column that a bundle lacks
            unfit += 1
    if not queries:
        found = f"{others:,} of SimilarTracks and {unfit:,} about columns that a bundle lacks"
        raise DataError(complain(place, found, "lists of Recommend"))
    left_out = [f"{others:,} of SimilarTracks"] * (others > 0)
    left_out += [f"{unfit:,} about columns that a bundle lacks"] * (unfit > 0)
    words = f" ({' and '.join(left_out)} left out)" if left_out else ""
    return Traffic(queries, f"logged requests of {place}{words}")


def _drawn(place: Path, n: int, say: folder.Say) -> tuple[list[LoggedAnswer], int]:
    """At most n answers of Recommend, each as likely as any other, in their order; and how many were of others."""
    drawn: list[tuple[int, LoggedAnswer]] = []
    chance, lists, others = np.random.default_rng(SEED), 0, 0
    for answer in folder.read(place, say):
        if answer.method != "Recommend":
            others += 1
            continue
        lists += 1
        if len(drawn) < n:
            drawn.append((lists, answer))
        elif (at := int(chance.integers(lists))) < n:  # Vitter's algorithm R: a log may be larger than memory
            drawn[at] = (lists, answer)
    return [answer for _, answer in sorted(drawn, key=lambda one: one[0])], others


def _common(bundles: Sequence[Bundle]) -> tuple[dict[str, str], str | None]:
    """The filter columns that all bundles have in the same kind, and the one of genres."""
    first, *others = (dict(bundle.filters.names) for bundle in bundles)
    columns = {name: kind for name, kind in first.items() if all(one.get(name) == kind for one in others)}
    genres = {bundle.spec.genre for bundle in bundles}
    return columns, genres.pop() if len(genres) == 1 else None


def _reader() -> Callable[[LoggedAnswer, Mapping[str, str], str | None], Query]:
    """What makes queries of logged requests; the server brings it."""
    found = next(iter(entry_points(group=GROUP)), None)
    if found is None:
        raise MissingExtra("server", "lhydra_server")
    reader: Callable[[LoggedAnswer, Mapping[str, str], str | None], Query] = found.load()
    return reader
