"""Who may call what: the right that each method needs, and the check that comes before anything else of a call."""

from collections.abc import Iterable
from pathlib import Path

from lhydra.errors import PermissionDenied, complain
from lhydra_server.tokens import COPY, Tokens, read

API = "/lhydra.v1.Recommender/"
METRICS = "GET /metrics"
OPEN = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"})  # probes have no token
RIGHT_OF = {
    API + "Recommend": "read",
    API + "RecommendMany": "read",
    API + "SimilarTracks": "read",
    API + "Explain": "read",
    API + "GetTracks": "read",
    API + "SearchTracks": "read",
    API + "GetStatus": "read",
    API + "RecordPlays": "write",
    API + "GetUser": "admin",
    API + "SearchUsers": "admin",
    API + "ListBundles": "admin",
    API + "GetMap": "admin",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": "read",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "read",
    METRICS: "read",
}
PER_REQUEST = frozenset({API + "RecommendMany"})  # each request of a stream counts, not the stream

Metadata = Iterable[tuple[str, str | bytes]]


class Access:
    """Checks the tokens of calls; without a file of tokens everybody may call everything.

    Args:
        copies: folder of the copy of the file of tokens; "" for none.
        share: the part of each rate that this process may use up.
    """

    def __init__(self, copies: str = "", share: float = 1.0) -> None:
        self._share = share
        self._tokens: Tokens | None = None
        self.take(copies)

    def take(self, copies: str) -> None:
        """Uses another version of the file from now on.

        Args:
            copies: folder of its copy; "" for none.
        """
        self._tokens = Tokens(read(Path(copies) / COPY), self._share) if copies else None

    @property
    def closed(self) -> bool:
        """Whether callers need a token."""
        return self._tokens is not None

    def check(self, method: str, metadata: Metadata) -> None:
        """Lets a call pass, or not.

        Args:
            method: with its service, as gRPC names it.
            metadata: of the call.

        Raises:
            Unauthenticated: no token that is known.
            PermissionDenied: a token without the right that the method needs.
            Overloaded: a token that has been used too often.
        """
        tokens = self._tokens
        if tokens is None or method in OPEN:
            return
        token = tokens.find(_authorization(metadata))
        right = RIGHT_OF.get(method)
        if right is not None and not token.may(right):
            found, expected = ",".join(sorted(token.rights)), f"{right}, for {method.rpartition('/')[2]}"
            raise PermissionDenied(complain(f"rights of token {token.name}", found, expected))
        if method not in PER_REQUEST:
            tokens.spend(token)

    def spend(self, metadata: Metadata) -> None:
        """Counts one request of a stream, which `check` has let pass.

        Args:
            metadata: of the stream.

        Raises:
            Unauthenticated: its token is not known any more.
            Overloaded: it has been used too often.
        """
        if (tokens := self._tokens) is not None:
            tokens.spend(tokens.find(_authorization(metadata)))


def _authorization(metadata: Metadata) -> list[str | bytes]:
    return [value for key, value in metadata if key == "authorization"]
