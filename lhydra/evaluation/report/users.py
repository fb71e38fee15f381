"""Sections on people: who is served well, what their lists are like, and where there is little to learn from."""

from typing import Any

from lhydra.evaluation.document import NDCG, RECALL, Cohort, Document
from lhydra.evaluation.report.words import metric_name
from lhydra.page.blocks import Block, Cell, Grid, Panel, Read, Table, Tile, Tiles
from lhydra.page.charts import dot_series, dots
from lhydra.page.words import count, cut, number, part, share

COHORTS_SHOWN = 14  # of one kind, those with the most users
SLICE_NAMES = {
    "few_play_tracks": ("Rarely played tracks", "targets with at most {at_most} listeners in train"),
    "new_tracks": ("New tracks", "targets nobody played in train"),
    "new_users": ("New users", "users without a play in train"),
    "cold_users": ("Light listeners", "the fifth of the users with the fewest plays in train"),
}
BEYOND_NAMES = {
    "coverage": ("Coverage", "of the catalogue is recommended to somebody", "share"),
    "popularity_lift": ("Popularity lift", "above 1: lists are more mainstream than what people hear", "number"),
    "inter_user_overlap": ("Overlap between users", "of two random users' lists is the same", "share"),
    "intra_list_diversity": ("Diversity within a list", "0: all tracks alike; 1: unrelated", "number"),
    "novelty": ("Novelty", "bits; each bit halves the listeners of a recommended track", "number"),
    "genre_calibration": ("Genre calibration", "0: lists mix genres as their listener does", "number"),
}


def cohorts(document: Document) -> list[Block]:
    """The cascade by group of users.

    Args:
        document: without nulls; any part may be missing.

    Returns:
        The section, [] without its part of the document.
    """
    groups: dict[str, list[Cohort]] = {}
    for cohort in document.get("cohorts", ()):
        if cohort.get(NDCG):
            groups.setdefault(str(cohort.get("by")), []).append(cohort)
    if not groups:
        return []
    every = [cohort[NDCG] for members in groups.values() for cohort in members]
    ends = [end for one in every for end in (one.get("low"), one.get("mean"), one.get("high")) if end is not None]
    span = [max(0.0, min(ends) * 0.9), max(ends) * 1.06] if ends else None
    reference = part(document.get("ranking", {}).get("cascade", {}).get(NDCG)).get("mean")
    panels = []
    for by, members in groups.items():
        largest = sorted(members, key=lambda cohort: -cohort.get("users", 0))[:COHORTS_SHOWN]
        shown = [cohort for cohort in members if cohort in largest]
        labels = [f"{cut(cohort.get('name'), 22)} · {count(cohort.get('users'))}" for cohort in shown]
        left = f" ({len(members) - len(shown)} smaller ones left out)" if len(members) > len(shown) else ""
        series = [dot_series("", [cohort[NDCG] for cohort in shown])]
        chart = dots(labels, ["accent"] * len(shown), series, metric_name(NDCG), reference, span)
        panels.append(Panel(f"By {by}{left}", chart))
    how = "One dot per group of users with its 95 % interval and the number of users; the dotted line is everybody. "
    return [Read(f"{how}Wide intervals are small groups, not bad service."), Grid(panels, "flow")]


def beyond(document: Document) -> list[Block]:
    """What the lists are like, whoever is right.

    Args:
        document: without nulls; any part may be missing.

    Returns:
        The section, [] without its part of the document.
    """
    tiles = []
    for key, value in part(document.get("beyond_accuracy")).items():
        name, _, k = key.partition("@")
        if name in BEYOND_NAMES:
            title, note, kind = BEYOND_NAMES[name]
            shown = share(value) if kind == "share" else number(value, 2)
            tiles.append(Tile(f"{title}@{k}" if k else title, shown, [note]))
    if not tiles:
        return []
    how = "Accurate lists can still be dull: the same hits for everybody, or nothing that is new to anybody."
    return [Read(how), Tiles(tiles, 3, "small")]


def slices(document: Document) -> list[Block]:
    """Where there is little to learn from.

    Args:
        document: without nulls; any part may be missing.

    Returns:
        The section, [] without its part of the document.
    """
    found: dict[str, Any] = dict(part(document.get("slices")))
    if not found:
        return []
    rows: list[list[Cell]] = []
    for name, one in found.items():
        title, meaning = SLICE_NAMES.get(name, (name.replace("_", " "), ""))
        note = meaning.format(at_most=one.get("at_most", "few"))
        means = [number(one.get(metric)) for metric in (NDCG, RECALL)]
        rows.append([(title, note), count(one.get("users")), count(one.get("targets")), *means])
    everybody = document.get("ranking", {}).get("cascade", {}).get(NDCG)
    compare = f" Everybody together: {metric_name(NDCG)} {number(everybody.get('mean'))}." if everybody else ""
    head = ["", "users", "targets", metric_name(NDCG), metric_name(RECALL)]
    how = f"Where there is little to learn from, a good recommender degrades slowly.{compare}"
    return [Read(how), Panel("", Table(head, rows))]
