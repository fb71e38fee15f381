"""JSON that somebody else may have written: whatever is wrong with it is one error in a few words."""

import json
from collections.abc import Callable
from typing import Any


def parse_json(text: str | bytes, constant: Callable[[str], object] | None = None) -> Any:
    """Parses JSON that somebody else may have written.

    Args:
        text: in UTF-8 where it is bytes.
        constant: what stands for NaN and Infinity, which are no JSON; None for the numbers.

    Returns:
        What it says.

    Raises:
        ValueError: it is no JSON, or nests so deeply that the parser ends; in a few words.
    """
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text, parse_constant=constant)
    except json.JSONDecodeError as fault:
        where = f" in line {fault.lineno}" if "\n" in fault.doc.strip() else ""
        raise ValueError(f"broken JSON{where}") from None
    except UnicodeDecodeError:
        raise ValueError("text that is not UTF-8") from None
    except RecursionError:
        raise ValueError("JSON that nests too deeply") from None
    except ValueError:
        raise ValueError("JSON with a number of thousands of digits") from None
