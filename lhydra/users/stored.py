"""All that a user store holds of one person, as it lies there: for whoever may see it, and for deleting it exactly."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lhydra.errors import UserStoreError
from lhydra.users.packed import unpack, with_chunks
from lhydra.users.record import UserRecord


@dataclass(frozen=True, slots=True)
class StoredUser:
    """One user's values. `record.state.heard` holds every heard track, also those that lie in chunks.

    format: of the record as it was written. n_values, n_bytes: how many values there are, and their length together.
    """

    record: UserRecord
    format: int
    n_values: int
    n_bytes: int


def stored_of(packed: bytes, chunks: Sequence[bytes | None], user_id: str) -> StoredUser:
    """Returns what the values of one user say.

    Args:
        packed: the record.
        chunks: of its heard tracks, all of them in order; none where they lie in the record.
        user_id: whose, for the error.

    Returns:
        The user.

    Raises:
        UserStoreError: a value is missing, or not what was written; names the user by hash.
    """
    record = unpack(packed, user_id)
    if len(record.lows):
        record = replace(record, state=with_chunks(record.state, chunks, user_id))
    return StoredUser(record, packed[0], 1 + len(chunks), len(packed) + sum(len(chunk or b"") for chunk in chunks))


def lows_of(packed: bytes, user_id: str) -> list[int] | None:
    """Returns where the chunks of a user's heard tracks begin.

    Args:
        packed: the record.
        user_id: whose.

    Returns:
        The beginnings; None where the record is damaged, so that only looking for the chunks' keys can tell.
    """
    try:
        lows: list[int] = unpack(packed, user_id).lows.tolist()
    except (UserStoreError, ValueError):
        return None
    return lows
