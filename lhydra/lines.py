"""Lines that people follow while work goes on: the work does not end where their reader has gone."""

import os
import sys
from typing import TextIO


def say(line: object, stream: TextIO | None = None) -> None:
    """Prints a line of progress at once. Where its reader has gone (`| head`), the work goes on unseen.

    Args:
        line: what to print.
        stream: where, by default stdout.
    """
    stream = stream or sys.stdout
    try:
        print(line, file=stream, flush=True)
    except BrokenPipeError:
        let_go(stream)


def let_go(stream: TextIO) -> None:
    """Points a stream whose reader has gone elsewhere, so that later lines and the flush at exit are silent.

    Args:
        stream: stdout or stderr.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
