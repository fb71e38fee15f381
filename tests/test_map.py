"""The map of a catalogue: its projection by hand and by SVD, its file, and what a real server tells of it."""

import importlib.util
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhydra.bundle.bundle import Bundle
from lhydra.bundle.columns import FilterColumns, Words
from lhydra.bundle.strings import StringColumn
from lhydra.bundle.track_map import TrackMap, names_in
from lhydra.data.dataset import Dataset
from lhydra.domain import F32
from lhydra.errors import BundleCorrupt, ConfigError
from lhydra.recommender import Recommender
from lhydra.users.store import open_users
from lhydra_client import Client, InvalidRequest
from lhydra_index_builder import changes, projection
from lhydra_index_builder.build import rebuild
from lhydra_index_builder.config import RebuildSettings
from lhydra_server.app import Listener
from lhydra_server.served import served_of
from lhydra_server.service import RecommenderService
from lhydra_server.track_map import labels

QUICK = RebuildSettings(recall_users=20, gate_users=20, force=True)


def saved(folder: Path, vectors: F32) -> Path:
    np.save(folder / "vectors.npy", vectors.astype(np.float16))
    return folder / "vectors.npy"


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "BLOCK", 7)


@pytest.mark.usefixtures("in_blocks")
def test_the_directions_are_those_of_the_singular_value_decomposition(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    vectors = (rng.normal(size=(200, 6)) * [1, 5, 0.5, 3, 0.1, 0.2] + rng.normal(size=6)).astype(np.float16)
    points = projection.principal_components(saved(tmp_path, vectors.astype(np.float32)))
    exact = vectors.astype(np.float64)
    left, spread, _ = np.linalg.svd(exact - exact.mean(0), full_matrices=False)
    expected = left[:, :2] * spread[:2]
    for axis in range(2):
        signed = expected[:, axis] * np.sign(expected[:, axis] @ points[:, axis])
        assert np.allclose(points[:, axis], signed, atol=1e-3)
    again = projection.principal_components(tmp_path / "vectors.npy")
    assert np.array_equal(points, again)
    mirrored = projection.principal_components(saved(tmp_path, -vectors.astype(np.float32)))
    assert np.allclose(mirrored, -points, atol=1e-4)  # the directions do not depend on which half of space is filled


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (3, 1), (5, 2)])
def test_few_tracks_and_few_numbers_have_a_map_too(tmp_path: Path, shape: tuple[int, int]) -> None:
    vectors = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    points = projection.principal_components(saved(tmp_path, vectors))
    assert points.shape == (shape[0], 2)
    assert projection.in_sixteen_bits(points).shape == (shape[0], 2)


def test_outliers_lie_on_the_edge_and_distances_stay_comparable() -> None:
    points = np.stack([np.arange(1_001.0), np.arange(1_001.0) / 10], 1).astype(np.float32)
    points[0, 0] = -1e9
    found = projection.in_sixteen_bits(points).astype(int)
    assert found.min() == 0
    assert found.max() == projection.LAST
    x, y = found[500] - found[400]
    assert x == pytest.approx(10 * y, abs=10)  # one scale for both axes
    assert found[500, 1] == pytest.approx(projection.LAST / 2, abs=1)
    assert (projection.in_sixteen_bits(np.ones((4, 2), np.float32)) == 32768).all()


def test_umap_is_asked_for_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    saved(tmp_path, vectors)
    asked = []

    class Umap:
        def __init__(self, **settings: object) -> None:
            asked.append(settings)

        def fit_transform(self, given: F32) -> F32:
            return given[:, 2:]

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="umap, which is not installed"):
        projection.check("umap")
    projection.check("pca")
    module = types.ModuleType("umap")
    module.UMAP = Umap  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)
    projection.write(tmp_path, "umap", 5)
    assert asked == [{"n_components": 2, "metric": "cosine", "random_state": 5}]
    assert names_in(tmp_path) == ["map_umap.npy"]
    expected = projection.in_sixteen_bits(vectors.astype(np.float16).astype(np.float32)[:, 2:])
    assert np.array_equal(np.load(tmp_path / "map_umap.npy"), expected)


def test_a_file_that_is_no_map_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "map_pca.npy", np.zeros((3, 2), np.uint16))
    found = TrackMap.open(tmp_path, 3, ["map_pca.npy"])
    assert found is not None
    assert found.projection == "pca"
    assert TrackMap.open(tmp_path, 3, []) is None  # what the manifest does not know is not there
    for wrong in (np.zeros((4, 2), np.uint16), np.zeros((3, 2), np.int16), np.zeros(6, np.uint16)):
        np.save(tmp_path / "map_pca.npy", wrong)
        with pytest.raises(BundleCorrupt, match=r"map_pca\.npy: found "):
            TrackMap.open(tmp_path, 3, ["map_pca.npy"])


@pytest.fixture(scope="module")
def bundle(tiny_store: Path) -> Bundle:
    return Bundle.open(tiny_store)


@pytest.fixture(scope="module")
def client(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    users = open_users(None, tmp_path_factory.mktemp("users"))
    listener = Listener(
        RecommenderService(served_of(bundle, Recommender(bundle)), users, max_k=50), "127.0.0.1:0", max_in_flight=8
    )
    listener.start()
    with Client(f"127.0.0.1:{listener.port}", timeout_s=20) as client:
        yield client
    listener.stop(0)
    users.close()


def test_the_server_tells_the_map_of_the_bundle(bundle: Bundle, client: Client) -> None:
    catalog, plane = bundle.catalog, bundle.map
    assert plane is not None
    vectors = catalog.vectors.astype(np.float64)
    left, spread, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    for axis in range(2):
        assert abs(np.corrcoef(left[:, axis] * spread[axis], plane.places[:, axis].astype(float))[0, 1]) > 0.95
    found = client.track_map()
    rows = [row for row in catalog.popular.tolist() if row not in set(catalog.removed.tolist())]
    assert list(found.track_ids) == catalog.track_ids(np.array(rows))
    assert list(zip(found.x, found.y, strict=True)) == [tuple(place) for place in plane.places[rows].tolist()]
    assert (found.projection, found.bundle_id) == ("pca", bundle.bundle_id)
    last = catalog.track_ids(np.array(rows[-2:]))
    some = client.track_map(3, track_ids=[*last, "nobody's", last[0]])
    assert list(some.track_ids) == [*last, *found.track_ids[:3]]
    assert (some.x[0], some.y[0]) == (found.x[-2], found.y[-2])


def test_each_track_has_the_most_common_of_its_values(bundle: Bundle, client: Client) -> None:
    genre = bundle.spec.genre
    assert genre is not None
    kept = bundle.filters.columns[genre]
    assert isinstance(kept, Words)
    own: dict[int, list[str]] = {}
    for i, value in enumerate(kept.texts.at(np.arange(len(kept.texts)))):
        for row in kept.rows[kept.offsets[i] : kept.offsets[i + 1]].tolist():
            own.setdefault(row, []).append(value)
    counts = Counter(value for values in own.values() for value in values)
    found = client.track_map()
    assert found.column == genre
    row_of = {track: row for row, track in enumerate(bundle.catalog.track_ids(np.arange(len(bundle.catalog))))}
    for track, label in zip(found.track_ids, found.labels, strict=True):
        values = own.get(row_of[track], [])
        assert label == (min(values, key=lambda value: (-counts[value], value.encode())) if values else "")


def test_columns_of_numbers_label_too(bundle: Bundle, client: Client) -> None:
    columns = [name for name, kept in bundle.filters.columns.items() if not isinstance(kept, Words)]
    assert columns
    for name in columns:
        values, value_of = labels(bundle.filters, name)
        numbers = bundle.filters.columns[name].values  # type: ignore[union-attr]
        counts = Counter(f"{number:.10g}" for number in numbers[~np.isnan(numbers)].tolist())
        assert [counts[value] for value in values] == [count for _, count in counts.most_common(255)]
        for at, number in zip(value_of.tolist(), numbers.tolist(), strict=True):
            assert at == 255 or values[at] == f"{number:.10g}"
        assert client.track_map(5, column=name).column == name


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda client: client.track_map(200_001), "max_points"),
        (lambda client: client.track_map(column="no such"), "column"),
        (lambda client: client.track_map(track_ids=["t"] * 1_001), "track_ids"),
        (lambda client: client.track_map(track_ids=["a", "b\n"]), r"track_ids\[1\]"),
    ],
)
def test_limits_are_named_by_their_field(client: Client, call: Callable[[Client], object], field: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"\b{field}: found "):
        call(client)


def test_a_bundle_without_a_map_says_so(bundle: Bundle) -> None:
    from lhydra_protos.v1 import recommender_pb2 as pb
    from lhydra_server.catalogue import Catalogue

    old = Catalogue(bundle.catalog, bundle.filters, bundle.spec.genre)
    assert old.map(pb.GetMapRequest(), lambda: None) == pb.GetMapResponse()


def test_added_and_removed_tracks_are_on_the_map_of_the_changed_bundle(
    tiny_model: Path, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    first = rebuild(tiny_model, tiny_dataset, store, QUICK)
    sealed = first.manifest.files["map_pca.npy"]
    assert sealed["bytes"] - 4 * first.manifest.n_tracks == 128  # the header: 4 bytes a track
    again = rebuild(tiny_model, tiny_dataset, tmp_path / "other", QUICK)
    assert again.manifest.files["map_pca.npy"] == sealed
    before = Bundle.open(store)
    gone = before.catalog.track_ids(np.array([4]))[0]
    changes.remove([gone], store, QUICK)
    removed = Bundle.open(store)
    assert removed.map is not None
    assert before.map is not None
    assert np.array_equal(removed.map.places, before.map.places)
    (tmp_path / "new.csv").write_text("track_id,title\nbrand new,One\n")
    changes.add(tmp_path / "new.csv", store, QUICK)
    added = Bundle.open(store)
    assert added.map is not None
    assert len(added.map.places) == len(before.catalog) + 1
    np.save(tmp_path / "vectors.npy", np.asarray(added.catalog.vectors))
    expected = projection.in_sixteen_bits(projection.principal_components(tmp_path / "vectors.npy"))
    assert np.array_equal(added.map.places, expected)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sets(st.sampled_from([f"g{i}" for i in range(400)]), max_size=4), min_size=1, max_size=30), st.data()
)
def test_of_several_values_the_most_common_is_told(own: list[set[str]], data: st.DataObject) -> None:
    many = data.draw(st.booleans())  # more values than can be told
    own = own + [{f"g{i}"} for i in range(400)] * many
    counts = Counter(value for values in own for value in values)
    texts = sorted(counts, key=str.encode)
    rows = [[row for row, values in enumerate(own) if value in values] for value in texts]
    offsets = np.cumsum([0, *map(len, rows)])
    flat = np.array([row for some in rows for row in some], np.int32)
    kept = Words(StringColumn.of(texts), offsets, flat)
    values, value_of = labels(FilterColumns(len(own), {"genre": "list"}, {"genre": kept}), "genre")
    order = sorted(texts, key=lambda value: (-counts[value], value.encode()))
    assert values == order[:255]
    for at, its in zip(value_of.tolist(), own, strict=True):
        told = [values.index(value) for value in its if value in values]
        assert at == (min(told) if told else 255)
