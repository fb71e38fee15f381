"""A logged answer in the words of the core: the rule sets that its request found, and the query that it was."""

from collections.abc import Mapping

from google.protobuf.message import DecodeError

from lhydra.answers.entry import LoggedAnswer
from lhydra.domain import Query
from lhydra.errors import DataError, complain
from lhydra.lists.file import RuleSets
from lhydra.queries import to_query
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.translate import to_request


def query_of(answer: LoggedAnswer, columns: Mapping[str, str], genre: str | None) -> Query:
    """Returns the query that a logged request of Recommend was; `lhydra index` finds this as an entry point.

    Args:
        answer: of the log.
        columns: the filter columns of whoever is asked, and their kinds.
        genre: the column that holds genres.

    Returns:
        The query, with the state, clock and rules of then.

    Raises:
        InvalidRequest: the filter, or a rule of the request, is about a column that is not there.
        ConfigError: a rule of the server's set is.
        DataError: what was logged is no request.
    """
    try:
        request = pb.RecommendRequest.FromString(answer.request)
    except DecodeError:
        raise DataError(complain(f"logged answer {answer.request_id}", "no request", "the bytes that came")) from None
    sets = sets_of(answer, request.rules.set)
    sets.check(columns)
    parsed = to_request(request, answer.max_k, columns, genre, answer.now, sets, answer.request_id)
    return to_query(parsed, answer.state, answer.now)


def sets_of(answer: LoggedAnswer, named: str) -> RuleSets:
    """Returns the rule sets as a request found them.

    Args:
        answer: of the log.
        named: the set that the request names; "" for none.

    Returns:
        The set that it started from, under its name or as the default.
    """
    if answer.rules is None:
        return RuleSets()
    name = named or answer.rules.name
    return RuleSets({name: answer.rules}, None if named else answer.rules)
