"""Where a server logs answers: found, and tried, when it starts."""

from pathlib import Path

from lhydra.errors import ConfigError, complain
from lhydra_server.config import ServeSettings


def answers_folder(settings: ServeSettings, store: Path) -> str:
    """Returns where answers are logged, and tries once that they can be: later a failure stops no answer.

    Args:
        settings: of the command.
        store: folder of the bundles.

    Returns:
        The folder; "" where nothing is logged.

    Raises:
        ConfigError: it cannot be made or written.
    """
    if not settings.log_answers:
        return ""
    from lhydra.answers.folder import NAME, locked, sweep

    folder = store / NAME if settings.answers is None else Path(settings.answers)
    try:
        with locked(folder):
            sweep(folder)
    except OSError as error:
        raise ConfigError(complain("--answers", f"{folder}: {error.strerror}", "a folder to write to")) from None
    return str(folder)
