"""Replies as bytes are those that the generated classes write: the same message to whoever parses them."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lhydra.bundle.strings import StringColumn
from lhydra.domain import STAGES, Recommendation, Tier
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_protos.v1.wire import SCORE_BYTES, number_field, text_field, track_part, varint
from lhydra_server.replies import reply
from tests.compiled_kernels import plain

TIERS = {
    Tier.PERSONAL: pb.TIER_PERSONAL,
    Tier.HISTORY: pb.TIER_HISTORY,
    Tier.SEGMENT: pb.TIER_SEGMENT,
    Tier.POPULAR: pb.TIER_POPULAR,
}
LENGTHS = (0, 1, 126, 127, 128, 16_382, 16_383, 16_384, 16_400)  # of UTF-8: where lengths need another byte
COUNTS = (0, 1, 2**7 - 1, 2**7, 2**14 - 1, 2**14, 2**21 - 1, 2**21, 2**28 - 1, 2**28, 2**32 - 1)

texts = st.one_of(
    st.text(max_size=40),
    st.builds(lambda length, c: (c * length)[:length], st.sampled_from(LENGTHS), st.sampled_from("aü\0𝄞")),
    st.builds(lambda length: "a" * (length - 2) + "ü" if length >= 2 else "", st.sampled_from(LENGTHS)),
)
counts = st.one_of(st.sampled_from(COUNTS), st.integers(0, 2**32 - 1))
floats = st.one_of(
    st.floats(width=32, allow_nan=False),
    st.sampled_from([0.0, -0.0, 1.401298464324817e-45, -1.1754942106924411e-38, float("inf"), 1.0]),
)


@dataclass(frozen=True)
class Track:
    track_id: str
    title: str
    artist: str

    @property
    def part(self) -> bytes:
        return track_part(self.track_id.encode(), self.title.encode(), self.artist.encode())


tracks = st.builds(Track, texts, texts, texts)


def same(found: bytes, expected: pb.RecommendResponse) -> None:
    """To the last bit of every float; -0.0 is not 0.0."""
    parsed = pb.RecommendResponse.FromString(found)
    assert parsed.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


@given(counts, st.integers(0, 2**64 - 1))
def test_numbers_are_written_as_protobuf_does(count: int, seed: int) -> None:
    assert number_field(2, count) == pb.Stage(took_us=count).SerializeToString()
    assert number_field(11, seed) == pb.RecommendRequest(seed=seed).SerializeToString()
    assert varint(seed) == (pb.RecommendRequest(seed=seed).SerializeToString()[1:] or b"\0")


@given(texts)
def test_texts_are_written_as_protobuf_does(text: str) -> None:
    assert text_field(2, text.encode()) == pb.RecommendResponse(bundle_id=text).SerializeToString()


@given(tracks, floats, floats)
def test_a_part_is_a_track_whose_scores_are_its_last_bytes(track: Track, score: float, retrieval_score: float) -> None:
    same(
        track.part,
        pb.RecommendResponse(
            tracks=[pb.ScoredTrack(track_id=track.track_id, title=track.title, artist=track.artist)],
        ),
    )
    filled = bytearray(track.part)
    filled[-SCORE_BYTES + 1 : -SCORE_BYTES + 5] = np.float32(score).tobytes()
    filled[-SCORE_BYTES + 6 :] = np.float32(retrieval_score).tobytes()
    same(bytes(filled), pb.RecommendResponse(tracks=[scored(track, score, retrieval_score)]))


def scored(track: Track, score: float, retrieval_score: float) -> pb.ScoredTrack:
    return pb.ScoredTrack(
        track_id=track.track_id,
        score=score,
        retrieval_score=retrieval_score,
        title=track.title,
        artist=track.artist,
    )


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[Track], list[tuple[int, float, float]]]:
    """A catalogue, and rows of it with their scores; rows may come twice here, for what that shows of the copying."""
    catalogue = draw(st.lists(tracks, min_size=1, max_size=8))
    row = st.integers(0, len(catalogue) - 1)
    return catalogue, draw(st.lists(st.tuples(row, floats, floats), max_size=12))


@settings(max_examples=150, deadline=None)
@given(
    answer=answers(),
    tier=st.sampled_from(Tier),
    stage_us=st.dictionaries(st.sampled_from((*STAGES, "no such stage")), counts),
    degraded=st.lists(texts.filter(bool), max_size=3),
    bundle_id=texts,
    request_id=texts,
)
@example(([Track("t", "", "")], []), Tier.POPULAR, {}, [], "", "")
@example(([Track("t", "", "")], [(0, 0.0, -0.0)] * 2), Tier.PERSONAL, {"select": 2**14}, ["user_store"], "b", "r")
def test_a_reply_is_the_message_built_field_by_field(
    answer: tuple[list[Track], list[tuple[int, float, float]]],
    tier: Tier,
    stage_us: dict[str, int],
    degraded: list[str],
    bundle_id: str,
    request_id: str,
) -> None:
    catalogue, chosen = answer
    expected = pb.RecommendResponse(
        tracks=[scored(catalogue[row], score, cosine) for row, score, cosine in chosen],
        bundle_id=bundle_id,
        tier=TIERS[tier],
        degraded=degraded,
        stages=[pb.Stage(name=stage, took_us=stage_us.get(stage, 0)) for stage in STAGES],
        request_id=request_id,
    )
    parts = texts_of(catalogue)
    before = parts.data.copy()
    found = found_rows(chosen, tier)
    for context in (nullcontext(), plain()):
        with context:
            ours = reply(found, parts, stage_us, bundle_id=bundle_id, degraded=degraded, request_id=request_id)
        same(ours, expected)
    np.testing.assert_array_equal(parts.data, before)  # the scores went into a copy


def texts_of(catalogue: Sequence[Track]) -> StringColumn:
    """As the bundle holds them: mapped, not to be written to."""
    data = np.frombuffer(b"".join(track.part for track in catalogue), np.uint8)
    return StringColumn(data, np.cumsum([0, *(len(track.part) for track in catalogue)]))


def found_rows(chosen: Sequence[tuple[int, float, float]], tier: Tier) -> Recommendation:
    rows = np.array([row for row, _, _ in chosen], np.int64)
    scores, cosines = (np.array([one[i] for one in chosen], np.float32) for i in (1, 2))
    return Recommendation(rows, scores, scores, cosines, rows, cosines, tier, {})


def test_scores_of_any_layout_are_written_alike() -> None:
    """What the core hands over may be a slice with gaps, or of another byte order."""
    catalogue = [Track(f"t{i}", "", "") for i in range(4)]
    chosen = [(3, 0.5, -0.25), (0, 0.25, 0.125), (2, 0.125, 1.0)]
    plain = found_rows(chosen, Tier.PERSONAL)
    gaps = np.zeros(6, np.float32)
    gaps[::2] = plain.scores
    odd = Recommendation(
        plain.rows,
        gaps[::2],
        plain.scores,
        plain.retrieval_scores.astype(">f4"),
        plain.rows,
        plain.scores,
        plain.tier,
        {},
    )
    first, second = (
        reply(found, texts_of(catalogue), {}, bundle_id="b", degraded=(), request_id="r") for found in (plain, odd)
    )
    assert first == second
