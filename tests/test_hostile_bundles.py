"""Whatever is done to a published bundle, it is refused in one line before it answers, and nothing in it runs."""

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from lhydra import files
from lhydra.bundle import co_listening_files, sequence_files, title_words
from lhydra.bundle.arrays import is_finite, write_npz
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.catalog import ARRAYS, TEXT, Catalog, check_ids, check_numbers
from lhydra.bundle.history_vectors import TOO_LARGE
from lhydra.bundle.manifest import CHECKSUM, Manifest, current_bundle_id
from lhydra.bundle.networks import _Graph
from lhydra.bundle.strings import StringColumn
from lhydra.bundle.title_words import TitleWords
from lhydra.errors import BundleCorrupt, BundleError, LhydraError, ModelError
from lhydra.features.co_listening import CoListening
from lhydra.features.sequences import NO_SEQUENCES, Sequences
from tests.test_bundle import put, reseal

FLIPS = 200
NOT_SEALED = ("manifest.sig",)


@pytest.fixture
def copy(tiny_store: Path, tmp_path: Path) -> Path:
    """A store of its own with the two bundles of the tiny store; gives the folder of the current one."""
    shutil.copytree(tiny_store, tmp_path / "store", ignore=shutil.ignore_patterns("users.lmdb", ".verified*"))
    return tmp_path / "store" / current_bundle_id(tiny_store)


def refused(folder: Path) -> str:
    """The one line by which a bundle is refused."""
    with pytest.raises(LhydraError) as caught:
        Bundle.open(folder.parent, folder.name)
    line = str(caught.value)
    assert line.isprintable()
    return line


def write(path: Path, content: bytes) -> None:
    """Puts another file in place: bundles share files by hard links."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def test_one_flipped_bit_anywhere_is_refused(copy: Path) -> None:
    names = sorted(path.name for path in copy.iterdir() if path.name not in NOT_SEALED)
    assert {"manifest.json", CHECKSUM} < set(names)
    sizes = np.array([(copy / name).stat().st_size for name in names])
    rng = np.random.default_rng(20_261_129)
    ends = np.cumsum(sizes)
    anywhere = rng.integers(0, 8 * ends[-1], FLIPS)  # of all bits
    places = [(int(np.searchsorted(ends, at // 8, "right")), int(at)) for at in anywhere]
    places = [(file, at - 8 * int(ends[file] - sizes[file])) for file, at in places]
    places += [(file, int(rng.integers(0, 8 * sizes[file]))) for file in range(len(names))]  # small files too
    for file, at in places:
        name, whole = names[file], (copy / names[file]).read_bytes()
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        write(copy / name, bytes(flipped))
        assert "manifest" in (line := refused(copy)) or name in line
        write(copy / name, whole)
    Bundle.open(copy.parent)


def test_files_of_another_bundle_are_refused(copy: Path) -> None:
    (other,) = (
        path for path in copy.parent.iterdir() if path.is_dir() and path != copy and not path.name.startswith(".")
    )
    swapped = 0
    for name in sorted(path.name for path in copy.iterdir()):
        ours, theirs = (copy / name).read_bytes(), (other / name).read_bytes()
        if ours != theirs:
            write(copy / name, theirs)
            refused(copy)
            write(copy / name, ours)
            swapped += 1
    assert swapped >= 3  # the manifest, its hash, golden users
    Bundle.open(copy.parent)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_manifest_with_any_value_changed_is_refused(tiny_store: Path, data: st.DataObject) -> None:
    """Also what no check of the parts could tell: the verdict of the gate, what was measured, the time."""
    folder = tiny_store / current_bundle_id(tiny_store)
    document = json.loads((folder / "manifest.json").read_text())
    key = data.draw(st.sampled_from(sorted(document)))
    value: object = data.draw(st.none() | st.integers(0, 9) | st.text(max_size=5) | st.just({}) | st.just([]))
    text = json.dumps(document | {key: value}, indent=2, sort_keys=True) + "\n"
    if document[key] == value:
        return
    with pytest.raises(BundleError, match="as it was sealed"):
        Manifest.read(beside(folder, text))


def beside(folder: Path, text: str) -> Path:
    """A folder with that manifest, and the hash of the old one."""
    other = folder.parent.parent / f"edited-{os.getpid()}"
    other.mkdir(exist_ok=True)
    (other / "manifest.json").write_text(text)
    shutil.copy(folder / CHECKSUM, other)
    return other


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b.npy", "..", ".", "", "a\\b", "a\nb", ".hidden", "~x"]
)
def test_a_manifest_names_nothing_outside_its_folder(copy: Path, name: str) -> None:
    document = json.loads((copy / "manifest.json").read_text())
    document["files"][name] = {"sha256": "0" * 64, "bytes": 0}
    put(copy, json.dumps(document))
    assert "expected names of files in the folder of the bundle" in refused(copy)


@pytest.mark.parametrize("name", ["vectors.npy", "user_tower.onnx", "index.faiss", "manifest.json"])
def test_a_link_is_no_file_of_a_bundle(copy: Path, name: str, tmp_path: Path) -> None:
    shutil.copy(copy / name, tmp_path / "outside")
    (copy / name).unlink()
    (copy / name).symlink_to(tmp_path / "outside")
    assert "found a symbolic link" in refused(copy)
    for other in ("fifo", "folder"):
        (copy / name).unlink()
        if other == "folder":
            (copy / name).mkdir()
            break
        os.mkfifo(copy / name)
        if name != "manifest.json":  # reading that one would wait for a writer
            assert "no such file" in refused(copy)
    refused(copy)


@pytest.mark.parametrize("name", [array.stem for array in ARRAYS if array.ascending])
def test_numbers_that_lookups_take_for_ordered_are_refused_out_of_order(copy: Path, name: str) -> None:
    path = copy / f"{name}.npy"
    numbers = np.load(path) if name != "removed" else np.array([5, 7], np.int64)
    numbers[[0, -1]] = numbers[[-1, 0]]
    path.unlink()
    np.save(path, numbers)
    reseal(copy)
    assert f"{path.name}: found numbers out of order" in refused(copy)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_wherever_they_stand(copy: Path, bad: float) -> None:
    rng = np.random.default_rng(5)
    for array in ARRAYS:
        if not array.dtype.startswith("float"):
            continue
        path = copy / f"{array.stem}.npy"
        whole = np.load(path)
        if not whole.size:
            continue
        broken = whole.copy()
        broken.flat[rng.integers(whole.size)] = bad
        path.unlink()
        np.save(path, broken)
        reseal(copy)
        assert f"{path.name}: found a number that is not finite" in refused(copy)
        path.unlink()
        np.save(path, whole)
    path = copy / "history.npy"
    whole = np.load(path)
    broken = whole.copy()
    broken.view(np.uint8)[rng.integers(len(whole)), -1] = TOO_LARGE
    write(path, b"")
    np.save(path, broken)
    reseal(copy)
    assert "history.npy: found a number that is not finite" in refused(copy)
    np.save(path, whole)
    reseal(copy)
    Bundle.open(copy.parent)


def damaged(array: np.ndarray) -> Iterator[np.ndarray]:
    """The array in other types and shapes, cut short, and with values that no list or row has."""
    yield from (array[:0], array[:-1], array[:, None], array[0], np.stack([array, array], 1))
    yield from (array.astype(dtype) for dtype in ("int16", "float64", "<U3", "complex64"))
    values = {"i": (-5, 99, 2**31 - 1), "f": (np.nan, np.inf, -np.inf), "u": ()}[array.dtype.kind]
    for at, value in itertools.product((0, len(array) // 2, -1), values):
        broken = array.copy()
        broken[at] = value
        yield broken


def test_lists_of_rows_are_refused_however_they_are_damaged(tmp_path: Path) -> None:
    """Hashes cannot tell of files that a faulty writer sealed: such a bundle answered wrongly, or no request at all."""
    numbers = np.arange(1, 13)
    of_listening = CoListening.of((numbers % 4).astype(np.int32).reshape(4, 3), np.ones((4, 3), np.float16), 0.3)
    rows, halves = (numbers[:8] % 4).astype(np.int32), np.ones(8, np.float16)
    shares = np.full(len(NO_SEQUENCES.shares), 0.2, np.float32)
    of_time = Sequences(np.arange(9, dtype=np.int32), rows, halves, halves[:4], shares)
    texts = StringColumn.of(["one two", "two three", "three", "four"])
    co_listening_files.save(tmp_path, of_listening)
    sequence_files.save(tmp_path, of_time)
    TitleWords.of(texts, texts).save(tmp_path)
    for names, opened in (
        (co_listening_files.FILES, co_listening_files.open_co_listening),
        (sequence_files.FILES, sequence_files.open_sequences),
        (title_words.FILES, lambda folder, sealed: TitleWords.open(folder, 4, sealed)),
    ):
        for path in (tmp_path / name for name in names):
            whole = np.load(path)
            for broken in damaged(whole):
                if broken.tobytes() == whole.tobytes() and broken.dtype == whole.dtype and broken.ndim == 1:
                    continue
                np.save(path, broken)
                with pytest.raises(BundleCorrupt, match="_"):
                    opened(tmp_path, names)
            np.save(path, whole)
        assert opened(tmp_path, names)
        assert not opened(tmp_path, [])  # what merely lies there is not read
        for name in names:
            with pytest.raises(BundleCorrupt, match=rf"{name}: found a file that is not sealed"):
                opened(tmp_path, {*names} - {name})


def misshapen(array: np.ndarray) -> Iterator[np.ndarray]:
    """The array in other shapes and in the other order."""
    yield from (array[..., None], array.reshape(-1)[:1].reshape(()), array.reshape(*array.shape[:-1], 1, -1))
    if array.ndim == 2:
        yield from (np.asfortranarray(array), array.reshape(-1), array.T)


def test_arrays_of_the_catalog_are_refused_in_other_shapes_and_with_rows_of_no_track(copy: Path) -> None:
    """Compiled loops read where rows and shapes point; a request must not be the first to find that they do not fit."""
    catalog = Catalog.open(copy)
    sizes = [size for _, size in Bundle.open(copy.parent).spec.track_ids]

    def refused_with(path: Path, broken: np.ndarray) -> None:
        write(path, b"")
        np.save(path, broken)
        with pytest.raises(BundleCorrupt, match=r"\.npy: found"):  # or of the other that it does not fit
            opened_catalog(copy, sizes)

    for array in ARRAYS:
        path = copy / f"{array.stem}.npy"
        if array.dtype == TEXT or not (whole := np.load(path)).size:
            continue
        values = getattr(catalog, array.rows_of, ())
        bad = (array.lowest - 1, len(values), -(2**31)) if array.rows_of else (-1, 2**31 - 1) * (array.name == "ids")
        for broken in misshapen(whole):
            refused_with(path, broken)
        for place, value in itertools.product((0, whole.size // 2, -1), bad):
            broken = whole.copy()
            broken.flat[place] = value
            refused_with(path, broken)
        if array.name in ("neighbour_weights", "hash_starts", "chart_rows", "chart_share"):
            for broken in (whole[:-1], whole[:0], np.concatenate([whole, whole[:1]])):
                refused_with(path, broken)
        if array.name in ("history", "neighbours", "neighbour_weights", "chart_share"):
            for broken in (whole[:, :-1], whole[:, :0], np.concatenate([whole, whole[:, :1]], 1)):
                refused_with(path, broken)
        write(path, b"")
        np.save(path, whole)
    opened_catalog(copy, sizes)


@pytest.mark.parametrize("name", ["names", "title_texts", "charts", "replies"])
def test_texts_whose_offsets_do_not_cut_them_are_refused(copy: Path, name: str) -> None:
    path = copy / f"{name}_offsets.npy"
    whole = np.load(path)
    for dtype in (np.int32, np.int64):
        most = np.iinfo(dtype).max
        for place, value in ((-1, whole[-1] + 1), (1, -1), (0, most // 2 + 1), (len(whole) // 2, most)):
            broken = whole.astype(dtype)
            broken[place] = value
            write(path, b"")
            np.save(path, broken)
            reseal(copy)
            assert path.name in refused(copy)
    np.save(path, whole.astype(np.uint32))
    reseal(copy)
    assert f"{path.name}: found uint32" in refused(copy)


@pytest.mark.parametrize(
    "name", ["dense", "ids", "entry", "offsets", "history", "counts", "times", "vectors", "rows", "logits"]
)
def test_golden_users_of_other_shapes_are_refused(copy: Path, name: str) -> None:
    """Graphs and loops raise what they like at them; a server that starts said so with a traceback."""
    path = copy / "golden.npz"
    whole = dict(np.load(path))
    beyond = [np.where(np.arange(len(whole[name])) == 1, 10**6, whole[name])] if name in ("history", "rows") else []
    for broken in (whole[name][:-1], whole[name][:0], whole[name].reshape(-1)[0], *beyond):
        write(path, b"")
        write_npz(path, whole | {name: broken})
        reseal(copy)
        assert "golden" in refused(copy)


def opened_catalog(folder: Path, sizes: list[int]) -> None:
    """Does what opening a bundle does with its catalog."""
    check_numbers(folder, Catalog.open(folder))
    check_ids(folder, sizes)


@given(st.lists(st.floats(width=16), max_size=9), st.sampled_from(["float16", "float32"]))
def test_finite_is_what_numpy_calls_so(numbers: list[float], dtype: str) -> None:
    array = np.array(numbers, dtype)
    assert is_finite(array) == bool(np.isfinite(array).all())


def external(location: str, count: int) -> bytes:
    """A graph whose weights lie in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[count], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("length", str(4 * count))):
        tensor.external_data.add(key=key, value=value)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [count]) for name in ("x", "logit")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["logit"])], "g", ends[:1], ends[1:], [tensor])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


@pytest.mark.parametrize("where", ["in.bin", "../out.bin", "absolute", "link.bin"])
def test_a_graph_reads_no_other_file(copy: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one in its folder, which the manifest need not name."""
    for place in (copy / "in.bin", copy.parent / "out.bin"):
        place.write_bytes(np.ones(4, "f4").tobytes())
    (copy / "link.bin").symlink_to(copy.parent / "out.bin")
    monkeypatch.chdir(copy)  # to which paths of a graph without a place of its own might be relative
    write(copy / "head.onnx", external(str(copy / "in.bin") if where == "absolute" else where, 4))
    with pytest.raises(ModelError, match="expected an ONNX graph"):
        _Graph(copy / "head.onnx", ("logit",), 1)
    reseal(copy)
    assert "head.onnx" in refused(copy)


PICKLE = b"cposix\nsystem\n(S'touch owned'\ntR."


@pytest.mark.parametrize(
    "name", ["vectors.npy", "golden.npz", "index.faiss", "head.onnx", "index_rows.npy", "features.json"]
)
def test_a_pickle_in_place_of_a_file_runs_nothing(copy: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    objects = np.array([None, {}], dtype=object)
    for content in (PICKLE, b"not what it should be" * 20):
        write(copy / name, content)
        assert name in refused(copy)  # by its hash
        reseal(copy)
        refused(copy)
    if name.endswith(".npy"):
        (copy / name).unlink()
        np.save(copy / name, objects, allow_pickle=True)
        reseal(copy)
        assert "allow_pickle=False" in (line := refused(copy)) or "Python objects" in line
    assert not (copy.parent / "owned").exists()


def test_bundles_of_before_have_no_hash_of_the_manifest_and_open(copy: Path) -> None:
    (copy / CHECKSUM).unlink()
    assert Bundle.open(copy.parent).bundle_id == copy.name


def test_hashes_of_files_are_looked_at_before_any_file_is_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("a file was parsed before all were hashed")

    for path in (
        "lhydra.bundle.bundle.Catalog.open",
        "lhydra.bundle.bundle.Index.open",
        "lhydra.bundle.bundle.UserTower",
    ):
        monkeypatch.setattr(path, opened)
    for name in ("index.faiss", "golden.npz"):
        whole = (copy / name).read_bytes()
        write(copy / name, whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(BundleCorrupt, match=name):
            Bundle.open(copy.parent)
        write(copy / name, whole)
    assert files.sha256(copy / "manifest.json")
