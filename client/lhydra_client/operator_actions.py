"""`lhydra query status`, `user`, `users`, `bundles` and `map`: for operators, for people and for machines."""

import argparse
import dataclasses
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lhydra_client.client import Client

SERVED = ("bundle_id", "model_id", "tracks", "workers", "uptime_s", "event_log")  # of a status, said in other words
COUNTS = ("stages", "methods", "tiers", "refusals", "degraded")


def configure(action: Callable[[str, str], argparse.ArgumentParser], whole: Callable[[str], int]) -> None:
    """Adds the actions.

    Args:
        action: makes the parser of one, of its name and a sentence.
        whole: reads a whole number.
    """
    action("status", "What is being served, and how the server is.")
    user = action("user", "What is stored of a user.")
    user.add_argument("user", metavar="USER")
    user.add_argument("--entries", type=whole, default=20, help="of the history and of the last plays (default: 20)")
    users = action("users", "Users by the beginning of their ids.")
    users.add_argument("prefix", metavar="PREFIX", nargs="?", default="")
    users.add_argument("--k", type=whole, default=20, help="how many users (default: 20)")
    action("bundles", "The bundles of the server's store, and what their gates said.")
    track_map = action("map", "The tracks as points of a plane; --json prints them.")
    track_map.add_argument("--points", type=whole, default=0, help="how many tracks (default: 100,000)")
    track_map.add_argument("--column", default="", help="of the catalogue, to label them by (default: the genres)")


def _status(client: "Client", args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from lhydra_client.table import clean, table

    status = client.status()
    values = dataclasses.asdict(status)
    workers = f"{status.workers} worker{'' if status.workers == 1 else 's'}"
    up = f"up {timedelta(seconds=int(status.uptime_s))}"
    served = f"bundle {status.bundle_id} · model {status.model_id} · {status.tracks:,} tracks · {workers} · {up}"
    fields = {name: value for name, value in values.items() if name not in (*SERVED, *COUNTS)}
    log = values["event_log"] or {}
    fields |= {f"event_log.{name}": value for name, value in log.items() if name != "oldest_ms"}
    fields["event_log.oldest (UTC)"] = _when(log.get("oldest_ms", 0) // 1000)
    rows = [(name, shown) for name, value in fields.items() if (shown := _cell(value))]
    lines = [clean(served), *[table(("field", "value"), rows)] * bool(rows)]
    for title, times in (("stage", status.stages), ("method", status.methods)):
        spans = [(one.name, *(f"{n:,}" for n in (one.count, one.p50_us, one.p90_us, one.p99_us))) for one in times]
        if spans:
            lines += ["", table((title, "count", "p50 us", "p90 us", "p99 us"), spans, right=(1, 2, 3, 4))]
    for title, what in (("tiers", "lists"), ("refusals", "calls"), ("degraded", "lists")):
        if counts := values[title]:
            lines += ["", table((title, what), [(name, f"{n:,}") for name, n in counts.items()], right=(1,))]
    return "\n".join(lines), values


def _user(client: "Client", args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from lhydra_client.table import clean, table

    answer = client.user(args.user, args.entries)
    values = {"user_id": args.user} | dataclasses.asdict(answer)
    if not answer.known:
        return clean(f"user {args.user} · nothing is stored"), values
    session = f"{answer.session} {'play' if answer.session == 1 else 'plays'} in the session of now"
    counts = f"{answer.history_tracks:,} tracks in the history, {answer.heard_tracks:,} heard"
    lines = [clean(f"user {args.user} · {counts} · {session} · bundle {answer.bundle_id}")]
    lines += [clean(f"{name}: {value}") for name, value in answer.profile.items()]
    plays = [
        (
            _when(one.timestamp_s),
            one.title,
            one.artist,
            "skipped" * one.skipped or "completed" * one.completed,
            _id(one),
        )
        for one in answer.plays
    ]
    history = [(_when(one.last_s), one.title, one.artist, f"{one.count:g}", _id(one)) for one in answer.history]
    if plays:
        lines += ["", table(("last plays", "title", "artist", "", "track id"), plays)]
    if history:
        lines += ["", table(("last play", "title", "artist", "plays", "track id"), history, right=(3,))]
    return "\n".join(lines), values


def _id(one: Any) -> str:
    return one.track_id or "(not in this bundle)"


def _users(client: "Client", args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from lhydra_client.table import clean

    answer = client.users(args.prefix, args.k)
    lines = [*map(clean, answer.user_ids), *["… there may be more"] * answer.more]
    return "\n".join(lines) or "no user", dataclasses.asdict(answer)


def _bundles(client: "Client", args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from lhydra_client.table import clean, table

    found = client.bundles()
    rows, notes = [], []
    for one in found:
        what = [name for name in ("current", "serving", "previous") if getattr(one, name)]
        size = f"{one.bytes / 1e6:,.1f}"
        rows.append((one.bundle_id, ", ".join(what), _when(one.created_s), f"{one.tracks:,}", size, one.verdict))
        notes += [clean(f"{one.bundle_id}: {one.error}")] * bool(one.error)
        notes += [clean(f"{one.bundle_id}: refused: {gate.name}") for gate in one.gates if gate.verdict == "refused"]
    shown = table(("bundle", "", "created (UTC)", "tracks", "MB", "gate"), rows, right=(3, 4)) if rows else "no bundle"
    return "\n".join([shown, *notes]), {"bundles": [dataclasses.asdict(one) for one in found]}


def _map(client: "Client", args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from lhydra_client.table import clean, table

    answer = client.track_map(args.points, column=args.column)
    if not answer.projection:
        return clean(f"bundle {answer.bundle_id} has no map"), dataclasses.asdict(answer)
    by = f" by {answer.column}" * bool(answer.column)
    lines = [clean(f"{len(answer.track_ids):,} tracks{by} · {answer.projection} · bundle {answer.bundle_id}")]
    rows = [(label or "(none)", f"{count:,}") for label, count in Counter(answer.labels).most_common(20)]
    return "\n".join([*lines, table((answer.column or "", "tracks"), rows, right=(1,))]), dataclasses.asdict(answer)


def _when(seconds: int) -> str:
    """A time in UTC, empty where it is unknown or none."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}" if seconds > 0 else ""
    except (OverflowError, ValueError, OSError):
        return ""


def _cell(value: Any) -> str:
    """A value as people read it; empty where it says nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(value) if isinstance(value, (list, tuple)) else value or ""


ACTIONS = {"status": _status, "user": _user, "users": _users, "bundles": _bundles, "map": _map}
