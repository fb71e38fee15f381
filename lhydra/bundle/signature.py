"""Signed manifests: an Ed25519 signature of the exact bytes of manifest.json, which names the hash of every other file.

    manifest.sig    the 64 bytes of the signature, as `openssl pkeyutl -sign -rawin` would write them

Keys are PEM files, as `openssl genpkey -algorithm ed25519` makes them. Who can write to a store but has no private key
can at most put back another bundle that was signed; who can write while a bundle is being opened is not kept out.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from lhydra import files
from lhydra.errors import BundleRefused, ConfigError, MissingExtra, complain

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FILE = "manifest.sig"
_BYTES = 64


def public_key(path: Path) -> bytes:
    """Reads a public key.

    Args:
        path: a PEM file, as of `openssl pkey -pubout`.

    Returns:
        The key, 32 bytes.

    Raises:
        ConfigError: no such file, or no public Ed25519 key in it.
        MissingExtra: the package that checks signatures is not installed.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ModuleNotFoundError:
        raise MissingExtra("sign", "cryptography") from None

    expected = "a public Ed25519 key, PEM, as of `openssl pkey -in KEY -pubout`"
    text = _read(path, expected)
    try:
        key = load_pem_public_key(text)
    except Exception:  # a library has an exception for every kind of file that is none
        raise ConfigError(complain(path, "something else", expected)) from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(complain(path, "another kind of key", expected))
    return key.public_bytes_raw()


def private_key(path: Path) -> "Ed25519PrivateKey":
    """Reads a private key.

    Args:
        path: a PEM file, not encrypted, as of `openssl genpkey`.

    Returns:
        The key.

    Raises:
        ConfigError: no such file, or no private Ed25519 key in it that needs no password.
        MissingExtra: the package that signs is not installed.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ModuleNotFoundError:
        raise MissingExtra("sign", "cryptography") from None

    expected = "a private Ed25519 key, PEM without a password, as of `openssl genpkey -algorithm ed25519`"
    text = _read(path, expected)
    try:
        key = load_pem_private_key(text, None)
    except Exception:
        raise ConfigError(complain(path, "something else", expected)) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(complain(path, "another kind of key", expected))
    return key


def sign(folder: Path, key: Path) -> None:
    """Signs the manifest of a bundle as it lies there.

    Args:
        folder: of the bundle.
        key: the file of the private key.

    Raises:
        ConfigError: it holds none.
    """
    made = private_key(key).sign((folder / "manifest.json").read_bytes())
    with files.replacing_file(folder / FILE) as new:
        new.write_bytes(made)


def check(folder: Path, manifest: bytes, key: bytes) -> None:
    """Checks that a manifest was signed with a key.

    Args:
        folder: of the bundle.
        manifest: the bytes of its manifest.json.
        key: the public key, 32 bytes.

    Raises:
        BundleRefused: there is no signature, or it is not of these bytes by this key.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    expected = "one by the key of --require-signature: `lhydra index sign`"
    try:
        with (folder / FILE).open("rb") as file:
            signature = file.read(_BYTES + 1)
    except OSError:
        raise BundleRefused(complain(folder / FILE, "no signature", expected)) from None
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, manifest)
    except InvalidSignature:
        raise BundleRefused(
            complain(folder / FILE, "a signature by another key, or of another manifest", expected)
        ) from None


def _read(path: Path, expected: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(complain(path, error.strerror or str(error), expected)) from None
