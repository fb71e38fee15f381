"""The comparison for people: its first line, and its tables."""

from collections.abc import Mapping
from typing import Any

Table = tuple[list[str], list[list[str]]]  # header, rows


def verdict(found: Mapping[str, float | None], users: int, k: int) -> str:
    """Returns the first line. found: what `overlap` returned; k: the length of every list, 0 where lengths differ."""
    mean, low, high, nothing = (found[name] for name in ("mean", "low", "high", "nothing"))
    if mean is None or low is None or high is None or nothing is None:
        return "neither bundle has a list for anybody who was asked"
    if found["identical"] == 1:
        return f"B gives {_users(users)} exactly the list that A gives"
    if k:
        kept = f"{k * mean:.2f} of {k} tracks of A's lists on average (95 % {k * low:.2f} to {k * high:.2f})"
    else:
        kept = f"{_percent(mean)} of A's lists on average (95 % {_percent(low)} to {_percent(high)})"
    return f"B keeps {kept}; {_percent(nothing)} of users see nothing they saw before"


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Returns what `between` found as tables, after its summary: settings, lists, sides, genres, cohorts."""
    k, asked, lists = found["k"], found["asked"], found["overlap"]
    whom = f"{asked['queries']:,} {asked['source']}" + (f", {asked['unknown']:,} unknown" if asked["unknown"] else "")
    rows = [["bundle", found["a"], found["b"]]]
    for name in found["differ"]:
        rows.append([name, *(_setting(found["settings"][side][name]) for side in "ab")])
    if not found["differ"]:
        rows.append(["settings", "the same", "the same"])
    out: list[Table] = [(["", "A", "B"], rows)]

    spread = f"95 % {_percent(lists['low'])} to {_percent(lists['high'])}"
    shift = found["order"]["rank_shift"]
    rows = [
        [f"overlap@{k}", _percent(lists["mean"]), spread],
        ["identical lists", _percent(lists["identical"]), "of users"],
        ["the same tracks, in any order", _percent(lists["same_tracks"]), "of users"],
        ["nothing in common", _percent(lists["nothing"]), "of users"],
        ["the same first track", _percent(found["order"]["same_first"]), "of users"],
        ["rank shift", "-" if shift is None else f"{shift:.2f}", "places, of tracks in both lists"],
    ]
    if found["genres"] is not None:
        rows.append(["genre shift", _percent(found["genres"]["total_variation"]), "of recommendations"])
    out.append(([whom, "", ""], rows))

    popular, catalog = found["popularity"], found["catalogue"]
    alike = next(value for name, value in found.items() if name.startswith("inter_user_overlap@"))
    moved = ""
    if popular["low"] is not None:
        by, low, high = (100 * popular[name] for name in ("difference", "low", "high"))
        moved = f"{by:+.3f} (95 % {low:+.3f} to {high:+.3f})"
    rows = [
        ["listeners of a track", *(_percent(popular[side], 3) for side in "ab"), moved],
        ["different tracks recommended", *(f"{found['coverage'][side]:,}" for side in "ab"), ""],
        ["of them not in the other bundle", f"{catalog['recommended_gone']:,}", f"{catalog['recommended_new']:,}", ""],
        ["in common of two users", *(_percent(alike[side]) for side in "ab"), ""],
        ["tracks", f"{catalog['a']:,}", f"{catalog['b']:,}", f"+{catalog['added']:,} -{catalog['removed']:,}"],
    ]
    for name in ("p50_ms", "p99_ms"):
        rows.append([name.replace("_", ", "), *(_ms(found["latency"][side][name]) for side in "ab"), ""])
    out.append((["lists", "A", "B", "B - A"], rows))

    if found["genres"] is not None and found["genres"]["movers"]:
        rows = [
            [one["genre"], _percent(one["a"]), _percent(one["b"]), f"{100 * one['difference']:+.1f}"]
            for one in found["genres"]["movers"]
        ]
        out.append((["genre", "A", "B", "B - A"], rows))
    rows = [[one["by"], one["name"], f"{one['users']:,}", _percent(one["overlap"])] for one in found["cohorts"]]
    out.append((["cohorts by", "", "users", f"overlap@{k}"], rows))
    return out


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {own}" for name, own in value.items())
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _users(n: int) -> str:
    return "the one user" if n == 1 else f"all {n:,} users"
