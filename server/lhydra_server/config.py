"""Settings of `lhydra serve`, and all that supervisor and worker have agreed on.

They talk in lines of JSON, one message a line. On its stdin a worker gets one `WorkerSettings`, then a `FleetStatus`
whenever that changes; the end of stdin means that the supervisor is gone. On its stdout it writes one `WorkerReport`.
"""

import json
from dataclasses import asdict, dataclass
from typing import Self

from lhydra.config import Settings, setting
from lhydra.errors import LhydraError, complain
from lhydra.limits import DEFAULT_MAX_K, MAX_DEPTH, MAX_K

MAX_ERROR_CHARS = 500
NOTICE_S = 0.3  # between NOT_SERVING and leaving: whoever watches health has moved on by then
GRACE_S = 5.0  # for calls in progress
SPARE_S = 8.0  # for what else a worker does before it ends


@dataclass(frozen=True)
class ServeSettings(Settings):
    """Flags, YAML section `serve` and environment LHYDRA_SERVE_… in one."""

    host: str = setting("127.0.0.1", "address to listen on, or unix:PATH for one worker on a unix socket")
    port: int = setting(50051, "port to listen on; 0 picks a free one", low=0, high=65_535)
    bundle: str | None = setting(None, "a bundle's id, or previous: serve that, whatever CURRENT says, without swaps")
    workers: int = setting(0, "worker processes; 0 means one per core", low=0, high=1_024)
    users: str | None = setting(None, "user store, lmdb:PATH or redis://HOST:PORT/DB; by default the one inside STORE")
    users_create: bool = setting(False, "make the user store where there is none; the one inside STORE always is")
    users_sync_s: float = setting(
        1.0, "recorded plays reach the disk at most so long after; 0 means at once", low=0, high=3_600
    )
    events: str = setting(
        "on", "on: recorded plays are kept one by one in the event log, to be exported and learnt from", ("on", "off")
    )
    events_days: float = setting(
        90.0, "days after which plays leave the event log, as new ones come; 0 means never", low=0, high=36_500
    )
    depth: int = setting(0, "candidates to rerank per request; 0 means the recommender's own", low=0, high=MAX_DEPTH)
    max_k: int = setting(DEFAULT_MAX_K, "largest k a request may ask for", low=1, high=MAX_K)
    max_in_flight: int = setting(32, "requests a worker takes at a time; more are refused at once", low=1, high=100_000)
    pin: bool = setting(True, "every worker keeps to a core of its own, where there are as many")
    connection_age_s: float = setting(
        5.0, "clients renew their connections so often; a leaving worker waits as long", low=0.1, high=300
    )
    metrics_port: int = setting(0, "port of http://HOST:PORT/metrics for Prometheus; 0 means none", low=0, high=65_535)
    count: bool = setting(False, "count calls for GetStatus also where there is no --metrics-port")
    log_sample: float = setting(
        1.0, "share of the requests that succeed to write a log line for; others always have one", low=0, high=1
    )
    require_signature: str | None = setting(None, "public Ed25519 key, PEM; a bundle that it did not sign is refused")
    log_key: str | None = setting(
        None, "file with a secret of 16 bytes or more that user ids in the log are hashed with (default: a random one)"
    )
    rules: str | None = setting(None, "YAML file of rule sets for lists, read again when it changes")
    tls_cert: str | None = setting(None, "certificate chain in PEM form for TLS, read again when it changes")
    tls_key: str | None = setting(None, "private key of that certificate")
    tls_client_ca: str | None = setting(None, "authority whose certificates clients must have (mTLS)")
    token_file: str | None = setting(
        None, "file of bearer tokens, `token rights name [requests/s]` a line, read again when it changes"
    )
    insecure: bool = setting(False, "listen beyond this machine without TLS")
    closed_reflection: bool = setting(False, "the API does not describe itself to those who ask by reflection")
    trace_endpoint: str | None = setting(
        None, "http://HOST:4318 of an OpenTelemetry collector, which gets a span for each call"
    )
    log_answers: float = setting(
        0.0, "share of the answers to log with all that it takes to answer them again", low=0, high=1
    )
    answers: str | None = setting(None, "folder of that log; by default answers inside STORE")
    answers_bytes: int = setting(2**30, "most bytes of its compressed files; the oldest are deleted", low=2**20)


@dataclass(frozen=True)
class Message:
    """What travels as one line of JSON: the fields of a dataclass."""

    def to_json(self) -> str:
        """Returns the message on one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str | bytes) -> Self:
        """Returns what `to_json` wrote.

        Args:
            line: one line, with or without its end.

        Returns:
            A message of this class.

        Raises:
            LhydraError: a line that a process of another version wrote, or none.
        """
        try:
            return cls(**json.loads(line))
        except (ValueError, TypeError):
            found = f"another {len(line)} bytes"  # no more: settings hold passwords and keys
            raise LhydraError(complain(cls.__name__, found, "one of this version: restart `lhydra serve`")) from None


@dataclass(frozen=True)
class WorkerSettings(Message):
    """What one worker needs to know."""

    store: str
    bundle_id: str
    address: str  # HOST:PORT, [HOST]:PORT for IPv6, unix:PATH
    users: str | None = None
    users_id: str = ""  # of the user store that was there when the server started
    users_doubtful: bool = False  # its files are tried by a process of its own before they are used
    users_sync_s: float = 1.0
    events: bool = True
    events_keep_ms: int = 0  # age at which plays leave the event log; 0: never
    depth: int = 0
    max_k: int = DEFAULT_MAX_K
    max_in_flight: int = 32
    connection_age_s: float = 5.0
    core: int = -1  # which it keeps to; below 0 any
    rules: str = ""  # folder of the copy of the file of rules in force; "" for none
    certificates: str = ""  # as the rules
    tokens: str = ""  # as the rules
    token_share: float = 1.0  # of each token's rate
    reflected: bool = True
    trace_endpoint: str = ""  # of a collector of spans; "" for none
    log_answers: float = 0.0  # share of the answers that are logged
    answers: str = ""  # folder of that log
    answers_bytes: int = 2**30  # of its compressed files
    log_level: str = "info"
    log_sample: float = 1.0
    signed_by: str = ""  # hex, the public key of who must have signed the bundle; "" takes any
    log_key: str = ""  # hex, that user ids in the log are hashed with; "" for one of the process's own
    metrics: int = -1  # descriptor of the memory to count into, inherited; below 0 nothing is counted
    counted: int = -1  # of the memory with what all workers have counted, likewise


@dataclass(frozen=True)
class WorkerReport(Message):
    """What a worker says twice a second: that it lives, whether it serves, or why it cannot."""

    error: str = ""  # at most MAX_ERROR_CHARS, so that a pipe takes the line in one write
    model_id: str = ""
    ready: bool = False
    work: int = 0  # done so far: milliseconds computed and blocks read
    stuck_s: float = 0.0  # for so long a call has been overdue


@dataclass(frozen=True)
class FleetStatus(Message):
    """What only the supervisor knows and GetStatus tells."""

    workers: int = 0  # that serve now
    current_bundle_id: str = ""  # what the store calls CURRENT
    swap_error: str = ""  # why CURRENT is not being served
    rules: str = ""  # folder of the copy of the file of rules in force; "" for none
    rules_error: str = ""  # why the file itself is not in force
    certificates: str = ""  # as the rules
    tokens: str = ""  # as the rules
    access_error: str = ""  # why the files of certificates or tokens are not in force


def longest_drain_s(connection_age_s: float) -> float:
    """How long a worker waits at most for its connections to end.

    Args:
        connection_age_s: the age that gRPC gives them, 10 % more at most.

    Returns:
        Seconds.
    """
    return 1.1 * connection_age_s + 1


def longest_stop_s(connection_age_s: float) -> float:
    """After how long a worker that was told to stop has no reason to be there.

    Args:
        connection_age_s: of its connections.

    Returns:
        Seconds.
    """
    return NOTICE_S + longest_drain_s(connection_age_s) + GRACE_S + SPARE_S
