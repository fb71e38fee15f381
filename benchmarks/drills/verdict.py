"""What a drill found: one promise, what was wanted, what was measured, and whether that is enough."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """One row of the table.

    Attributes:
        promise: in a few words.
        target: what was wanted.
        measured: what was found; why it was not tried, where `met` is None.
        met: whether it holds; None where it could not be tried here.
    """

    promise: str
    target: str
    measured: str
    met: bool | None


def not_run(promise: str, target: str, why: str) -> Verdict:
    """Makes the row of a drill that could not be tried here.

    Args:
        promise: in a few words.
        target: what was wanted.
        why: it was not.

    Returns:
        The row.
    """
    return Verdict(promise, target, f"not run: {why}", None)
