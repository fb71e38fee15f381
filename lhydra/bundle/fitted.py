"""Which users a model was fitted on, as keyed hashes of ids: a bundle tells of one person, and has no list of them.

    fitted_users.npz    key: (16,) uint8, of this model alone; hashes: (n,) uint64, sorted, keyed BLAKE2b of the ids

A rebuild adds the users of its own dataset under the key of the model, so that the same content is the same bytes.
Models and bundles of before have no such file: of them it is not known.
"""

import hashlib
import secrets
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lhydra import files
from lhydra.bundle.arrays import NOT_NPZ, write_npz
from lhydra.bundle.manifest import BUNDLE_ID, Manifest
from lhydra.domain import Hashes
from lhydra.errors import BundleCorrupt, BundleError, complain

FILE = "fitted_users.npz"
_KEY_BYTES = 16


def names_in(folder: Path) -> list[str]:
    """Names the file.

    Args:
        folder: of a model or a bundle.

    Returns:
        Its name; none where it is not known who it was fitted on.
    """
    return [FILE] if (folder / FILE).is_file() else []


def save(folder: Path, user_ids: Iterable[str], model: Path | None = None) -> None:
    """Writes the file.

    Args:
        folder: where it is written.
        user_ids: of the users.
        model: the model whose users are added to, under its key; None draws a key.

    Raises:
        BundleCorrupt: the model's file is not what was written.
    """
    key, known = (secrets.token_bytes(_KEY_BYTES), np.empty(0, np.uint64)) if model is None else _read(model)
    hashes = np.union1d(known, _hashes(key, user_ids))
    write_npz(folder / FILE, {"key": np.frombuffer(key, np.uint8), "hashes": hashes.astype("<u8")})


def bundles_of(store: Path, user_id: str) -> tuple[list[str], list[str]]:
    """Looks for a user in the bundles of a store.

    Args:
        store: the store.
        user_id: whose.

    Returns:
        The ids of the bundles that were fitted on the user's plays (and of one in some 10^19 / n others), newest first;
        and of those of which it is not known, be it that they cannot be read.
    """
    fitted, unknown = [], []
    folders = store.iterdir() if store.is_dir() else ()
    for folder in sorted((path for path in folders if BUNDLE_ID.fullmatch(path.name)), reverse=True):
        try:
            info = Manifest.read(folder, folder.name).files.get(FILE)
            if info is None:
                unknown.append(folder.name)
                continue
            files.check(folder, {FILE: info}, BundleCorrupt)
            if holds(folder, user_id):
                fitted.append(folder.name)
        except BundleError:
            unknown.append(folder.name)
    return fitted, unknown


def holds(folder: Path, user_id: str) -> bool:
    """Whether a model or bundle was fitted on the plays of a user.

    Args:
        folder: of the model or bundle, with a file that was checked against what it was sealed with.
        user_id: whose.

    Returns:
        True of each of its users, and of one in some 10^19 / n others.

    Raises:
        BundleCorrupt: the file is not what was written.
    """
    key, hashes = _read(folder)
    (wanted,) = _hashes(key, [user_id])
    at = int(np.searchsorted(hashes, wanted))
    return at < len(hashes) and bool(hashes[at] == wanted)


def _read(folder: Path) -> tuple[bytes, Hashes]:
    path = folder / FILE
    try:
        with np.load(path, allow_pickle=False) as z:
            key, hashes = z["key"], z["hashes"]
    except NOT_NPZ as error:
        raise BundleCorrupt(complain(path, str(error), "hashes of users")) from None
    if (key.dtype, key.shape, hashes.dtype, hashes.ndim) != (np.uint8, (_KEY_BYTES,), np.uint64, 1):
        raise BundleCorrupt(complain(path, f"{key.dtype} {key.shape}, {hashes.dtype}", "a key and hashes"))
    return key.tobytes(), hashes


def _hashes(key: bytes, user_ids: Iterable[str]) -> npt.NDArray[np.uint64]:
    blake2b = hashlib.blake2b
    packed = b"".join(blake2b(user_id.encode(), digest_size=8, key=key).digest() for user_id in user_ids)
    return np.frombuffer(packed, "<u8").astype(np.uint64)
