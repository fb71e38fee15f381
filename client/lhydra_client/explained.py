"""An explanation as people read it on a terminal: one line a stage, then what pulled the track up."""

from collections.abc import Sequence

from lhydra_client.results import Explanation, Pull, RuleStep
from lhydra_client.table import clean, score

_DROPPED = {
    "removed": "it was removed from the catalogue",
    "exclude_track_ids": "the request excludes it",
    "rules.blocks": "a rule blocks it",
    "heard": "the listener has heard it",
}
_SOURCES = {
    "nearest": "near the listener's vector",
    "own": "the listener's own plays",
    "co-listening": "played by those who play the same",
    "following": "follows what was just played",
    "together": "shares sessions with what was just played",
    "pinned": "pinned by a rule",
    "chart": "the chart of the listener's country",
    "popular": "what is played most",
}


def text(user_id: str, track_id: str, found: Explanation) -> str:
    """Returns an explanation as lines.

    Args:
        user_id: the listener.
        track_id: the track.
        found: the explanation.

    Returns:
        The lines, without a line end after the last.
    """
    name = f"{named(found.title, found.artist)} ({track_id})" if found.title or found.artist else track_id
    place = f"place {found.rank} of {found.k}" if found.recommended else f"not among the {found.k}"
    lines = [f"{name} for user {user_id}: {place} · tier {found.tier} · bundle {found.bundle_id}"]
    lines += [f"degraded: {reason}" for reason in found.degraded]
    if found.stopped_by == "unknown":
        lines.append("catalogue  the bundle being served does not hold this track")
    else:
        lines += [f"{stage:<9}  {said}" for stage, said in _stages(found)]
    lines += [f"reason     {reason}" for reason in found.reasons]
    lines += _pulls("plays that pulled it up", found.pulls)
    lines += _pulls("feature groups", found.groups)
    if found.would_bring_in:
        lines.append("what would bring it in")
        lines += [f"  {', '.join(one.changes)}: place {one.place}" for one in found.would_bring_in]
    return "\n".join(clean(line) for line in lines)


def named(title: str, artist: str) -> str:
    """Returns a track as people name it.

    Args:
        title: "" where there is none.
        artist: the same.

    Returns:
        Title and artist.
    """
    return f"{title or 'untitled'} by {artist}" if artist else title


def _stages(found: Explanation) -> list[tuple[str, str]]:
    dropped = [_DROPPED.get(one, f"{one} does not let it pass") for one in found.dropped_by]
    lines = [("exclude", "; ".join(dropped) or "passed")]
    popular = found.tier == "popular"
    if not popular:
        ranks = f"rank {found.exact_rank:,} exactly"
        if found.index_rank or not found.dropped_by:
            ranks += f", {found.index_rank:,} by the index" if found.index_rank else ", not found by the index"
        if found.candidate:
            came = ", ".join(_SOURCES.get(one, one) for one in found.sources)
            lines.append(("retrieve", f"{ranks}; candidate: {came}"))
        else:
            why = {"depth": f"beyond the depth of {found.depth:,}", "index": "missed by the index"}
            lines.append(("retrieve", f"{ranks}; no candidate: {why.get(found.stopped_by, 'it was dropped')}"))
    came = f"{', '.join(_SOURCES.get(one, one) for one in found.sources)}; " if popular and found.sources else ""
    rank = f"rank {found.head_rank:,}" if found.candidate or popular else f"would be rank {found.head_rank:,}"
    among = "in the charts" if popular else f"of {found.candidates:,} candidates"
    lines.append(("rerank", f"{came}{rank} {among}, score {score(found.score)}"))
    moved = [step for step in found.steps if step.before != step.after]
    lines += [("select", _step(step)) for step in moved]
    if found.steps and not moved:
        lines.append(("select", "no rule moved it"))
    return lines


def _step(step: RuleStep) -> str:
    before, after = (f"place {at}" if at else "no place" for at in (step.before, step.after))
    rule = "others pinned, new or drawn took places" if step.rule == "places" else f"rule {step.rule}"
    return f"{rule}: {before} → {after}"


def _pulls(title: str, pulls: Sequence[Pull]) -> list[str]:
    """The effects that are not shown as 0.000."""
    lines = [f"  {one.logit:+.3f}  {_pull(one)}" for one in pulls if round(one.logit, 3)]
    return [title, *lines] if lines else []


def _pull(one: Pull) -> str:
    name = named(one.title, one.artist)
    return f"{name} ({one.name})" if name else one.name
