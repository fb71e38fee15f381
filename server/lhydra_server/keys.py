"""The keys that all workers of a server share: read once, when it starts."""

from pathlib import Path
from typing import TypedDict

from lhydra.bundle.signature import public_key
from lhydra.users.tag import shared_key
from lhydra_server.config import ServeSettings


class Keys(TypedDict):
    """The keys, in hex, as `WorkerSettings` names them."""

    log_key: str
    signed_by: str


def keys_of(settings: ServeSettings) -> Keys:
    """Reads the keys that the settings name, and draws that of the log where they name none.

    Args:
        settings: of the command.

    Returns:
        The keys.

    Raises:
        ConfigError: a file holds none.
        MissingExtra: signatures are asked for, without the package that checks them.
    """
    required = settings.require_signature
    return Keys(
        log_key=shared_key(settings.log_key).hex(),
        signed_by="" if required is None else public_key(Path(required)).hex(),
    )
