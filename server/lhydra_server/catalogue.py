"""GetTracks and SearchTracks: what the catalogue says of tracks, by their ids and by words; and its map."""

from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np

from lhydra.bundle.catalog import Catalog
from lhydra.bundle.columns import FilterColumns
from lhydra.bundle.title_words import TitleWords, words_of
from lhydra.bundle.track_map import TrackMap
from lhydra.domain import I64, Hashes, track_hashes
from lhydra.errors import InvalidRequest
from lhydra.limits import check_id, check_length, check_range
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_server import track_map
from lhydra_server.filters import to_conditions

MAX_TRACKS = 1_000  # of one GetTracks
MAX_TEXT_CHARS, MAX_WORDS = 256, 32


class Catalogue:
    """Finds tracks; safe to call from several threads.

    Args:
        catalog: of the bundle.
        filters: of the bundle.
        genre: the column that `Filter.genres` is about.
        words: of the bundle; None makes them of its texts when somebody searches first.
        track_map: of the bundle; None where it has no map.
    """

    def __init__(
        self,
        catalog: Catalog,
        filters: FilterColumns,
        genre: str | None,
        words: TitleWords | None = None,
        track_map: TrackMap | None = None,
    ) -> None:
        self._catalog, self._filters, self._genre, self._words = catalog, filters, genre, words
        self._track_map, self._making = track_map, Lock()

    def get(self, request: pb.GetTracksRequest) -> pb.GetTracksResponse:
        """Looks tracks up.

        Args:
            request: as it came.

        Returns:
            Those that the bundle holds, and the ids of the others.

        Raises:
            InvalidRequest: a limit is passed; names the field.
        """
        asked = list(request.track_ids)
        check_range("track_ids", len(asked), 1, MAX_TRACKS, "tracks")
        for i, track in enumerate(asked):
            check_id(f"track_ids[{i}]", track)
        rows = self._catalog.rows(track_hashes(asked))
        unknown = [track for track, row in zip(asked, rows.tolist(), strict=True) if row < 0]
        return pb.GetTracksResponse(tracks=self._told(rows[rows >= 0]), unknown_ids=unknown)

    def search(self, request: pb.SearchTracksRequest, max_k: int, check: Callable[[], None]) -> pb.SearchTracksResponse:
        """Finds tracks by words.

        Args:
            request: as it came.
            max_k: the largest k that this server allows.
            check: runs between steps; its error ends the search.

        Returns:
            The k best, and how many there are.

        Raises:
            InvalidRequest: it can never be answered; names the field.
        """
        check_length("text", request.text, MAX_TEXT_CHARS)
        check_range("k", request.k, 1, max_k)
        words = words_of(request.text)
        if not 1 <= len(words) <= MAX_WORDS:
            raise InvalidRequest("text", f"{len(words)} words", f"1 to {MAX_WORDS} words")
        conditions = to_conditions(request.filter, self._filters.names, self._genre)
        catalog = self._catalog
        allowed = self._filters.mask(conditions) if conditions else np.ones(len(catalog), bool)
        allowed[catalog.removed] = False
        found = self._all_words().find(words, allowed, catalog.popular, check)
        return pb.SearchTracksResponse(tracks=self._told(found[: request.k].astype(np.int64)), found=len(found))

    def map(self, request: pb.GetMapRequest, check: Callable[[], None]) -> pb.GetMapResponse:
        """Tells where tracks lie on the map.

        Args:
            request: as it came.
            check: runs between steps; its error ends the call.

        Returns:
            The tracks; none where the bundle has no map.

        Raises:
            InvalidRequest: it can never be answered; names the field.
        """
        return track_map.answer(request, self._catalog, self._filters, self._genre, self._track_map, check)

    def texts(self, tracks: Hashes) -> list[tuple[str, str, str]]:
        """Looks tracks up by hash, as user state knows them.

        Args:
            tracks: (n,) uint64 hashes of track ids.

        Returns:
            Id, title and artist of each, empty where the bundle does not hold it.
        """
        rows = self._catalog.rows(tracks)
        known = rows[rows >= 0]
        of = (self._catalog.track_ids(known), self._catalog.titles(known), self._catalog.artists(known))
        found = iter(zip(*of, strict=True))
        return [next(found) if row >= 0 else ("", "", "") for row in rows.tolist()]

    def _all_words(self) -> TitleWords:
        with self._making:
            if self._words is None:
                self._words = TitleWords.of(self._catalog.title_texts, self._catalog.artist_texts)
            return self._words

    def _told(self, rows: I64) -> Sequence[pb.CatalogTrack]:
        catalog = self._catalog
        texts = catalog.track_ids(rows), catalog.titles(rows), catalog.artists(rows)
        removed = np.isin(rows, catalog.removed).tolist()
        return [
            pb.CatalogTrack(track_id=track, title=title, artist=artist, share=share, removed=gone)
            for track, title, artist, share, gone in zip(*texts, catalog.share[rows].tolist(), removed, strict=True)
        ]
