"""Numbers as people write them: one strict reading of outside text, for flags, files, the environment and requests.

Python's own `int` and `float` take `1_999` for 1999, and the digits of every script: a slip would pass as a number.
"""

import re

_WHOLE = re.compile(r"[+-]?[0-9]+")
_REAL = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:inf|infinity|nan))")


def whole_number(text: str) -> int:
    """Reads a whole number.

    Args:
        text: digits 0 to 9, with a sign or without; white space around it does not count.

    Returns:
        The number.

    Raises:
        ValueError: it is anything else.
    """
    if not _WHOLE.fullmatch(text.strip()):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def real_number(text: str) -> float:
    """Reads a number.

    Args:
        text: digits 0 to 9 with an optional sign, point and exponent, or the word for infinity or no number; white
            space around it does not count.

    Returns:
        The number; infinite beyond what a float holds.

    Raises:
        ValueError: it is anything else.
    """
    if not _REAL.fullmatch(text.strip()):
        raise ValueError(f"{text!r} is not a number")
    return float(text)
