"""Bodies of the gateway: the message that protobuf's own parser makes of them, and no field that stands twice."""

import json
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server.web.bodies import GivenTwice, message_of

TEXTS = st.text(max_size=5)
PLAYS = st.builds(pb.Play, user_id=TEXTS, track_id=TEXTS, event_id=TEXTS, request_id=TEXTS, completed=st.booleans())
REQUESTS = st.builds(
    pb.RecommendRequest,
    user_id=TEXTS,
    k=st.integers(0, 2**32 - 1),
    exclude_track_ids=st.lists(TEXTS, max_size=3),
    filter=st.builds(pb.Filter, min_year=st.integers(0, 3000), genres=st.lists(TEXTS, max_size=2)),
)
MESSAGES = REQUESTS | st.builds(pb.RecordPlaysRequest, plays=st.lists(PLAYS, max_size=3))


def objects(message: Any, told: dict[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
    """The message and those in it, each with its JSON."""
    found = [(message, told)]
    for field, value in message.ListFields():
        if field.message_type is not None and field.name in told:
            several = isinstance(told[field.name], list)
            inner = zip(value, told[field.name], strict=True) if several else [(value, told[field.name])]
            found += [pair for one in inner for pair in objects(*one)]
    return found


@given(MESSAGES, st.data())
def test_each_field_may_have_either_name_and_not_both(message: Any, data: st.DataObject) -> None:
    told = json_format.MessageToDict(message, preserving_proto_field_name=True)
    assert message_of(json.dumps(told).encode(), type(message)) == message
    assert message_of(json_format.MessageToJson(message).encode(), type(message)) == message
    places = [
        (within, field)
        for one, within in objects(message, told)
        for field, _ in one.ListFields()
        if field.camelcase_name != field.name
    ]
    if places:
        within, field = data.draw(st.sampled_from(places))
        within[field.camelcase_name] = within[field.name]
        with pytest.raises(GivenTwice, match=rf"(^|\.){field.name}$"):
            message_of(json.dumps(told).encode(), type(message))


def test_a_name_that_stands_twice_is_told_and_names_of_ones_own_may_be_alike() -> None:
    with pytest.raises(GivenTwice, match=r"^k$"):
        message_of(b'{"k": 3, "k": 5}', pb.RecommendRequest)
    both = {"profile": {"columns": {"fooBar": {"number": 1}, "foo_bar": {"number": 2}}}}
    assert len(message_of(json.dumps(both).encode(), pb.RecommendRequest).profile.columns) == 2
    both["profile"]["columns"]["fooBar"]["text"] = "x"  # type: ignore[assignment] # two kinds of value: protobuf's own
    with pytest.raises(json_format.ParseError):
        message_of(json.dumps(both).encode(), pb.RecommendRequest)


@pytest.mark.parametrize("body", [b"[]", b"1", b"{", b"\xff", b"null"])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"no object|column|decode"):
        message_of(body, pb.RecommendRequest)
    assert message_of(b"", pb.RecommendRequest) == pb.RecommendRequest()
