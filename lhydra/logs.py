"""Logging set-up for programs: human lines on a terminal, JSON lines in the server. Modules only get loggers."""

import json
import logging
import sys
import time
from typing import TextIO

LEVELS = ("debug", "info", "warning", "error")
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message and whatever was passed as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns `record` as one line of JSON; control characters arrive escaped."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def configure(level: str = "info", *, as_json: bool = False, stream: TextIO | None = None) -> None:
    """Sends the logs of this process to `stream` (stderr by default); called by programs, never by modules."""
    handler = logging.StreamHandler(stream or sys.stderr)
    human = logging.Formatter("%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S")
    handler.setFormatter(JsonFormatter() if as_json else human)
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # tells of every CPU it is not
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
