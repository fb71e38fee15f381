"""Bundles and the store: a bundle is a sealed, self-contained, servable folder; the store names the current one.

    store/CURRENT                one line, the bundle id; replaced atomically
    store/<bundle_id>/manifest.json   Manifest: sha256 and size of every other file; manifest.sha256 and .sig beside it
                      features.json  user_tower.onnx  item_tower.onnx  head.onnx
                      catalog.parquet  added.parquet   tracks of the last full build, and added since
                      replies.npy  replies_offsets.npy   of every track, its part of a reply as the API sends it
                      index.faiss  index_rows.npy  golden.npz  and the files of `catalog` and `columns`
                      sequence_*.npy  co_listening_*.npy   further sources of candidates, where the model has them
                      search_*.npy   the words of titles and artists; bundles of before have none
                      map_*.npy   where each track lies on the map of the catalogue; bundles of before have none
                      fitted_users.npz   whom its model was fitted on, by keyed hash
                      head.npz   the weights of head.onnx for the compiled loop; bundles of before have none

A bundle is immutable once published: mapped files are never rewritten. Nothing here writes; see the index builder.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lhydra import files, kernels
from lhydra.bundle import catalog as catalogs
from lhydra.bundle import co_listening_files, folded_head, sequence_files
from lhydra.bundle import columns as filters
from lhydra.bundle.arrays import NOT_NPZ, check_lists, write_npz
from lhydra.bundle.catalog import Catalog
from lhydra.bundle.columns import NO_COLUMNS, FilterColumns
from lhydra.bundle.index import Index
from lhydra.bundle.manifest import Manifest, OperatingPoint, current_bundle_id
from lhydra.bundle.networks import Head, UserTower
from lhydra.bundle.strings import StringColumn
from lhydra.bundle.title_words import TitleWords
from lhydra.bundle.track_map import TrackMap
from lhydra.bundle.verified import VerifiedFiles
from lhydra.domain import F32, I64
from lhydra.errors import BundleCorrupt, BundleMismatch, BundleMissing, LhydraError, ModelError, complain, one_line
from lhydra.features import item_item
from lhydra.features.co_listening import NO_CO_LISTENING, CoListening
from lhydra.features.histories import EncodedUsers, Histories
from lhydra.features.listening import Listening
from lhydra.features.moment import Moment
from lhydra.features.sequences import NO_SEQUENCES, Sequences
from lhydra.features.spec import FeatureSpec

if TYPE_CHECKING:
    from lhydra.kernels.compiled import CoListeningTable, CompiledHead, CompiledTower

PARTS = (
    *("features.json", "item_tower.onnx", "user_tower.onnx", "head.onnx"),
    *("catalog.parquet", "added.parquet", "index.faiss", "index_rows.npy"),
    *("replies.npy", "replies_offsets.npy"),
)
VECTOR_TOLERANCE, SCORE_TOLERANCE = 1e-4, 1e-3


@dataclass(frozen=True)
class Golden:
    """Encoded users with the vectors and logits they had when the bundle was made; see `Bundle.open`."""

    users: EncodedUsers
    vectors: F32  # (n, dim)
    rows: I64  # (m,) tracks scored for every one of them
    logits: F32  # (n, m)

    def save(self, path: Path) -> None:
        """Writes golden.npz.

        Args:
            path: the file.
        """
        users, histories = self.users, self.users.histories
        arrays: dict[str, Any] = {
            "dense": users.dense,
            "ids": users.ids,
            "entry": users.entry,
            "offsets": histories.offsets,
            "history": histories.rows,
            "counts": histories.counts,
            "times": histories.times,
            "vectors": self.vectors,
            "rows": self.rows,
            "logits": self.logits,
        }
        write_npz(path, arrays)

    @classmethod
    def open(cls, path: Path) -> "Golden":
        """Reads golden.npz.

        Args:
            path: the file.

        Returns:
            The golden users.

        Raises:
            BundleCorrupt: it is not golden.npz.
        """
        try:
            with np.load(path, allow_pickle=False) as z:
                histories = Histories(z["offsets"], z["history"], z["counts"], z["times"])
                users = EncodedUsers(z["dense"], z["ids"], histories, z["entry"])
                return cls(users, z["vectors"], z["rows"], z["logits"])
        except NOT_NPZ as error:
            raise BundleCorrupt(complain(path, str(error), "golden vectors")) from None


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: the parts that a `lhydra.recommender.Recommender` works with."""

    bundle_id: str
    spec: FeatureSpec
    catalog: Catalog
    user_tower: UserTower
    head: Head
    index: Index
    replies: StringColumn | None = None  # (n,) each track's part of a reply; None where nobody answers over the network
    filters: FilterColumns = NO_COLUMNS
    manifest: Manifest | None = None  # None for a model that was never published
    lease: files.Lease | None = None  # while it lives, nobody deletes the folder
    sequences: Sequences = NO_SEQUENCES  # what goes with what in time, by row
    co_listening: CoListening = NO_CO_LISTENING  # a source of candidates, by row
    words: TitleWords | None = None  # to search tracks by; None where the bundle has no file of them
    map: TrackMap | None = None  # None where it has none

    @classmethod
    def open(
        cls, store: Path, bundle_id: str | None = None, *, again: bool = False, signed_by: bytes | None = None
    ) -> "Bundle":
        """Opens a bundle of `store`, CURRENT by default, checks every file and re-runs the golden users.

        Args:
            store: where bundles are published.
            bundle_id: which one.
            again: whether to hash files that were hashed since the last boot and have not changed.
            signed_by: the public key of who must have signed its manifest; None takes it without a signature.

        Returns:
            The bundle, checked.

        Raises:
            BundleMissing: no such bundle, or a store without CURRENT.
            BundleRefused: it is not signed by that key.
            BundleCorrupt: a file is missing or differs from the manifest.
            BundleMismatch: unknown format, parts that disagree, or other answers than when it was made.
        """
        bundle_id = current_bundle_id(store) if bundle_id is None else bundle_id
        folder = Path(store) / bundle_id
        if not folder.is_dir():
            raise BundleMissing(complain(folder, "no such bundle", "one that `lhydra index list` names"))
        return cls.open_folder(folder, bundle_id, VerifiedFiles(Path(store), again), signed_by)

    @classmethod
    def open_folder(
        cls,
        folder: Path,
        bundle_id: str | None = None,
        verified: VerifiedFiles | None = None,
        signed_by: bytes | None = None,
    ) -> "Bundle":
        """Opens the bundle in `folder`, published or still staged.

        Args:
            folder: of the bundle.
            bundle_id: the id that it must have; None takes any, as of a bundle that is not published.
            verified: remembers what files hashed to; None hashes them all.
            signed_by: the public key of who must have signed its manifest.

        Returns:
            The bundle, checked.

        Raises:
            BundleRefused: it is not signed by that key.
            BundleCorrupt: a file is missing or differs from the manifest.
            BundleMismatch: unknown format, parts that disagree, or other answers than when it was made.
        """
        manifest = Manifest.read(folder, bundle_id, signed_by)
        lease = files.Lease(folder / "manifest.json")
        if missing := {*PARTS, "golden.npz", *catalogs.file_names(), *filters.file_names(folder)} - set(manifest.files):
            raise BundleCorrupt(complain(folder / "manifest.json", f"no {sorted(missing)[0]}", "every file named"))
        files.check(folder, manifest.files, BundleCorrupt, verified.sha256_of if verified else files.sha256_of)
        features = (folder / "features.json").read_text(encoding="utf-8")
        spec = FeatureSpec.from_json(features)
        as_written = hashlib.sha256(features.encode()).hexdigest() == manifest.features  # else it is spelled otherwise
        catalog = Catalog.open(folder)
        catalogs.check_numbers(folder, catalog)
        index = open_index(folder, manifest, catalog)
        replies = StringColumn.open(folder, "replies")
        check_lists(folder / "replies_offsets.npy", len(replies.data))
        columns = FilterColumns.open(folder)
        sequences = sequence_files.open_sequences(folder, manifest.files)
        together = co_listening_files.open_co_listening(folder, manifest.files)
        optional: dict[str, Any] = {
            "words": TitleWords.open(folder, len(catalog), manifest.files),
            "map": TrackMap.open(folder, len(catalog), manifest.files),
        }
        for thing, found, expected in (
            ("features.json", manifest.features if as_written else spec.fingerprint, manifest.features),
            ("catalog tracks", len(catalog), manifest.n_tracks),
            ("index tracks", len(index), catalog.n_eligible),
            ("parts of replies", len(replies), manifest.n_tracks),
            ("tracks of filters", columns.n, manifest.n_tracks),
            ("vector width", catalog.vectors.shape[1], manifest.dim),
            ("index width", index.dim, manifest.dim),
            ("tracks of sequences", len(sequences) or manifest.n_tracks, manifest.n_tracks),
            ("tracks of co-listening", len(together) or manifest.n_tracks, manifest.n_tracks),
            ("encoded track columns", catalog.dense.shape[1], len(spec.track_dense)),
            ("encoded track ids", catalog.ids.shape[1], len(spec.track_ids)),
        ):
            if found != expected:
                raise BundleMismatch(complain(f"{folder}: {thing}", str(found), f"{expected} as in the manifest"))
        catalogs.check_ids(folder, [size for _, size in spec.track_ids])
        weights = folded_head.read(folder, manifest.files)
        towers = UserTower(folder / "user_tower.onnx"), Head(folder / "head.onnx", weights=weights)
        tables = sequences, together
        bundle = cls(
            manifest.bundle_id, spec, catalog, *towers, index, replies, columns, manifest, lease, *tables, **optional
        )
        bundle._check_golden(folder)
        return bundle

    def golden(self, users: EncodedUsers, rows: I64) -> Golden:
        """Returns what these users and tracks give now.

        Args:
            users: encoded, n of them.
            rows: (m,) int64 tracks to score for each.

        Returns:
            Vectors (n, dim) and logits (n, m), with what they were computed from.
        """
        vectors = self.embed(users)
        logits = []
        for i in range(len(vectors)):
            logits.append(self.score(vectors[i : i + 1], users.take(np.array([i])), rows)[0])
        return Golden(users, vectors, rows, np.stack(logits))

    def embed(self, users: EncodedUsers) -> F32:
        """Embeds users by the user tower.

        Args:
            users: n encoded users, whose histories point into the catalog.

        Returns:
            (n, dim) float32 of unit norm.

        Raises:
            ModelError: a vector is not finite.
        """
        if self._compiled_tower is None:
            return self.user_tower.embed(users, self.catalog.history)
        of = users.histories
        try:
            return self._compiled_tower.embed(users.dense, users.ids, of.offsets, of.rows, users.entry)
        except FloatingPointError as error:
            raise ModelError(complain(folded_head.FILE, str(error), "finite numbers")) from None

    def score(self, vector: F32, user: EncodedUsers, rows: I64, moment: Moment | None = None) -> tuple[F32, F32]:
        """Scores tracks for one encoded user by the head.

        Args:
            vector: (1, dim) float32 of the user.
            user: the one encoded user.
            rows: (n,) int64 of the catalog, distinct.
            moment: what is known of the user in time, for a head that asks for it; None makes it of the history.

        Returns:
            Logits and calibrated probabilities, (n,) float32 each.

        Raises:
            ModelError: a score is not finite.
        """
        tracks, played = self.catalog, user.histories.rows
        if self.head.knows_moments and moment is None:
            moment = Moment(Listening.of_history(user.histories, len(tracks)), self.sequences)
        if self._compiled_head is not None:
            head, table = self._compiled_head
            sums = None if moment is None else moment.compiled
            try:
                return head.score_for(vector[0], user.dense[0], user.ids[0], rows, table, played, user.entry, sums)
            except FloatingPointError as error:
                raise ModelError(complain(folded_head.FILE, str(error), "finite numbers")) from None
        items = tracks.item_rows  # row 0, the unknown, counts nothing
        together = item_item.scores(
            tracks.neighbours, tracks.neighbour_weights, items.take(played), user.entry, items.take(rows)
        )
        vectors, dense, ids, popularity = _gathered(rows, tracks.vectors, tracks.dense, tracks.ids, tracks.popularity)
        at = None if moment is None else (moment.signals(rows), moment.context())
        return self.head.score(vector, user, vectors, dense, ids.astype(np.int64), popularity, together, at)

    @cached_property
    def _compiled_tower(self) -> "CompiledTower | None":
        """What embeds in place of the graph, as below."""
        weights = self.head.weights
        return None if weights is None else folded_head.compiled_tower(weights, self.catalog.history.table)

    @cached_property
    def _compiled_head(self) -> "tuple[CompiledHead, CoListeningTable] | None":
        """What scores in place of the graph; None where the model has no weights for it, or nothing is compiled."""
        if self.head.weights is None:
            return None
        of = self.catalog
        head = folded_head.compiled(self.head.weights, of.vectors, of.dense, of.ids, of.popularity)
        return head, item_item.table_of(of.neighbours, of.neighbour_weights, of.item_rows)

    def _check_golden(self, folder: Path) -> None:
        then = Golden.open(folder / "golden.npz")
        try:
            now = self.golden(then.users, then.rows)
            found = [now]
            if self.head.weights is not None:  # else the graphs have just answered
                found.append(replace(self, head=self.head.by_graph()).golden(then.users, then.rows))
            vectors = max(float(np.abs(one.vectors - then.vectors).max(initial=0)) for one in found)
            scores = max(float(np.abs(one.logits - then.logits).max(initial=0)) for one in found)
        except LhydraError:
            raise
        except Exception as error:  # arrays of other shapes and types, and whatever graphs of other inputs raise
            why = one_line(str(error), 200)
            raise BundleMismatch(complain(f"{folder}: golden users", why, "users that the bundle answers")) from None
        for thing, off, tolerance in (("vectors", vectors, VECTOR_TOLERANCE), ("scores", scores, SCORE_TOLERANCE)):
            if not off <= tolerance:
                raise BundleMismatch(complain(f"{folder}: golden {thing}", f"{off:.2g} off", f"at most {tolerance:g}"))


def _gathered(rows: I64, *tables: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Of each table the rows."""
    if kernels.compiled is not None:
        return kernels.compiled.gathered(rows, tables)
    return [table.take(rows, 0) for table in tables]


def open_index(folder: Path, manifest: Manifest, catalog: Catalog) -> Index:
    """Returns the index in `folder` at its operating point; what was removed from the catalog is not found by it.

    Args:
        folder: of the bundle.
        manifest: its recipe and operating point.
        catalog: its tracks, and which were removed.

    Returns:
        The index, mapped.

    Raises:
        BundleCorrupt: its files cannot be read.
    """
    try:
        rows = np.load(folder / "index_rows.npy", "r", allow_pickle=False)  # of each position; nothing: they are one
        point = OperatingPoint(**manifest.point)
    except (OSError, ValueError, TypeError) as error:
        raise BundleCorrupt(complain(folder / "index_rows.npy", str(error), "rows and an operating point")) from None
    if len(catalog.removed):
        alive = np.arange(len(catalog), dtype=np.int32)
        alive[catalog.removed] = -1
        rows = alive[rows] if len(rows) else alive
    index = Index.open(folder / "index.faiss", manifest.recipe, point)
    index = index.with_rows(np.asarray(rows)) if len(rows) else index
    return index.refining(catalog.vectors) if point.refine > 1 else index
