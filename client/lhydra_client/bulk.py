"""`lhydra query recommend --users-file`: lists of many users as they come, for people or as JSON lines."""

import json
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from lhydra_client.checks import text
from lhydra_client.client import Client
from lhydra_client.errors import ClientError, InvalidRequest
from lhydra_client.requests import recommend_request
from lhydra_client.results import Recommendations
from lhydra_protos.v1 import recommender_pb2 as pb

Shown = Callable[[str, Recommendations], tuple[str, dict[str, Any]]]  # a user's list for people, and for machines


def run(client: Client, path: str, k: int, options: dict[str, Any], shown: Shown, *, as_json: bool) -> int:
    """Asks for the lists of all users of a file and prints each when it comes, in the order of the file.

    Args:
        client: whom to ask.
        path: one user id per line, empty lines apart; - for standard input.
        k: how many tracks.
        options: of `recommend_request`, the same for all.
        shown: makes what is printed.
        as_json: whether a line of JSON is printed per user, else text.

    Returns:
        The exit code: 1 where a user has no list.

    Raises:
        ClientError: the file cannot be read, or no server answers.
    """
    asked: deque[str] = deque()
    template = recommend_request("", k, **options)
    done = failed = 0
    try:
        for answer in client.recommend_many(_requests(path, template, asked)):
            user = asked.popleft()
            if isinstance(answer, ClientError):
                failed += 1
                words = f"user {user}: {answer}"
                values = {"user_id": user, "k": k, "error": {"code": answer.code, "message": str(answer)}}
            else:
                words, values = shown(user, answer)
            print(json.dumps(values) if as_json else words + "\n", flush=as_json)
            done += 1
    except ClientError as error:
        raise type(error)(f"{error} (after {done} users)", code=error.code, request_id=error.request_id) from None
    if failed:
        print(f"lhydra query: {failed} of {done} users have no list", file=sys.stderr)
    return 1 if failed else 0


def _requests(path: str, template: pb.RecommendRequest, asked: deque[str]) -> Iterator[str | pb.RecommendRequest]:
    """Yields a request per line, and keeps whose it is in `asked`."""
    for user in _lines(path):
        asked.append(user)
        try:
            text("user_id", user)
        except InvalidRequest:
            yield user  # refused where its turn is
            continue
        request = pb.RecommendRequest()
        request.CopyFrom(template)
        request.user_id = user
        yield request


def _lines(path: str) -> Iterator[str]:
    try:
        with open(0 if path == "-" else path, encoding="utf-8", errors="surrogateescape", closefd=path != "-") as lines:
            for line in lines:
                if user := line.rstrip("\r\n"):
                    yield user
    except OSError as error:
        found = error.strerror or str(error)
        raise InvalidRequest(f"--users-file {path}: found {found}, expected a file of user ids, one per line") from None
