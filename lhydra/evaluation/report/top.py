"""The top of the page: what was evaluated, the verdict, the figures that count, and what must not be missed."""

from pathlib import Path

from lhydra.evaluation.document import NDCG, Document, Interval, Protocol
from lhydra.evaluation.report.words import OURS, metric_name, stage_name
from lhydra.page.blocks import Notice, Tile, Tiles, Top
from lhydra.page.words import count, interval, number, part, share

COVERAGE = "coverage@10"


def top(document: Document) -> Top:
    """Makes the top of the page.

    Args:
        document: without nulls; any part may be missing.

    Returns:
        What the template draws; leaks and alarms of the summary are notices only.
    """
    told = {f"{leak.get('verdict')}: {leak.get('check')}: {leak.get('found')}" for leak in document.get("leaks", ())}
    told |= set(part(document.get("beyond_accuracy")).get("alarms", ()))
    lines = [line[:1].upper() + line[1:] for line in map(str, document.get("summary", ())) if line not in told]
    verdict, *more = lines or ["How good are the recommendations?"]
    tiles = _figures(document)
    figures = [Tiles(tiles, len(tiles))] if tiles else []
    return Top(_subject(part(document.get("protocol"))), verdict, more, figures, _notices(document))


def _subject(protocol: Protocol) -> str:
    """What was evaluated on what, in a line."""
    what = protocol.get("bundle_id") or protocol.get("model_id") or protocol.get("store") or protocol.get("model")
    where = Path(str(protocol["dataset"])).name if protocol.get("dataset") else None
    fold = f"{protocol['as_of']} fold" if protocol.get("as_of") else None
    return " · ".join(str(one) for one in ("Lhydra evaluation", what, where, fold) if one)


def _figures(document: Document) -> list[Tile]:
    ranking = document.get("ranking", {})

    def tile(stage: str, label: str) -> Tile:
        value: Interval = ranking[stage][NDCG]
        notes = [metric_name(NDCG), interval(value)]
        return Tile(label, number(value.get("mean")), notes, main=stage == "cascade")

    tiles = [tile(name, stage_name(name)) for name in OURS if ranking.get(name, {}).get(NDCG)]
    means = {name: part(found.get(NDCG)).get("mean") for name, found in ranking.items() if name not in OURS}
    if rivals := [(mean, name) for name, mean in means.items() if mean is not None]:
        best = max(rivals)[1]
        tiles.insert(1, tile(best, f"{stage_name(best)}, best baseline"))
    if coverage := ranking.get("cascade", {}).get(COVERAGE):
        tiles.append(Tile(metric_name(COVERAGE), share(coverage.get("mean")), ["of the catalogue is recommended"]))
    counts = part(document.get("counts"))
    if counts.get("users") is not None:
        note = f"{count(counts.get('targets'))} targets among {count(counts.get('catalogue'))} tracks"
        tiles.append(Tile("Users", count(counts["users"]), [note]))
    return tiles


def _notices(document: Document) -> list[Notice]:
    """Leaks, then warnings and alarms; a quiet line when there is nothing."""
    leaks = document.get("leaks", [])
    alarms = list(map(str, part(document.get("beyond_accuracy")).get("alarms", ())))
    found = []
    for verdict, title in (("leak", "Leaks: these numbers flatter"), ("warning", "Worth a look in the data")):
        items = [f"{leak.get('check')}: {leak.get('found')}" for leak in leaks if leak.get("verdict") == verdict]
        found += [Notice(verdict, title, items)] if items else []
    found += [Notice("warning", "Alarms", alarms)] if alarms else []
    if leaks and not found:
        checks = f"{len(leaks)} check{'s' * (len(leaks) > 1)}"
        alarmed = ", no alarm in the lists" if "beyond_accuracy" in document else ""
        found.append(Notice("ok", "", [f"No leak in {checks} of the data{alarmed}."]))
    return found
