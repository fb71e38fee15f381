"""The file of rule sets: how the supervisor checks it against a bundle, and how a worker reads its copy."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from lhydra.json_text import parse_json

if TYPE_CHECKING:
    from lhydra.lists.file import RuleSets
    from lhydra_server.served import Served

_log = logging.getLogger(__name__)
COPY = "rules.yaml"  # of the file, as `WatchedFiles` makes it


def columns_of(bundle: Path) -> dict[str, str]:
    """Reads which columns a bundle can be filtered on, without opening it.

    Args:
        bundle: its folder.

    Returns:
        Kind by name; none where they cannot be told, which whoever opens the bundle will say.
    """
    try:
        said = parse_json((bundle / "filters.json").read_bytes())["columns"]
        return {str(name): str(kind) for name, kind in said.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def rule_sets(copies: str, columns: dict[str, str]) -> "RuleSets":
    """Reads rule sets, and checks them against a bundle.

    Args:
        copies: folder of the copy in force; "" for none.
        columns: of the bundle.

    Returns:
        The sets.

    Raises:
        ConfigError: the file is wrong, or the bundle lacks a column that it names.
    """
    from lhydra.lists.file import RuleSets, read

    if not copies:
        return RuleSets()
    sets = read(Path(copies) / COPY)
    sets.check(columns)
    return sets


def rules_for(copies: str, served: "Served") -> "RuleSets":
    """Reads the rule sets that a worker answers by, and logs what they name and its bundle does not have.

    Args:
        copies: as `rule_sets` takes it.
        served: by the worker.

    Returns:
        The sets.

    Raises:
        ConfigError: as `rule_sets`.
    """
    from lhydra.unmatched import unmatched

    sets = rule_sets(copies, dict(served.filters.names))
    if said := unmatched(sets.sets, served.catalog.rows, served.filters):
        _log.warning("rules: %s", said)
    return sets
