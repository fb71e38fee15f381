"""The page: its sections in order, its styles and scripts. Self-contained, no network, every text escaped.

A section is a function from the document to blocks; the templates draw them with Jinja2, which escapes whatever it
writes. A part that the document lacks is left out of the page.
"""

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lhydra.errors import MissingExtra
from lhydra.evaluation.document import Document
from lhydra.evaluation.report import mistakes, model, protocol, ranking, users
from lhydra.evaluation.report.blocks import Block
from lhydra.evaluation.report.top import top
from lhydra.evaluation.report.words import defined, part, printable

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Section:
    """A section of the page; secondary ones stand back."""

    name: str
    title: str
    build: Callable[[Document], list[Block]]
    secondary: bool = False
    blocks: Sequence[Block] = ()


SECTIONS = (
    Section("ranking", "Ranking", ranking.ranking),
    Section("paired", "Against the baselines", ranking.paired),
    Section("cascade", "What the shortlist costs", ranking.cascade),
    Section("cohorts", "Who is served well", users.cohorts),
    Section("beyond", "Beyond accuracy", users.beyond),
    Section("slices", "Cold corners", users.slices),
    Section("classification", "The head as a classifier", model.classification, secondary=True),
    Section("importance", "What the model relies on", model.importance),
    Section("training", "Training", model.training),
    Section("mistakes", "Mistakes", mistakes.mistakes),
    Section("data", "Leak checks", protocol.leaks),
    Section("protocol", "Protocol", protocol.protocol),
)


def render(document: Document) -> str:
    """Renders an evaluation.

    Args:
        document: an evaluation document; any part may be missing or null.

    Returns:
        One HTML page.

    Raises:
        MissingExtra: plotly or Jinja2 is not installed.
    """
    templates = _templates()
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingExtra("eval", "plotly") from None

    document = defined(document)
    scripts = str(get_plotlyjs()), (FOLDER / "report.js").read_text(encoding="utf-8")
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    built = [replace(one, blocks=one.build(document)) for one in SECTIONS]
    return templates.get_template("page.html").render(
        top=top(document),
        sections=[section for section in built if section.blocks],
        version=part(document.get("protocol")).get("lhydra_version", ""),
        # only these two scripts run, and nothing is fetched, whatever a title says
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {hashes}",
        style=(FOLDER / "report.css").read_text(encoding="utf-8"),
        scripts=scripts,
    )


@cache
def _templates() -> "Environment":
    """Jinja2 with every expression escaped, and control characters in it made spaces."""
    try:
        from jinja2 import Environment, FileSystemLoader
        from markupsafe import Markup
    except ImportError:
        raise MissingExtra("eval", "jinja2") from None
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(value),
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment
