"""Tracks looked up and searched: by a real server and client on a real bundle, and by brute force beside the words."""

import asyncio
import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import search
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.strings import StringColumn
from lhydra.bundle.title_words import FILES, TitleWords, words_of
from lhydra.domain import I64
from lhydra.errors import BundleCorrupt, DeadlineExceeded
from lhydra.recommender import Recommender
from lhydra.users.store import open_users
from lhydra_client import AsyncClient, Client, Filter, InvalidRequest
from lhydra_client.catalogue import FoundTracks
from lhydra_server.app import Listener
from lhydra_server.catalogue import Catalogue
from lhydra_server.served import served_of
from lhydra_server.service import RecommenderService

TEXTS = st.text("aAbBéÉß ıİ-'<>&!🔥🎵שלוםعرب雨の夜한", max_size=12)


@pytest.fixture(scope="module")
def bundle(tiny_store: Path) -> Bundle:
    return Bundle.open(tiny_store)


@pytest.fixture(scope="module")
def address(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    users = open_users(None, tmp_path_factory.mktemp("users"))
    service = RecommenderService(served_of(bundle, Recommender(bundle)), users, max_k=50)
    listener = Listener(service, "127.0.0.1:0", max_in_flight=8)
    listener.start()
    yield f"127.0.0.1:{listener.port}"
    listener.stop(0)
    users.close()


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, timeout_s=20) as client:
        yield client


def expected(bundle: Bundle, text: str, allowed: set[int]) -> list[int]:
    """Rows by looking at every track: the oracle."""
    rows = np.arange(len(bundle.catalog))
    wanted, found = set(words_of(text)), []
    for row, title, artist in zip(rows, bundle.catalog.titles(rows), bundle.catalog.artists(rows), strict=True):
        own = {*words_of(title), *words_of(artist)}
        if row in allowed and all(any(word.startswith(start) for word in own) for start in wanted):
            found.append((-len(wanted & own), -bundle.catalog.share[row], row))
    return [int(row) for _, _, row in sorted(found)]


def ids(found: FoundTracks) -> list[str]:
    return [track.track_id for track in found.tracks]


def test_what_is_found_is_what_looking_at_every_track_finds(bundle: Bundle, client: Client) -> None:
    catalog = bundle.catalog
    everything = set(range(len(catalog))) - set(catalog.removed.tolist())
    title, artist = catalog.titles(np.array([3]))[0], catalog.artists(np.array([3]))[0]
    for text in (title, title.upper(), artist[:4], f"{artist} {title[:5]}", "a", "the s", f"  {title[:1]}-{artist} "):
        rows = expected(bundle, text, everything)
        found = client.search(text, 50)
        assert ids(found) == catalog.track_ids(np.array(rows[:50], np.int64)), text
        assert found.found == len(rows)
        assert found.bundle_id == bundle.bundle_id
    assert client.search("zzzzzz").tracks == ()


def test_a_filter_and_k_hold(bundle: Bundle, client: Client) -> None:
    artist = bundle.catalog.artists(np.array([3]))[0]
    first = artist[:1]
    allowed = {row for row in range(len(bundle.catalog)) if bundle.catalog.artists(np.array([row]))[0] == artist}
    rows = expected(bundle, first, allowed)
    assert rows
    found = client.search(first, 2, filter=Filter(artists=[artist]))
    assert ids(found) == bundle.catalog.track_ids(np.array(rows[:2], np.int64))
    assert found.found == len(rows)


@pytest.mark.parametrize(
    ("text", "k", "field"),
    [
        *(("", 5, "text"), ("  \n", 5, "text"), ("a" * 257, 5, "text"), ("a b " * 17, 5, "text")),
        *(("a", 0, "k"), ("a", 51, "k")),
    ],
)
def test_what_can_never_be_answered_names_its_field(client: Client, text: str, k: int, field: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"\b{field}: found "):
        client.search(text, k)


def test_tracks_come_in_the_order_asked_for_and_unknown_ids_are_named(bundle: Bundle, client: Client) -> None:
    names = bundle.catalog.track_ids(np.array([5, 2, 9]))
    found = client.tracks([names[0], "nobody's", *names[1:], names[0]])
    assert ids(found) == [*names, names[0]]
    assert found.unknown_ids == ("nobody's",)
    assert [track.title for track in found.tracks[:3]] == bundle.catalog.titles(np.array([5, 2, 9]))
    assert [track.artist for track in found.tracks[:3]] == bundle.catalog.artists(np.array([5, 2, 9]))
    for wrong, field in (([], "track_ids"), ([""], r"track_ids\[0\]"), (["t"] * 1001, "track_ids")):
        with pytest.raises(InvalidRequest, match=rf"\b{field}: found "):
            client.tracks(wrong)


def test_the_aio_client_says_the_same(bundle: Bundle, address: str, client: Client) -> None:
    title = bundle.catalog.titles(np.array([3]))[0]
    name = bundle.catalog.track_ids(np.array([3]))

    async def ask() -> tuple[FoundTracks, FoundTracks]:
        async with AsyncClient(address, timeout_s=20) as other:
            return await other.search(title), await other.tracks(name)

    searched, looked_up = asyncio.run(ask())
    assert searched.tracks == client.search(title).tracks
    assert looked_up.tracks == client.tracks(name).tracks


def test_a_bundle_without_the_files_answers_the_same(bundle: Bundle) -> None:
    assert bundle.words is not None
    made = TitleWords.of(bundle.catalog.title_texts, bundle.catalog.artist_texts)
    for name in ("offsets", "rows"):
        assert np.array_equal(getattr(made, name), getattr(bundle.words, name))
    assert made.words.raw() == bundle.words.words.raw()
    lazy = Catalogue(bundle.catalog, bundle.filters, bundle.spec.genre)
    assert lazy._all_words().words.raw() == bundle.words.words.raw()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8), TEXTS, st.data())
def test_any_texts_are_found_as_by_hand(tracks: list[tuple[str, str]], text: str, data: st.DataObject) -> None:
    words = words_of(text)
    if not words:
        return
    n = len(tracks)
    popular = np.array(data.draw(st.permutations(range(n))), np.int32)
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    columns = (StringColumn.of(part[i] for part in tracks) for i in (0, 1))
    found = TitleWords.of(*columns).find(words, allowed, popular, lambda: None)
    own = [{*words_of(title), *words_of(artist)} for title, artist in tracks]
    hits = [
        row
        for row in popular.tolist()
        if allowed[row] and all(any(word.startswith(start) for word in own[row]) for start in words)
    ]
    assert found.tolist() == sorted(hits, key=lambda row: -len(own[row] & set(words)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), TEXTS, TEXTS), max_size=12))
def test_words_of_more_tracks_are_as_if_all_had_been_collected_at_once(tracks: list[tuple[bool, str, str]]) -> None:
    def collected(of: Collection[bool]) -> tuple[TitleWords, I64]:
        rows = [i for i, (new, *_) in enumerate(tracks) if new in of]
        titles = StringColumn.of(tracks[i][1] for i in rows)
        artists = StringColumn.of(tracks[i][2] for i in rows)
        return TitleWords.of(titles, artists), np.array(rows, np.int64)

    (before, moved), (fresh, own), (expected, _) = map(collected, ({False}, {True}, {False, True}))
    made = before.with_tracks(fresh, moved, own)
    assert made.words.raw() == expected.words.raw()
    for name in ("offsets", "rows"):
        np.testing.assert_array_equal(getattr(made, name), getattr(expected, name))
        assert getattr(made, name).dtype == getattr(expected, name).dtype


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=20))
def test_case_accents_and_form_do_not_count(text: str) -> None:
    for other in (text.casefold(), unicodedata.normalize("NFD", text), unicodedata.normalize("NFC", text)):
        assert words_of(other) == words_of(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Sigur Rós – Ágætis", ["sigur", "ros", "agætis"]),
        ("<b>Rock & Roll</b>", ["b", "rock", "roll", "b"]),
        ("🔥🔥 Hot", ["🔥", "🔥", "hot"]),
        ("!!!", ["!!!"]),
        ("שָׁלוֹם עולם", ["שלום", "עולם"]),
        ("雨の夜", ["雨の夜"]),
        ("Straße", ["strasse"]),
        (" \t", []),
    ],
)
def test_words_of_many_scripts(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_the_work_for_hostile_texts_is_bounded_by_words_and_ends_with_the_caller(bundle: Bundle) -> None:
    calls = 0

    def gone() -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise DeadlineExceeded("gone")

    assert bundle.words is not None
    allowed = np.ones(len(bundle.catalog), bool)
    with pytest.raises(DeadlineExceeded):
        bundle.words.find([chr(97 + i) for i in range(20)], allowed, bundle.catalog.popular, gone)
    assert calls == 4
    calls = 0
    bundle.words.find(["a"] * 20, allowed, bundle.catalog.popular, gone)  # a word said often is one
    assert calls == 1


def test_files_that_do_not_fit_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    assert bundle.words is not None
    bundle.words.save(tmp_path)
    n = len(bundle.catalog)
    again = TitleWords.open(tmp_path, n, FILES)
    assert again is not None
    assert again.words.raw() == bundle.words.words.raw()
    np.save(tmp_path / FILES[3], np.full(len(bundle.words.rows), n, np.int32))
    with pytest.raises(BundleCorrupt):
        TitleWords.open(tmp_path, n, FILES)
    assert TitleWords.open(tmp_path, n, []) is None


def test_sqlite_finds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert search.main(["--tracks", "300", "--texts", "10"]) == 0  # it fails where the ways differ
    assert [line.split(" {")[0] for line in capsys.readouterr().out.splitlines()] == [
        *("sorted words", "FTS5", "FTS5, prefixes"),
    ]
