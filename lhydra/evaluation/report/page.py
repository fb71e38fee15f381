"""The page of an evaluation: its sections in order. A part that the document lacks is left out."""

from lhydra.evaluation.document import Document
from lhydra.evaluation.report import mistakes, model, protocol, ranking, users
from lhydra.evaluation.report.rule_sets import rule_sets
from lhydra.evaluation.report.top import top
from lhydra.page import page
from lhydra.page.page import Section
from lhydra.page.words import defined, part


def render(document: Document) -> str:
    """Renders an evaluation.

    Args:
        document: an evaluation document; any part may be missing or null.

    Returns:
        One HTML page.

    Raises:
        MissingExtra: plotly or Jinja2 is not installed.
    """
    document = defined(document)
    sections = (
        Section("ranking", "Ranking", ranking.ranking(document)),
        Section("paired", "Against the baselines", ranking.paired(document)),
        Section("cascade", "What the shortlist costs", ranking.cascade(document)),
        Section("sources", "Where candidates come from", ranking.sources(document)),
        Section("cohorts", "Who is served well", users.cohorts(document)),
        Section("beyond", "Beyond accuracy", users.beyond(document)),
        Section("rules", "Rule sets", rule_sets(document)),
        Section("slices", "Cold corners", users.slices(document)),
        Section("classification", "The head as a classifier", model.classification(document), secondary=True),
        Section("importance", "What the model relies on", model.importance(document)),
        Section("training", "Training", model.training(document)),
        Section("mistakes", "Mistakes", mistakes.mistakes(document)),
        Section("data", "Leak checks", protocol.leaks(document)),
        Section("protocol", "Protocol", protocol.protocol(document)),
    )
    version = part(document.get("protocol")).get("lhydra_version", "")
    footer = (
        f"Made by Lhydra {version}. Intervals are 95 % bootstrap intervals over users. "
        "Everything on this page is also in the JSON document."
    )
    return page.render("evaluation", top(document), sections, footer)
