"""The client that blocks; `lhydra_client.aio` has the one that awaits.

Every call has a deadline. A call that no server took (UNAVAILABLE, CANCELLED) is tried again by gRPC itself, four times
at most within the deadline; plays carry event ids, so a repeated call counts them once.
"""

import json
from collections.abc import Generator, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import TypeVar

import grpc

from lhydra_client import catalogue, requests, results, streams
from lhydra_client.access import Path, credentials, metadata
from lhydra_client.address import is_local, server_name, target
from lhydra_client.catalogue import FoundTracks
from lhydra_client.checks import given
from lhydra_client.errors import ClientError, from_rpc
from lhydra_client.operator_calls import OperatorCalls
from lhydra_client.requests import Filter, HistoryEntry, Play, Repeat, SessionEntry, Value
from lhydra_client.results import Explanation, Recommendations, Recorded, Status
from lhydra_client.rules import Rules
from lhydra_protos.v1 import recommender_pb2 as pb
from lhydra_protos.v1.recommender_pb2_grpc import RecommenderStub

Request = TypeVar("Request")
Reply = TypeVar("Reply")

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 1.0
RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.05s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 2,
    # CANCELLED by the server: it never saw the call. Never RESOURCE_EXHAUSTED: repeating would feed the overload
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}
CHANNEL_OPTIONS = (
    (
        "grpc.service_config",
        json.dumps({"methodConfig": [{"name": [{"service": "lhydra.v1.Recommender"}], "retryPolicy": RETRY_POLICY}]}),
    ),
    ("grpc.initial_reconnect_backoff_ms", 100),  # gRPC's own 1 s is longer than our deadline
    ("grpc.max_reconnect_backoff_ms", 1_000),  # gRPC's own 2 min keep a client from a server that is back
    ("grpc.max_receive_message_length", 64 * 2**20),  # a map of 200,000 tracks is larger than gRPC's own 4 MiB
    ("grpc.use_local_subchannel_pool", 1),  # a connection per client: several clients reach several workers
)


def channel_options(address: str) -> tuple[tuple[str, str | int], ...]:
    """Returns the options of a channel to a server: retries, a connection of its own, no proxy within a machine.

    gRPC sends even calls to 127.0.0.1 through the proxy that an environment names.

    Args:
        address: as `Client` takes it.

    Returns:
        Names and values.

    Raises:
        InvalidRequest: not an address.
    """
    where = target(address)
    name = (("grpc.default_authority", "localhost"),) if where.startswith("unix") else ()  # a path is in no certificate
    return (*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(not is_local(where))), *name)


class Client(OperatorCalls):
    """A blocking client; safe to share between threads. Close it, or use it as a context manager.

    None for any argument that may be left out means that it is.

    Args:
        address: HOST:PORT, [HOST]:PORT for IPv6, or a gRPC URI such as unix:PATH.
        timeout_s: deadline of a call in seconds, retries included, unless the call names its own.
        channel: used instead of opening one; its owner closes it and gives it a retry policy.
        tls: whether the server speaks TLS; the files below say so too.
        tls_ca: PEM file of the authorities that its certificate may be from; None for those that gRPC brings.
        tls_cert: PEM file of the client's own certificate, for servers that ask for one.
        tls_key: PEM file of the private key of that certificate.
        token: shown with every call; "" for none.
        insecure: sends the token to another machine without TLS too, where others can read it.

    Raises:
        InvalidRequest: the address, the deadline, a file or the token is not one; or the token would travel in the
            clear.
    """

    def __init__(
        self,
        address: str | None = DEFAULT_ADDRESS,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        channel: grpc.Channel | None = None,
        *,
        tls: bool = False,
        tls_ca: Path | None = None,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
        token: str | None = "",
        insecure: bool = False,
    ) -> None:
        address = given(address, DEFAULT_ADDRESS)
        self._timeout_s = requests.deadline(given(timeout_s, DEFAULT_TIMEOUT_S))
        self._server = "the server" if channel is not None else server_name(target(address))
        self._owned = channel is None
        shown = credentials(tls=tls, ca=tls_ca, cert=tls_cert, key=tls_key)
        private = channel is not None or shown is not None or insecure or is_local(target(address))
        self._metadata = metadata(token, private=private)
        if channel is not None:
            self._channel = channel
        elif shown is None:
            self._channel = grpc.insecure_channel(target(address), channel_options(address))
        else:
            self._channel = grpc.secure_channel(target(address), shown, channel_options(address))
        self._stub = RecommenderStub(self._channel)

    def recommend(
        self,
        user_id: str,
        k: int | None = 10,
        *,
        exclude: Iterable[str] | None = (),
        history: Iterable[str | HistoryEntry] | None = (),
        profile: Mapping[str, Value] | None = None,
        filter: Filter | None = None,
        allow_repeats: bool = False,
        repeat: Repeat | None = None,
        depth: int | None = 0,
        session: Iterable[str | SessionEntry] | None = (),
        now_s: int | None = 0,
        rules: Rules | str | None = None,
        max_per_artist: int | None = 0,
        diversity: float | None = 0.0,
        seed: int | None = 0,
        explain: bool = False,
        timeout_s: float | None = None,
    ) -> Recommendations:
        """Returns the best k tracks for a user, or all that are eligible.

        Args:
            user_id: the listener; an unknown one gets an answer too.
            k: how many tracks, from 1 to the server's `max_k`.
            exclude: ids of tracks never to return.
            history: track ids or entries, oldest first; used for a user of whom the server has no plays.
            profile: text or numbers by column, such as {"age": 31}; fills columns that the server lacks.
            filter: which tracks are eligible, by columns of the catalog.
            allow_repeats: short for repeat="allow".
            repeat: "exclude" (the default) never returns heard tracks, "allow" treats them like any other, "decay"
                lets them return after a time, "learnt" when the model has learnt that they do.
            depth: candidates to rerank; 0 for the server's default.
            session: the plays of now that are not recorded yet, track ids or entries, oldest first.
            now_s: Unix seconds from which ages count; 0 for the server's clock.
            rules: the name of a rule set, or what differs from the server's default set; None for that set.
            max_per_artist: tracks of one artist at most, while there are others; 0 for no cap.
            diversity: how far the list spreads, from 0, not at all, to 1.
            seed: of the draws of exploration; 0 for one made of the request id.
            explain: whether each track comes with reasons in words; they take longer than the list.
            timeout_s: deadline of this call in seconds, retries included; None for the client's.

        Returns:
            The tracks, best first, and how they were made.

        Raises:
            ClientError: one of its subclasses; `Overloaded` says when to try again.
        """
        request = requests.recommend_request(
            user_id,
            k,
            exclude=exclude,
            history=history,
            profile=profile,
            filter=filter,
            allow_repeats=allow_repeats,
            repeat=repeat,
            depth=depth,
            session=session,
            now_s=now_s,
            rules=rules,
            max_per_artist=max_per_artist,
            diversity=diversity,
            seed=seed,
            explain=explain,
        )
        return results.recommendations(self._call(self._stub.Recommend, request, timeout_s))

    def recommend_many(
        self, users: Iterable[str | pb.RecommendRequest], k: int | None = 10, *, timeout_s: float | None = None
    ) -> Generator[Recommendations | ClientError, None, None]:
        """Returns the lists of many users, in order, over streams: cheaper than a call for each.

        Takes up to 64 users ahead of the answer that is read next. What a broken stream leaves over is asked again.

        Args:
            users: ids, or requests made by `recommend_request` for those of whom more is to be said.
            k: how many tracks for those named by id.
            timeout_s: the longest wait for the next answer in seconds, twice that where a stream breaks; None for the
                client's.

        Yields:
            For each what `recommend` returns, or the error that it would raise.

        Raises:
            ClientError: no server answers, or it refuses streams.
        """
        timeout_s = self._timeout_s if timeout_s is None else requests.deadline(timeout_s)
        opened = partial(self._stub.RecommendMany, metadata=self._metadata)
        return streams.answers(opened, users, k, self._server, timeout_s)

    def similar(
        self,
        track_ids: Iterable[str],
        k: int | None = 10,
        *,
        exclude: Iterable[str] | None = (),
        filter: Filter | None = None,
        dislike: Iterable[str] | None = (),
        user_id: str | None = "",
        rules: Rules | str | None = None,
        max_per_artist: int | None = 0,
        diversity: float | None = 0.0,
        depth: int | None = 0,
        seed: int | None = 0,
        now_s: int | None = 0,
        timeout_s: float | None = None,
    ) -> Recommendations:
        """Returns the k tracks most like the given ones, none of which is among them.

        Args:
            track_ids: 1 to 100 tracks to compare with.
            k: how many tracks.
            exclude: ids of tracks never to return.
            filter: which tracks are eligible, by columns of the catalog.
            dislike: up to 100 tracks to move away from, never returned.
            user_id: whose taste orders the most alike; "" for nobody's.
            rules: the name of a rule set, or what differs from the server's default set; None for that set.
            max_per_artist: tracks of one artist at most, while there are others; 0 for no cap.
            diversity: how far the list spreads, from 0, not at all, to 1.
            depth: candidates by vector; 0 for the server's default.
            seed: of the draws of exploration; 0 for one made of the request id.
            now_s: Unix seconds from which ages count; 0 for the server's clock.
            timeout_s: deadline of this call in seconds, retries included; None for the client's.

        Returns:
            The tracks, most similar first.

        Raises:
            ClientError: one of its subclasses.
        """
        request = requests.similar_request(
            track_ids,
            k,
            exclude=exclude,
            filter=filter,
            dislike=dislike,
            user_id=user_id,
            rules=rules,
            max_per_artist=max_per_artist,
            diversity=diversity,
            depth=depth,
            seed=seed,
            now_s=now_s,
        )
        return results.recommendations(self._call(self._stub.SimilarTracks, request, timeout_s))

    def explain(
        self,
        user_id: str,
        track_id: str,
        request: pb.RecommendRequest | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Explanation:
        """Explains why a track is in a user's list, or why it is not.

        Args:
            user_id: the listener.
            track_id: the track to explain.
            request: whose list is meant, made by `recommend_request`; None for the ten best of the user.
            timeout_s: deadline of this call in seconds, retries included; None for the client's.

        Returns:
            The track's way through the request: its place, or the stage that it did not pass, and why.

        Raises:
            ClientError: one of its subclasses; `Unsupported` by a server that does not answer the method yet.
        """
        asked = requests.explain_request(user_id, track_id, request)
        return results.explanation(self._call(self._stub.Explain, asked, timeout_s))

    def tracks(self, track_ids: Iterable[str], *, timeout_s: float | None = None) -> FoundTracks:
        """Returns what the catalogue says of tracks.

        Args:
            track_ids: 1 to 1,000 tracks.
            timeout_s: deadline of this call in seconds, retries included; None for the client's.

        Returns:
            The tracks that the bundle holds, in the order asked for, and the ids of the others.

        Raises:
            ClientError: one of its subclasses.
        """
        asked = catalogue.tracks_request(track_ids)
        return catalogue.looked_up(self._call(self._stub.GetTracks, asked, timeout_s))

    def search(
        self, text: str, k: int | None = 10, *, filter: Filter | None = None, timeout_s: float | None = None
    ) -> FoundTracks:
        """Returns the tracks where each word of a text begins a word of title or artist.

        Args:
            text: words, or beginnings of words; case and accents do not count.
            k: how many tracks.
            filter: which tracks are eligible, by columns of the catalog.
            timeout_s: deadline of this call in seconds, retries included; None for the client's.

        Returns:
            The k best, most words found whole first, then most listeners; and how many there are in all.

        Raises:
            ClientError: one of its subclasses.
        """
        asked = catalogue.search_request(text, k, filter)
        return catalogue.searched(self._call(self._stub.SearchTracks, asked, timeout_s))

    def record_plays(self, plays: Iterable[Play], *, timeout_s: float | None = None) -> Recorded:
        """Appends plays to users' histories; the server checks all of them before it records any.

        After a Timeout the plays may or may not be recorded. Send the same objects again: they count once.

        Args:
            plays: 1 to 1,000 plays of any users.
            timeout_s: deadline of this call in seconds, retries included; None for the client's.

        Returns:
            How many were recorded, and how many had been recorded before.

        Raises:
            ClientError: one of its subclasses; after `Timeout` and `Unavailable` the same plays are worth sending
                again.
        """
        request = requests.record_plays_request(plays)
        return results.recorded(self._call(self._stub.RecordPlays, request, timeout_s))

    def status(self, *, timeout_s: float | None = None) -> Status:
        """Returns what is being served, and how the server is.

        Args:
            timeout_s: deadline of this call in seconds, retries included; None for the client's.

        Returns:
            The bundle, the limits and the counters of the worker that answered.

        Raises:
            ClientError: one of its subclasses.
        """
        return results.status(self._call(self._stub.GetStatus, pb.GetStatusRequest(), timeout_s))

    def close(self) -> None:
        """Closes the channel, unless the caller brought it."""
        if self._owned:
            self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(
        self, method: "grpc.UnaryUnaryMultiCallable[Request, Reply]", request: Request, timeout_s: float | None
    ) -> Reply:
        timeout_s = self._timeout_s if timeout_s is None else requests.deadline(timeout_s)
        try:
            return method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc(error, self._server, timeout_s) from None
