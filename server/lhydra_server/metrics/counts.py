"""What only the supervisor of a server counts, whether anybody collects metrics or not."""

from dataclasses import dataclass, field

FAILURES = ("ended", "frozen", "stuck", "hung", "not_started")  # why a worker was lost
FILES = ("rules", "certificates", "tokens")


@dataclass
class Counts:
    """Set by the supervisor's loop, read by the thread that answers a scrape."""

    workers: int = 0  # that serve now
    worker_restarts: int = 0
    swap_failures: int = 0
    expires_s: int = 0  # of the server's certificate, in Unix seconds; 0 for none
    file_failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FILES, 0))
    worker_failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAILURES, 0))
    serving: tuple[str, str] | None = None  # bundle id, model id
