"""The section on rule sets: what each gains beside what it costs."""

from lhydra.evaluation.document import Document
from lhydra.evaluation.report.ranking import tone
from lhydra.page.blocks import Block, Grid, Panel, Read, Table
from lhydra.page.charts import dot_series, dots
from lhydra.page.words import number, part, share

GAINS = {
    "distance_by_tags": "distance by tags",
    "distance_by_co_listening": "distance by co-listening",
    "calibration_error": "calibration error",
    "novelty": "novelty (bits)",
}


def rule_sets(document: Document) -> list[Block]:
    """Draws the cost of each rule set, and lists what it gains.

    Args:
        document: without nulls; any part may be missing.

    Returns:
        The section, [] without its part of the document.
    """
    figures = document.get("rules", [])
    if not figures:
        return []
    points = [dict(part(one.get("paired")), mean=part(one.get("paired")).get("difference")) for one in figures[1:]]
    labels = [one["name"] for one in figures[1:]]
    chart = dots(labels, list(map(tone, points)), [dot_series("", points, signed=True)], "difference", reference=0.0)
    panels = [Panel("NDCG@10 less that without rules", chart)] if labels else []
    for key, title in GAINS.items():
        values = [{"mean": part(one.get("gains")).get(key)} for one in figures]
        if all(value["mean"] is not None for value in values):
            names = [one["name"] for one in figures]
            tones = ["quiet", *(["accent"] * len(labels))]
            panels.append(Panel(title.capitalize(), dots(names, tones, [dot_series("", values)], title)))
    rows = [
        [
            one["name"],
            number(one.get("ndcg@10")),
            share(one.get("coverage@10")),
            *(number(part(one.get("gains")).get(key)) for key in GAINS),
        ]
        for one in figures
    ]
    head = ["", "NDCG@10", "Coverage@10", *GAINS.values()]
    how = "The same users and targets, by each rule set and without rules. Distances are by tags and by who listens, "
    return [Read(f"{how}not by the vectors that diversity works on."), Grid(panels), Table(head, rows, numbers=1)]
