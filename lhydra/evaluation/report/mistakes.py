"""The section on mistakes: how often and where lists fail, and what that looks like for single tracks and people."""

from typing import Any

from lhydra.evaluation.document import NDCG, Document, Mistakes, ServedUser
from lhydra.evaluation.report.words import metric_name
from lhydra.page.blocks import Block, Cell, Chart, Folded, Heading, Panel, Read, Table, User
from lhydra.page.charts import bars
from lhydra.page.words import count, cut, number, part

USERS_SHOWN = 4  # worst users before the fold of the page
PARTS = (
    ("in the list", "accent", "hit"),
    ("lost in reranking", "accent-soft", "lost_in_rerank"),
    ("lost in retrieval", "quiet-soft", "lost_in_retrieval"),
)


def mistakes(document: Document) -> list[Block]:
    """Where targets get lost, the tracks missed most and the users served worst.

    Args:
        document: without nulls; any part may be missing.

    Returns:
        The section, [] without its part of the document.
    """
    found = part(document.get("mistakes"))
    blocks: list[Block] = []
    if chart := _lost(found):
        how = "What users went on to play: in their list, on the shortlist but ranked too low, or never retrieved. "
        blocks.append(Panel("Where targets get lost", chart, f"{how}Below, by listeners of the track in train."))
    if rows := _tracks(found):
        head = ["", "users who wanted it", "users who got it", "listeners in train"]
        blocks.append(Panel("Tracks missed most", Table(head, rows)))
    if users := list(map(_user, found.get("users", ()))):
        blocks += [Heading("Users served worst"), Read("Does the list look wrong, or just unlucky?")]
        blocks += users[:USERS_SHOWN]
        rest = users[USERS_SHOWN:]
        blocks += [Folded(f"{len(rest)} more", rest)] if rest else []
    how = "How often and where lists fail, and what that looks like for single tracks and people."
    return [Read(how), *blocks] if blocks else []


def _lost(found: Mistakes) -> Chart | None:
    whole: dict[str, Any] = dict(part(found.get("by_stage")))
    if not whole.get("targets"):
        return None
    bins: list[dict[str, Any]] = [{**row} for row in found.get("by_popularity", ()) if row.get("targets")]
    rows = [{"bin": "all targets", **whole}, *bins]
    labels = [f"{cut(row.get('bin'), 26)} · {count(row['targets'])}" for row in rows]
    counts = [(name, tone, [row.get(key, 0) for row in rows]) for name, tone, key in PARTS]
    return bars(labels, counts, [row["targets"] for row in rows])


def _tracks(found: Mistakes) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for track in found.get("tracks", ()):
        track_id = str(track.get("track_id"))
        name = (str(track["title"]), track_id) if track.get("title") else track_id
        counts = (track.get("targets"), track.get("found"), track.get("listeners"))
        rows.append([name, *map(count, counts)])
    return rows


def _user(user: ServedUser) -> User:
    lists = [
        ("Had listened to", False, user.get("history", [])),
        ("Was recommended", True, user.get("list", [])),
        ("Went on to play, not in the list", False, user.get("missed", [])),
    ]
    return User(str(user.get("user_id")), f"{metric_name(NDCG)} {number(user.get(NDCG))}", lists)
