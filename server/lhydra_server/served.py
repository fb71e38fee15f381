"""An opened bundle as the service sees it, and how one is opened."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lhydra import kernels
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.columns import NO_COLUMNS, FilterColumns
from lhydra.bundle.strings import StringColumn
from lhydra.domain import I64, Hashes, Query, Recommendation
from lhydra.explain.explainer import Explainer
from lhydra.features.columns import ProfileColumns
from lhydra.recommender import Recommender
from lhydra.similar import Similar
from lhydra_server.catalogue import Catalogue
from lhydra_server.config import WorkerSettings

_log = logging.getLogger(__name__)

QueryAndCheck = tuple[Query, Callable[[], None]]  # the check runs between stages; its error ends the query


class CountsHits(Protocol):
    """What the service needs of the users who are known."""

    hits: int  # ever


class Recommends(Protocol):
    """What the service needs of a recommender."""

    depth: int
    fallbacks: int  # searches that had to be done again, ever

    @property
    def known_users(self) -> CountsHits:
        """Users who were encoded for an earlier request."""

    @property
    def knows_repeats(self) -> bool:
        """Whether the model has learnt what is played again."""

    def recommend_many(self, queries: Sequence[QueryAndCheck], /) -> list[Recommendation | Exception]:
        """Answers a batch of queries.

        Args:
            queries: at most MAX_BATCH.

        Returns:
            The answer to each query, or the error that ended it, in order.
        """


class Tracks(Protocol):
    """What the service needs of a catalog."""

    def __len__(self) -> int: ...

    def rows(self, hashes: Hashes) -> I64:
        """Returns the rows of tracks.

        Args:
            hashes: (n,) uint64 hashes of track ids, in any order.

        Returns:
            (n,) int64 rows of the catalog, -1 where unknown.
        """


@dataclass(frozen=True)
class Served:
    """An opened bundle as the service sees it."""

    bundle_id: str
    model_id: str
    dim: int
    index_recipe: str
    recommender: Recommends
    catalog: Tracks
    replies: StringColumn  # each track's part of a reply
    filters: FilterColumns = NO_COLUMNS
    genre: str | None = None  # the column that `Filter.genres` is about
    explainer: Explainer | None = None  # None where nobody explains
    profile: ProfileColumns | None = None  # what the model knows of profiles; None where nobody can tell
    similar: Similar | None = None
    catalogue: Catalogue | None = None  # None where nobody looks tracks up


def open_served(settings: WorkerSettings) -> Served:
    """Opens the bundle of a worker, verifies it and warms it up.

    Args:
        settings: name store, bundle and depth, and who must have signed it.

    Returns:
        All that a service answers from.

    Raises:
        BundleError: the bundle is missing, damaged, or of another format.
    """
    signed_by = bytes.fromhex(settings.signed_by) or None
    if kernels.compiled is None:
        _log.warning(
            "requests take longer: lhydra.kernels is not compiled; install Lhydra again, where a C compiler is"
        )
    bundle = Bundle.open(Path(settings.store), settings.bundle_id, signed_by=signed_by)
    recommender = Recommender(bundle, settings.depth)
    recommender.warm_up()
    return served_of(bundle, recommender)


def served_of(bundle: Bundle, recommender: Recommender) -> Served:
    """Returns an opened bundle as the service takes it.

    Args:
        bundle: opened from a folder.
        recommender: over it.

    Returns:
        All that a service answers from.
    """
    manifest = bundle.manifest
    assert manifest is not None  # what lies in a store has one
    assert bundle.replies is not None
    return Served(
        bundle.bundle_id,
        manifest.model_id,
        manifest.dim,
        manifest.recipe,
        recommender,
        bundle.catalog,
        bundle.replies,
        bundle.filters,
        bundle.spec.genre,
        Explainer(recommender),
        bundle.spec.profile,
        Similar(recommender),
        Catalogue(bundle.catalog, bundle.filters, bundle.spec.genre, bundle.words, bundle.map),
    )
