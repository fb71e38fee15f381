"""Would the candidate help? One rule over the paired comparison with what is served."""

from collections.abc import Mapping
from typing import Any

METRIC = "ndcg@10"


def decide(compared: Mapping[str, Any], new_tracks: int, margin: float) -> dict[str, Any]:
    """Decides by NDCG@10 of the served lists, the same users in both.

    A candidate helps where it is not worse by more than the margin. Where it brings tracks that are not served yet, it
    is enough that it is not surely worse by more: they can be found by no other way.

    Args:
        compared: what `lhydra compare --json` wrote, the served bundle as A.
        new_tracks: how many tracks the candidate knows that the served bundle does not.
        margin: share of the served NDCG@10 that may be lost.

    Returns:
        helps, why, and the change of the metric with its 95 % interval.
    """
    change = compared["stages"]["cascade"][METRIC]
    if change["difference"] is None:
        why = f"no user has an {METRIC} in both"
        return {"helps": False, "why": why, "change": dict(change), "metrics": compared["stages"]["cascade"]}
    served, found, low, high = change["a"] or 0.0, change["difference"], change["low"], change["high"]
    least = 0.0 - margin * served  # no margin is 0, not the -0 of floats
    reach = high if new_tracks and high is not None else found
    helps = reach >= least or (low is not None and low > 0)
    sure = "of one user" if low is None or high is None else f"95 % interval {low:+.4f} to {high:+.4f}"
    why = f"NDCG@10 {change['b'] or 0.0:.4f}, served {served:.4f}, difference {found:+.4f} ({sure})"
    if new_tracks:
        why += f"; {new_tracks:,} new track{'s' * (new_tracks != 1)}"
        if helps and found < least:
            why += f", for which an interval that reaches {least:+.4f} is enough"
    if not helps:
        why += f"; at least {least:+.4f} is wanted" + (", or an interval that reaches it" if new_tracks else "")
    return {"helps": helps, "why": why, "change": dict(change), "metrics": compared["stages"]["cascade"]}
