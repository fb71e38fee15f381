"""The limits of the API, and the checks of single values against them.

Standard library only: `lhydra serve` reads its settings before anything heavy is imported.
"""

import re

from lhydra.errors import InvalidRequest

MAX_K = 10_000  # the largest k that a server may be told to allow
DEFAULT_MAX_K = 1_000  # the largest k that it allows unless told
MAX_DEPTH = 10_000  # candidates to rerank
MAX_ID_CHARS = 256  # of a user or track id
AN_ID = f"1 to {MAX_ID_CHARS} characters of UTF-8, none of control"  # what `check_id` takes, in words
CONTROL = r"[\x00-\x1f\x7f-\x9f]"  # what no id holds, as `re` and DuckDB read it: Unicode's Cc, a set that never grows
MAX_EVENT_CHARS = 128
MAX_EXCLUDED = 10_000  # tracks that a request excludes
MAX_ENTRIES = 10_000  # history entries that a request brings
MAX_SESSION = 256  # plays of now that a request brings
MAX_COUNT = 1e9  # plays of one history entry; sums of them stay finite in float32
MAX_PLAYS = 1_000  # recorded by one call
MAX_MS_PLAYED = 86_400_000  # of one play: a day
CLOCK_SKEW_S = 86_400  # a play may be ahead of our clock by so much; one further ahead counts as of now
LAST_S = 4_102_444_799  # the end of the year 2099: a later timestamp is in another unit
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_holds_control, _holds_surrogate = re.compile(CONTROL).search, re.compile(r"[\ud800-\udfff]").search


def check_id(field: str, text: str) -> None:
    """Checks the id of a user or track: the one rule for every door, whatever tables of Unicode a machine has.

    Args:
        field: the name of the field, for the error.
        text: its value.

    Raises:
        InvalidRequest: the id is empty, longer than MAX_ID_CHARS, holds control characters, or is no UTF-8 text.
    """
    check_length(field, text, MAX_ID_CHARS)
    if _holds_control(text):
        raise InvalidRequest(field, text, "no control characters")
    if _holds_surrogate(text):
        raise InvalidRequest(field, text, "text that is UTF-8")


def is_id(text: str) -> bool:
    """Says whether a text can be the id of a user or track.

    Args:
        text: the text.

    Returns:
        Whether `check_id` takes it.
    """
    try:
        check_id("", text)
    except InvalidRequest:
        return False
    return True


def is_request_id(text: str) -> bool:
    """Says whether a text can be the id of a request, which logs hold as it is.

    Args:
        text: the text.

    Returns:
        Whether it has 1 to 128 of the letters, digits and signs that ids of requests are made of.
    """
    return _REQUEST_ID.fullmatch(text) is not None


def check_request_id(field: str, text: str) -> None:
    """Checks the id of a request.

    Args:
        field: the name of the field, for the error.
        text: its value.

    Raises:
        InvalidRequest: no server gave it to an answer.
    """
    if not is_request_id(text):
        found = f"{len(text)} characters" if len(text) > 128 else text
        raise InvalidRequest(field, found, "the request_id of an answer: 1 to 128 letters, digits and ._:/-")


def check_length(field: str, text: str, longest: int) -> None:
    """Checks the length of a text.

    Args:
        field: the name of the field, for the error.
        text: its value.
        longest: how many characters it may have.

    Raises:
        InvalidRequest: the text is empty or longer.
    """
    if not 1 <= len(text) <= longest:
        raise InvalidRequest(field, f"{len(text)} characters", f"1 to {longest} characters")


def check_range(field: str, value: int, low: int, high: int, unit: str = "") -> None:
    """Checks that a number lies in a range.

    Args:
        field: the name of the field, for the error.
        value: its value, or how many entries it has.
        low: the least value allowed.
        high: the largest value allowed.
        unit: what is counted, for the error.

    Raises:
        InvalidRequest: `value` is below `low` or above `high`.
    """
    if not low <= value <= high:
        raise InvalidRequest(field, f"{value} {unit}".rstrip(), f"{low} to {high} {unit}".rstrip())


def check_time(field: str, timestamp_s: int, now: int) -> None:
    """Checks a timestamp. A clock that is wrong, ours or the caller's, makes none wrong: what is refused is lost.

    Args:
        field: the name of the field, for the error.
        timestamp_s: its value, Unix seconds.
        now: Unix seconds.

    Raises:
        InvalidRequest: the timestamp is negative, or no number of seconds: of the year 2100 or later.
    """
    if not 0 <= timestamp_s <= max(LAST_S, now):
        raise InvalidRequest(field, timestamp_s, "Unix seconds, not negative and before the year 2100")
