"""Figures as `lhydra evaluate` and `lhydra compare` print them: four digits, or that there is none."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lhydra.evaluation.document import Interval


def number(value: float | None) -> str:
    """Writes a number.

    Args:
        value: a metric.

    Returns:
        Four digits, or `undefined`.
    """
    return "undefined" if value is None else f"{value:.4f}"


def signed(value: float | None) -> str:
    """Writes a difference.

    Args:
        value: a difference.

    Returns:
        Sign and four digits, or `undefined`.
    """
    return "undefined" if value is None else f"{value:+.4f}"


def half_width(found: "Interval") -> str:
    """Writes ± half an interval.

    Args:
        found: an interval.

    Returns:
        Four digits, nothing where there is no interval.
    """
    return (
        f"±{(found['high'] - found['low']) / 2:.4f}" if found["low"] is not None and found["high"] is not None else ""
    )
