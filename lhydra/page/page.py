"""One HTML page: its sections in order, its styles and scripts. Self-contained, no network, every text escaped.

A section is made of blocks; the templates draw them with Jinja2, which escapes whatever it writes.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lhydra.errors import MissingExtra
from lhydra.page.blocks import Block, Top
from lhydra.page.words import printable

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Section:
    """A section of a page; secondary ones stand back. One without blocks is left out."""

    name: str
    title: str
    blocks: Sequence[Block]
    secondary: bool = False


def render(kind: str, top: Top, sections: Sequence[Section], footer: str) -> str:
    """Renders a page.

    Args:
        kind: what it is a page of, which its title ends with.
        top: its upper part.
        sections: in order.
        footer: its last line.

    Returns:
        One HTML page.

    Raises:
        MissingExtra: plotly or Jinja2 is not installed.
    """
    templates, plotly = tools()
    scripts = plotly, (FOLDER / "page.js").read_text(encoding="utf-8")
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return templates.get_template("page.html").render(
        kind=kind,
        top=top,
        sections=[section for section in sections if section.blocks],
        footer=footer,
        # only these two scripts run, and nothing is fetched, whatever a title says
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {hashes}",
        style=(FOLDER / "page.css").read_text(encoding="utf-8"),
        scripts=scripts,
    )


def tools() -> tuple["Environment", str]:
    """Returns what pages are drawn with: Jinja2, and the script of plotly. Called early, it refuses before any work.

    Raises:
        MissingExtra: either is not installed.
    """
    templates = _templates()
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingExtra("eval", "plotly") from None
    return templates, str(get_plotlyjs())


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
