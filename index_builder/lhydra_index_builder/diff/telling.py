"""The comparison for people: its first line, and its tables."""

from dataclasses import asdict, is_dataclass
from typing import Any

from lhydra_index_builder.diff.result import Both, Comparison, Overlap

Table = tuple[list[str], list[list[str]]]  # header, rows


def verdict(found: Overlap, users: int, k: int) -> str:
    """Returns the first line.

    Args:
        found: what `measures.overlap` returned.
        users: how many users have a list.
        k: the length of every list, 0 where lengths differ.

    Returns:
        One sentence.
    """
    mean, low, high, nothing = found.mean, found.low, found.high, found.nothing
    if mean is None or nothing is None:
        return "neither bundle has a list for anybody who was asked"
    if found.identical == 1:
        return f"B gives {_users(users)} exactly the list that A gives"
    kept = f"{k * mean:.2f} of {k} tracks" if k else _percent(mean)
    kept += " of A's lists on average"
    if low is None or high is None:
        kept += " (one user)"
    elif k:
        kept += f" (95 % {k * low:.2f} to {k * high:.2f})"
    else:
        kept += f" (95 % {_percent(low)} to {_percent(high)})"
    return f"B keeps {kept}; {_percent(nothing)} of users see nothing they saw before"


def tables(found: Comparison) -> list[Table]:
    """Returns the comparison as tables, to be printed after its summary.

    Args:
        found: what `comparing.between` returned.

    Returns:
        Settings, lists, sides, genres where they moved, and cohorts.
    """
    out = [_settings(found), _lists(found), _sides(found)]
    if found.genres is not None and found.genres.movers:
        rows = [
            [one.genre, _percent(one.a), _percent(one.b), f"{100 * one.difference:+.1f}"] for one in found.genres.movers
        ]
        out.append((["genre", "A", "B", "B - A"], rows))
    rows = [[one.by, one.name, f"{one.users:,}", _percent(one.overlap)] for one in found.cohorts]
    out.append((["cohorts by", "", "users", f"overlap@{found.k}"], rows))
    return out


def _settings(found: Comparison) -> Table:
    """The bundles, and what differs in how they are served."""
    rows = [["bundle", found.a, found.b]]
    for name in found.differ:
        rows.append([name, *(_setting(getattr(side, name)) for side in (found.settings.a, found.settings.b))])
    if not found.differ:
        rows.append(["settings", "the same", "the same"])
    return ["", "A", "B"], rows


def _lists(found: Comparison) -> Table:
    """How the lists of one user differ."""
    asked, lists, order = found.asked, found.overlap, found.order
    whom = ""
    if asked is not None:
        whom = f"{asked.queries:,} {asked.source}" + (f", {asked.unknown:,} unknown" if asked.unknown else "")
    shift = "-" if order.rank_shift is None else f"{order.rank_shift:.2f}"
    sure = lists.low is not None and lists.high is not None
    interval = (
        f"95 % {_percent(lists.low)} to {_percent(lists.high)}" if sure else "of one user" * (lists.mean is not None)
    )
    rows = [
        [f"overlap@{found.k}", _percent(lists.mean), interval],
        ["identical lists", _percent(lists.identical), "of users"],
        ["the same tracks, in any order", _percent(lists.same_tracks), "of users"],
        ["nothing in common", _percent(lists.nothing), "of users"],
        ["the same first track", _percent(order.same_first), "of users"],
        ["rank shift", shift, "places, of tracks in both lists"],
    ]
    if found.genres is not None:
        rows.append(["genre shift", _percent(found.genres.total_variation), "of recommendations"])
    return [whom, "", ""], rows


def _sides(found: Comparison) -> Table:
    """What all lists of one bundle are like beside those of the other."""
    popular, catalog = found.popularity, found.catalogue
    moved = ""
    if popular.difference is not None:
        moved = f"{100 * popular.difference:+.3f}"
        if popular.low is not None and popular.high is not None:
            moved += f" (95 % {100 * popular.low:+.3f} to {100 * popular.high:+.3f})"
    rows = [
        ["listeners of a track", _percent(popular.a, 3), _percent(popular.b, 3), moved],
        ["different tracks recommended", *_counts(found.coverage), ""],
        ["of them not in the other bundle", f"{catalog.recommended_gone:,}", f"{catalog.recommended_new:,}", ""],
        ["in common of two users", _percent(found.common.a), _percent(found.common.b), ""],
        ["tracks", *_counts(catalog), f"+{catalog.added:,} -{catalog.removed:,}"],
        ["p50, ms", _ms(found.latency.a.p50_ms), _ms(found.latency.b.p50_ms), ""],
        ["p99, ms", _ms(found.latency.a.p99_ms), _ms(found.latency.b.p99_ms), ""],
    ]
    return ["lists", "A", "B", "B - A"], rows


def _counts(both: Both[int]) -> tuple[str, str]:
    return f"{both.a:,}", f"{both.b:,}"


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _setting(value: Any) -> str:
    if is_dataclass(value) and not isinstance(value, type):
        return ", ".join(f"{name} {own}" for name, own in asdict(value).items())
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _users(n: int) -> str:
    return "the one user" if n == 1 else f"all {n:,} users"
