"""Bearer tokens: the file that names them, with which rights and how often each may call, and their check."""

import hashlib
import hmac
import math
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from lhydra.errors import ConfigError, Overloaded, Unauthenticated, complain
from lhydra.numerals import real_number

COPY = "tokens"  # of the file, as `WatchedFiles` makes it
RIGHTS = ("read", "write", "admin")
MAX_RATE = 1_000_000
_TOKEN = re.compile(r"[!-~]{1,512}")  # what gRPC takes in metadata, without spaces
_NAME = re.compile(r"[A-Za-z0-9._:@/-]{1,64}")
_LINE = "token rights name [requests/s]"
_KEY = os.urandom(32)  # of this process: nobody outside can tell which digest a token has


@dataclass(frozen=True)
class Token:
    """A line of the file, without the token itself. A rate of infinity is no limit."""

    digest: bytes
    name: str
    rights: frozenset[str]
    rate: float = math.inf

    def may(self, right: str) -> bool:
        """Tells whether the token has a right; `admin` has all of them.

        Args:
            right: one of RIGHTS.

        Returns:
            True if it has.
        """
        return right in self.rights or "admin" in self.rights


def read(path: Path) -> list[Token]:
    """Reads a file of tokens: one a line, `token rights name [requests/s]`; empty lines and lines after # are none.

    Args:
        path: of the file.

    Returns:
        The tokens, one or more.

    Raises:
        ConfigError: a line is wrong; names its number, never the token.
    """
    try:
        lines = path.read_bytes().decode().splitlines()
    except UnicodeDecodeError:
        raise ConfigError(complain(path, "bytes that are not UTF-8", f"lines of `{_LINE}`")) from None
    tokens: list[Token] = []
    first: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            token = _token(f"{path}: line {number}", line.split())
            if (before := first.setdefault(token.digest, number)) != number:
                raise ConfigError(complain(f"{path}: line {number}", f"the token of line {before}", "each token once"))
            tokens.append(token)
    if not tokens:
        raise ConfigError(complain(path, "no token", f"one or more lines of `{_LINE}`"))
    return tokens


def _token(place: str, fields: list[str]) -> Token:
    """Reads one line. No error shows any of it: what stands in the wrong field may be the token."""
    if not 3 <= len(fields) <= 4:
        raise ConfigError(complain(place, f"{len(fields)} fields", f"3 or 4: {_LINE}"))
    secret, rights, name = fields[:3]
    if not _TOKEN.fullmatch(secret):
        raise ConfigError(complain(f"{place}: token", "other characters", "1 to 512 of ASCII, without spaces"))
    if not set(rights.split(",")) <= set(RIGHTS):
        raise ConfigError(complain(f"{place}: rights", "other words", f"some of {', '.join(RIGHTS)}, by commas"))
    if not _NAME.fullmatch(name):
        raise ConfigError(complain(f"{place}: name", f"{len(name)} characters", "1 to 64 of A-Z a-z 0-9 . _ : @ / -"))
    rate = math.inf
    if len(fields) == 4:
        try:
            rate = real_number(fields[3])
        except ValueError:
            rate = math.nan
        if not 0 < rate <= MAX_RATE:
            raise ConfigError(complain(f"{place}: requests/s", "something else", f"a number up to {MAX_RATE:,}"))
    return Token(_digest(secret), name, frozenset(rights.split(",")), rate)


def _digest(secret: str) -> bytes:
    return hashlib.blake2b(secret.encode(), key=_KEY).digest()


class Bucket:
    """A token bucket: full of one second's requests at first, and refilled as time passes.

    Args:
        rate: requests a second.
    """

    def __init__(self, rate: float) -> None:
        self._rate, self._most = rate, max(1.0, rate)
        self._left, self._at_s = self._most, time.monotonic()
        self._lock = Lock()

    def take(self) -> float:
        """Takes one request.

        Returns:
            0, or the seconds after which there will be one to take.
        """
        with self._lock:
            now_s = time.monotonic()
            self._left = min(self._most, self._left + (now_s - self._at_s) * self._rate)
            self._at_s = now_s
            if self._left < 1:
                return (1 - self._left) / self._rate
            self._left -= 1
            return 0.0


class Tokens:
    """The tokens in force in one process; safe to call from several threads.

    Args:
        tokens: those of the file.
        share: the part of each rate that this process may use up.
    """

    def __init__(self, tokens: Iterable[Token], share: float = 1.0) -> None:
        self._tokens = {token.digest[:16]: token for token in tokens}
        self._buckets = {
            token.digest: Bucket(token.rate * share) for token in self._tokens.values() if token.rate < math.inf
        }

    def find(self, authorization: Iterable[str | bytes]) -> Token:
        """Finds the token that a caller shows.

        The time it takes tells nothing of the tokens: what is looked up is a digest under a key of this process.

        Args:
            authorization: the values of the metadata or header of that name.

        Returns:
            The token.

        Raises:
            Unauthenticated: there is none, or it is not known.
        """
        given = list(authorization)
        if not given:
            raise Unauthenticated(complain("authorization", "none", "Bearer and a token"))
        scheme, _, secret = (given[0] if isinstance(given[0], str) else "").partition(" ")
        if len(given) > 1 or scheme.lower() != "bearer":
            raise Unauthenticated(complain("authorization", "another kind", "Bearer and one token"))
        digest = _digest(secret.strip())
        found = self._tokens.get(digest[:16])
        if found is None or not hmac.compare_digest(found.digest, digest):
            raise Unauthenticated(complain("authorization", "a token that is not known", "one of this server's"))
        return found

    def spend(self, token: Token) -> None:
        """Counts a request against the rate of its token.

        Args:
            token: as found.

        Raises:
            Overloaded: it has made as many as it may; says when to try again.
        """
        bucket = self._buckets.get(token.digest)
        if bucket is not None and (wait_s := bucket.take()):
            after_ms = math.ceil(wait_s * 1000)
            what = complain(f"token {token.name}", "more requests", f"at most {token.rate:g} a second")
            raise Overloaded(f"{what}, retry in {after_ms} ms", after_ms)
