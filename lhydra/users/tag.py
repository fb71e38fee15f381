"""What stands for a user in logs and messages, which must not name users: a keyed hash of the id.

Who reads the log but not the key can neither tell who it was nor try ids until one fits. The key is that of the
process: a server's workers all get theirs from the supervisor, every other process draws one.
"""

import hashlib
import secrets
from pathlib import Path

from lhydra.errors import ConfigError, complain

MIN_KEY_BYTES, MAX_KEY_BYTES = 16, 4096  # of the file; a longer one is none that somebody made for this
_key = secrets.token_bytes(32)


def user_tag(user_id: str) -> str:
    """Returns the tag of a user: the same wherever the key is the same.

    Args:
        user_id: whose.

    Returns:
        Sixteen hex digits: keyed BLAKE2b of the id, 64 bits.
    """
    return hashlib.blake2b(user_id.encode(), digest_size=8, key=_key).hexdigest()


def use_key(key: bytes) -> None:
    """Has this process hash user ids with a key from now on.

    Args:
        key: 1 to 64 bytes.
    """
    global _key
    _key = key


def read_key(path: Path) -> bytes:
    """Reads the key of logs from a file.

    Args:
        path: a file with a secret; white space around it does not count, so that a line end does not.

    Returns:
        The key, 64 bytes: BLAKE2b of the secret.

    Raises:
        ConfigError: no such file, or a secret that is too short or too long.
    """
    expected = f"a file with {MIN_KEY_BYTES} to {MAX_KEY_BYTES:,} random bytes, as of `openssl rand -hex 32`"
    try:
        with path.open("rb") as file:
            secret = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise ConfigError(complain(f"--log-key {path}", error.strerror or str(error), expected)) from None
    if len(secret) > MAX_KEY_BYTES:
        raise ConfigError(complain(f"--log-key {path}", f"more than {MAX_KEY_BYTES:,} bytes", expected))
    if len(secret := secret.strip()) < MIN_KEY_BYTES:
        raise ConfigError(complain(f"--log-key {path}", f"{len(secret)} bytes", expected))
    return hashlib.blake2b(secret).digest()


def shared_key(path: str | None) -> bytes:
    """Returns the key of a server, for all its workers.

    Args:
        path: of the file with it; None draws one.

    Returns:
        The key.

    Raises:
        ConfigError: the file holds no key.
    """
    return secrets.token_bytes(32) if path is None else read_key(Path(path))
