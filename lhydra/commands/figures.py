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


def half_width(found: "Interval") -> str:
    """Writes ± half an interval.

    Args:
        found: an interval.

    Returns:
        Four digits.
    """
    return f"±{((found['high'] or 0.0) - (found['low'] or 0.0)) / 2:.4f}"
