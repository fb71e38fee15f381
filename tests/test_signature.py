"""Signed bundles: what the key signed passes, and nothing else does, for server, verify and rollback alike."""

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from lhydra.bundle import signature
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.manifest import CHECKSUM, current_bundle_id
from lhydra.cli import main
from lhydra.data.dataset import Dataset
from lhydra.errors import BundleError, BundleRefused, ConfigError, LhydraError
from lhydra_index_builder import changes
from lhydra_index_builder.build import rebuild
from lhydra_index_builder.config import RebuildSettings
from tests.harness import free_port, until
from tests.test_bundle import put, reseal
from tests.test_supervisor import publish, running

CONFIG = RebuildSettings(recall_users=20, gate_users=20, force=True, depth=150, recipe="flat")
PRIVATE = (pem.Encoding.PEM, pem.PrivateFormat.PKCS8)
PUBLIC = (pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)


def write_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A private key and its public one."""
    key = ed25519.Ed25519PrivateKey.generate()
    (folder / name).write_bytes(key.private_bytes(*PRIVATE, pem.NoEncryption()))
    (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(*PUBLIC))
    return folder / name, folder / f"{name}.pub"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, "key")


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_store, tmp_path / "store", ignore=shutil.ignore_patterns("users.lmdb", ".verified*"))
    return tmp_path / "store"


def current(store: Path) -> Path:
    return store / current_bundle_id(store)


def refused(store: Path, public: Path) -> str:
    with pytest.raises(BundleRefused) as caught:
        Bundle.open(store, signed_by=signature.public_key(public))
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_only_the_manifest_that_the_key_signed_passes(store: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    folder, required = current(store), signature.public_key(public)
    assert "found no signature" in refused(store, public)
    assert main(["index", "sign", "--store", str(store), "--sign-key", str(private)]) == 0
    assert Bundle.open(store, signed_by=required).bundle_id == folder.name
    assert Bundle.open(store).bundle_id == folder.name  # who asks for no signature needs none
    made = (folder / signature.FILE).read_bytes()
    for bad in (b"", made[:-1], made + b"x", bytes(64), bytes([made[0] ^ 1]) + made[1:], made.hex().encode()):
        (folder / signature.FILE).write_bytes(bad)
        assert "found a signature by another key" in refused(store, public)
    (folder / signature.FILE).write_bytes(made)
    other, other_public = write_keys(tmp_path, "other")
    assert "found a signature by another key" in refused(store, other_public)
    signature.sign(folder, other)
    assert "found a signature by another key" in refused(store, public)
    (folder / signature.FILE).write_bytes(made)
    text = (folder / "manifest.json").read_text()
    put(folder, text + " ")  # the same document, and its hash is right: other bytes all the same
    assert Bundle.open(store).bundle_id == folder.name
    assert "or of another manifest" in refused(store, public)
    put(folder, text)
    assert Bundle.open(store, signed_by=required).bundle_id == folder.name
    (folder / CHECKSUM).unlink()
    assert Bundle.open(store, signed_by=required).bundle_id == folder.name


def test_files_changed_and_sealed_anew_are_refused(store: Path, keys: tuple[Path, Path]) -> None:
    """What only a signature can tell: everything in the bundle agrees with everything else."""
    private, public = keys
    folder = current(store)
    signature.sign(folder, private)
    share = np.load(folder / "share.npy")
    (folder / "share.npy").unlink()
    np.save(folder / "share.npy", share[::-1])
    with pytest.raises(BundleError, match=r"share\.npy"):
        Bundle.open(store, signed_by=signature.public_key(public))
    reseal(folder)
    assert Bundle.open(store).bundle_id == folder.name
    assert "or of another manifest" in refused(store, public)


def test_a_signature_of_another_bundle_is_refused(store: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    folder = current(store)
    (other,) = (path for path in store.iterdir() if (path / "manifest.json").is_file() and path != folder)
    signature.sign(other, private)
    shutil.copy(other / signature.FILE, folder)
    assert "or of another manifest" in refused(store, public)


def encrypted(key: ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(*PRIVATE, pem.BestAvailableEncryption(b"secret"))


KEYS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"ssh-ed25519 AAAA",
    "rsa": lambda: rsa.generate_private_key(65537, 2048).private_bytes(*PRIVATE, pem.NoEncryption()),
    "rsa.pub": lambda: rsa.generate_private_key(65537, 2048).public_key().public_bytes(*PUBLIC),
    "encrypted": lambda: encrypted(ed25519.Ed25519PrivateKey.generate()),
}


@pytest.mark.parametrize("kind", [*KEYS, "missing", "swapped"])
def test_what_is_no_key_is_one_line(kind: str, keys: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "bad"
    if kind in KEYS:
        path.write_bytes(KEYS[kind]())
    private, public = reversed(keys) if kind == "swapped" else (path, path)
    for read, file in ((signature.private_key, private), (signature.public_key, public)):
        with pytest.raises(ConfigError, match="Ed25519 key, PEM") as caught:
            read(file)
        assert str(caught.value).startswith(f"{file}: found ")
        assert str(caught.value).isprintable()


def test_commands_obey(
    store: Path, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = map(str, keys)
    folder, at = current(store), ["--store", str(store)]
    (other,) = (path.name for path in store.iterdir() if (path / "manifest.json").is_file() and path != folder)
    asking = ["--require-signature", public]
    assert main(["index", "verify", *at, *asking]) != 0
    assert main(["index", "rollback", other, *at, *asking]) != 0
    assert current(store) == folder
    for bundle_id in (folder.name, other):
        assert main(["index", "sign", bundle_id, *at, "--sign-key", private]) == 0
    assert main(["index", "verify", *at, *asking]) == 0
    capsys.readouterr()
    assert main(["index", "list", *at]) == 0
    assert capsys.readouterr().out.count("signed") == 2
    assert main(["index", "rollback", other, *at, *asking]) == 0
    assert current(store).name == other
    capsys.readouterr()
    whole = (store / other / "share.npy").read_bytes()
    (store / other / "share.npy").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (store / other / signature.FILE).unlink()
    assert main(["index", "sign", *at, "--sign-key", private]) != 0  # nobody signs what is damaged
    assert not (store / other / signature.FILE).exists()
    for words in (["sign", *at, "--sign-key", str(tmp_path / "none")], ["verify", *at, "--require-signature", private]):
        assert main(["index", *words]) != 0
    assert capsys.readouterr().err.count("\n") == 3


def test_a_build_signs_what_it_publishes(
    store: Path, keys: tuple[Path, Path], tiny_model: Path, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    private, public = keys
    signing = RebuildSettings(**vars(CONFIG) | {"sign_key": private})
    required = signature.public_key(public)
    rebuild(tiny_model, tiny_dataset, store, signing)
    signed = Bundle.open(store, signed_by=required)
    changes.remove(tiny_dataset.track_ids[:1], store, CONFIG)
    assert "found no signature" in refused(store, public)  # of the bundle before
    changes.remove(tiny_dataset.track_ids[1:2], store, signing)
    assert Bundle.open(store, signed_by=required).bundle_id > signed.bundle_id
    before = current_bundle_id(store)
    words = ["index", "rebuild", "--model", str(tiny_model), "--data", str(tiny_dataset.path), "--store", str(store)]
    assert main([*words, "--sign-key", str(tmp_path / "none")]) != 0  # before any work
    assert current_bundle_id(store) == before


def test_openssl_makes_keys_and_checks_signatures(store: Path, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("OPENSSL ABSENT: keys and signatures are not tried against it")
    private, public = tmp_path / "key", tmp_path / "key.pub"
    subprocess.run([openssl, "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run([openssl, "pkey", "-in", private, "-pubout", "-out", public], check=True)
    folder = current(store)
    signature.sign(folder, private)
    assert Bundle.open(store, signed_by=signature.public_key(public)).bundle_id == folder.name
    words: list[str | Path] = [openssl, "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin"]
    subprocess.run([*words, "-in", folder / "manifest.json", "-sigfile", folder / signature.FILE], check=True)


# -- a real server ----------------------------------------------------------------------------------------


def serve(store: Path, *more: str) -> list[str | Path]:
    return ["-m", "lhydra.cli", "serve", store, "--port", "0", "--workers", "1", "--connection-age-s", "0.5", *more]


def copied(store: Path, bundle_id: str) -> Path:
    """The current bundle again, under another id, sealed as Lhydra would."""
    folder = store / bundle_id
    shutil.copytree(current(store), folder, ignore=shutil.ignore_patterns(signature.FILE))
    document = json.loads((folder / "manifest.json").read_text()) | {"bundle_id": bundle_id}
    put(folder, json.dumps(document))
    return folder


def swaps_refused(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
        lines = [line.rpartition(" ") for line in reply.read().decode().splitlines()]
    return next(float(number) for name, _, number in lines if name == "lhydra_swap_failures_total")


def test_a_server_serves_nothing_that_is_not_signed(store: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    with running(serve(store, "--require-signature", str(public)), tmp_path / "log") as server:
        assert server.process.wait(60) == 1
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert "manifest.sig: found no signature" in line
    signed = current(store)
    signature.sign(signed, private)
    port = free_port()
    words = serve(store, "--require-signature", str(public), "--metrics-port", str(port))
    with running(words, tmp_path / "log") as server:
        unsigned = copied(store, "20990101T000000-00000001")
        publish(store, unsigned.name)
        status = until(lambda: (status := server.status()).swap_error and status)
        assert (status.bundle_id, status.current_bundle_id) == (signed.name, unsigned.name)
        assert "manifest.sig: found no signature" in status.swap_error
        assert swaps_refused(port) >= 1
        signature.sign(unsigned, private)  # it is tried again by itself
        until(lambda: server.status().bundle_id == unsigned.name)


def test_a_server_goes_on_while_hostile_bundles_are_published(store: Path, tmp_path: Path) -> None:
    good, port = current(store), free_port()
    nan, link, cut, edited, renamed = (copied(store, f"20990101T000000-0000000{i}") for i in range(5))
    vectors = np.load(nan / "vectors.npy")
    vectors[7, 0] = np.nan
    np.save(nan / "vectors.npy", vectors)
    reseal(nan)
    shutil.move(link / "index.faiss", tmp_path / "index.faiss")
    (link / "index.faiss").symlink_to(tmp_path / "index.faiss")
    (cut / "dense.npy").write_bytes((cut / "dense.npy").read_bytes()[:-1])
    text = (edited / "manifest.json").read_text()
    (edited / "manifest.json").write_text(text.replace('"refused"', '"passed"') + " ")
    put(renamed, json.dumps(json.loads(text) | {"bundle_id": good.name}))
    hostile = {nan: "not finite", link: "symbolic link", cut: "dense.npy", edited: "as it was sealed"}
    hostile[renamed] = f"found bundle {good.name}"
    with running(serve(store, "--metrics-port", str(port)), tmp_path / "log") as server:
        for n, (bundle, told) in enumerate(hostile.items()):
            publish(store, bundle.name)
            until(lambda told=told: told in server.status().swap_error)  # type: ignore[misc]
            assert server.status().bundle_id == good.name
            assert swaps_refused(port) >= n + 1
        publish(store, good.name)
        until(lambda: not server.status().swap_error)
    errors = [line["message"] for line in server.lines() if line["level"] == "error"]
    assert len([line for line in errors if line.startswith("swap failed: ")]) >= 5


def test_the_package_that_checks_is_named_where_it_is_missing(
    keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("cryptography.hazmat.primitives.asymmetric.ed25519", "cryptography"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    for read, file in zip((signature.private_key, signature.public_key), keys, strict=True):
        with pytest.raises(LhydraError, match=r"lhydra\[sign\]"):
            read(file)
