"""The gate: what a finished bundle must show before it may become CURRENT. Every refusal names check, figure, limit.

A check has one of three verdicts: passed, refused, skipped (there is nothing to measure it by; the note says why).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from lhydra.bundle.arrays import blocks
from lhydra.bundle.bundle import Bundle
from lhydra.bundle.embedding import MAX_NORM_ERROR, norm_error
from lhydra.bundle.history_vectors import is_sound
from lhydra.bundle.listed import REFUSED
from lhydra.bundle.manifest import Gate, GateCheck
from lhydra.domain import I64, Hashes, Query, Recommendation, Repeat, UserState, no_hashes
from lhydra.errors import LhydraError
from lhydra.evaluation.beyond import inter_user_overlap
from lhydra.evaluation.bootstrap import F64, difference, sureness
from lhydra.evaluation.metrics import rank_metrics
from lhydra.evaluation.run import as_rows
from lhydra.evaluation.ties import none_yet
from lhydra.evaluation.ties import note as note_ties
from lhydra.queries import known_user
from lhydra.recommender import Recommender
from lhydra.timing import timed
from lhydra_index_builder.config import RebuildSettings
from lhydra_index_builder.depth import loss_at
from lhydra_index_builder.held_out import HeldOut, UserSample
from lhydra_index_builder.logged import NO_TRAFFIC, Traffic
from lhydra_index_builder.sweep import noise_of

TOP_K = 10
MIN_TRACKS = 20 * TOP_K  # of a catalogue whose lists may be compared: in a smaller one they coincide by chance
PASSED, SKIPPED, FORCED = "passed", "skipped", "forced"


@dataclass(frozen=True)
class Check:
    """One check: found and limit are numbers of the unit that `note` names, None where nothing was measured."""

    name: str
    verdict: str
    found: float | None
    limit: float | None
    note: str

    @property
    def line(self) -> str:
        """What a refusal says."""
        return f"{self.name}: found {self.found:.4g}, limit {self.limit:.4g} ({self.note})"


@timed("gate")
def check(
    folder: Path,
    new: Bundle,
    current: Bundle | None,
    why_none: str,
    users: UserSample,
    limits: RebuildSettings,
    traffic: Traffic = NO_TRAFFIC,
) -> list[Check]:
    """Returns what every check says of a bundle.

    Args:
        folder: where `new` lies.
        new: the bundle, opened from `folder`.
        current: what is CURRENT; None where there is nothing to compare with.
        why_none: why there is nothing, for the notes of the checks that are skipped.
        users: whose lists are compared.
        limits: what the gate lets through.
        traffic: logged requests whose lists are compared in place of those of users.

    Returns:
        The checks, in a fixed order.
    """
    recommender = Recommender(new)
    asked = [known_user(state, TOP_K) for state in users.states]
    lists = served_lists(recommender, asked)
    checks = [vectors(folder), recall(new, limits), cascade(new, limits), overlap(lists, new, limits)]
    if current is None:
        checks += [Check(name, SKIPPED, None, None, why_none) for name in ("quality", "catalogue", "changed lists")]
    else:
        served = Recommender(current)
        theirs = served_lists(served, asked)
        both, of = (lists, theirs), "users"
        if traffic.queries:
            both = served_lists(recommender, traffic.queries), served_lists(served, traffic.queries)
            of = traffic.words
        checks += [
            quality(recommender, lists, served, theirs, users, limits),
            catalogue(new, current, limits),
            changed(new, both[0], current, both[1], limits, of),
        ]
    return [*checks, requests(recommender, users.states, traffic)]


def verdict(checks: Iterable[Check], force: bool) -> str:
    """Returns the verdict of the gate.

    Args:
        checks: what `check` returned.
        force: whether to publish whatever they say.

    Returns:
        Passed, refused, or forced: refused, but to be published all the same.
    """
    refused = any(check.verdict == REFUSED for check in checks)
    return (FORCED if force else REFUSED) if refused else PASSED


def document(checks: Sequence[Check], against: str, verdict: str) -> Gate:
    """Returns `gate` of the manifest.

    Args:
        checks: what `check` returned.
        against: id of the bundle that was CURRENT, "" for none.
        verdict: what `verdict` returned.

    Returns:
        JSON values.
    """
    return {"verdict": verdict, "against": against, "checks": [cast(GateCheck, asdict(check)) for check in checks]}


def served_lists(recommender: Recommender, queries: Sequence[Query]) -> I64:
    """Returns the list that each query is served.

    Args:
        recommender: who serves.
        queries: n of them; each is asked for TOP_K tracks.

    Returns:
        (n, TOP_K) int64 rows, best first, -1 padded.
    """
    found = np.full((len(queries), TOP_K), -1, np.int64)
    for i, query in enumerate(queries):
        rows = recommender.recommend(replace(query, k=TOP_K)).rows
        found[i, : len(rows)] = rows
    return found


# -- the checks ---------------------------------------------------------------------------------------------


def vectors(folder: Path) -> Check:
    """Every retrieval vector is finite and of unit norm, every history vector finite.

    Args:
        folder: where the bundle lies.

    Returns:
        The check; found: the largest distance of a norm from 1.
    """
    worst = max((norm_error(block) for block in blocks(folder / "vectors.npy")), default=0.0)
    if not all(is_sound(block) for block in blocks(folder / "history.npy")):
        worst = np.inf
    found = worst if np.isfinite(worst) else 1e9  # JSON has no infinity
    return Check("vectors", _at_most(worst, MAX_NORM_ERROR), found, MAX_NORM_ERROR, "largest distance from norm 1")


def recall(new: Bundle, limits: RebuildSettings) -> Check:
    """The index finds what exact search finds, beyond the noise of the users, who may be few where an index is changed.

    Args:
        new: the bundle.
        limits: what the gate lets through.

    Returns:
        The check; found: the coverage that was measured when the index was built or changed.
    """
    manifest = new.manifest
    assert manifest is not None  # opened from a folder
    if "coverage" not in manifest.recall:
        return Check("recall", SKIPPED, None, None, "no users to measure it by")
    found, limit = manifest.recall["coverage"], manifest.index["target"] - limits.max_recall_miss
    verdict = PASSED if found + noise_of(manifest.recall) >= limit else REFUSED
    note = f"coverage of the exact nearest 100, give or take {noise_of(manifest.recall):.2g}"
    return Check("recall", verdict, found, limit, note)


def cascade(new: Bundle, limits: RebuildSettings) -> Check:
    """The candidates hold what the head would have put first.

    Args:
        new: the bundle.
        limits: what the gate lets through.

    Returns:
        The check; found: the share of NDCG@10 that is lost at the bundle's depth.
    """
    manifest = new.manifest
    assert manifest is not None  # opened from a folder
    if not manifest.cascade:
        return Check("cascade loss", SKIPPED, None, None, "no users to measure it by")
    found = loss_at(manifest.cascade, manifest.depth)
    note = f"of the head's NDCG@10, at depth {manifest.depth}"
    return Check("cascade loss", _at_most(found, limits.max_cascade_loss), found, limits.max_cascade_loss, note)


def overlap(lists: I64, new: Bundle, limits: RebuildSettings) -> Check:
    """Lists depend on who asks.

    Args:
        lists: (n, TOP_K) what `new` serves.
        new: the bundle.
        limits: what the gate lets through.

    Returns:
        The check; found: the mean share in common of two users' lists.
    """
    if len(lists) < 2 or new.catalog.n_eligible < MIN_TRACKS:
        return Check("overlap", SKIPPED, None, None, f"fewer than 2 users or {MIN_TRACKS} tracks")
    found = inter_user_overlap(lists, 0)
    if found is None:
        return Check("overlap", SKIPPED, None, None, "no user got a list")
    return Check("overlap", _at_most(found, limits.max_overlap), found, limits.max_overlap, "in common of two users")


def quality(
    new: Recommender,
    ours: I64,
    current: Recommender,
    theirs: I64,
    users: UserSample,
    limits: RebuildSettings,
) -> Check:
    """NDCG@10 on what users went on to play, paired with CURRENT's; refused when surely worse, and by enough.

    Args:
        new: serves the bundle.
        ours: (n, TOP_K) what it serves.
        current: serves CURRENT.
        theirs: (n, TOP_K) what that serves to the same users.
        users: these users, and what they went on to play.
        limits: what the gate lets through.

    Returns:
        The check; found: the share of CURRENT's NDCG@10 that is lost.
    """
    if users.held_out is None:
        return Check("quality", SKIPPED, None, None, users.why_none)
    a, b = (_ndcg(recommender, found, users.held_out) for recommender, found in ((current, theirs), (new, ours)))
    paired = difference(a, b, 0)
    high = paired["high"]
    before, after = float(a.mean()), float(b.mean())
    lost = 1 - after / before if before else 0.0
    note = f"NDCG@10 lost; {before:.4f} before, {after:.4f} now, difference {after - before:+.4f}"
    note += f" ({sureness(paired['low'], high)})"
    bad = high is not None and high < 0 and lost > limits.max_quality_loss
    if bad:  # users are asked again, for equal scores, only where these could decide
        ties = sum(_tie_width(recommender, users.states, users.held_out) for recommender in (current, new))
        if ties > before - after:
            bad, note = False, f"{note}, not certain: ties"
    return Check("quality", REFUSED if bad else PASSED, lost, limits.max_quality_loss, note)


def _tie_width(recommender: Recommender, states: Sequence[UserState], held_out: HeldOut) -> float:
    """How far the order of equal scores could move the mean NDCG@10."""
    targets, found = held_out.targets, none_yet(len(states))
    rows = as_rows(recommender.catalog.rows(held_out.hashes), len(recommender.catalog))[targets.tracks]
    for n, state in enumerate(states):
        note_ties(
            found, n, recommender, state, recommender.recommend(known_user(state, TOP_K + 1)), rows[targets.of(n)]
        )
    wanted = np.concatenate([np.sort(rows[targets.of(n)]) for n in range(len(states))])
    lowest, highest = found.ndcg(targets.offsets, wanted, len(recommender.catalog))
    return highest - lowest


def _ndcg(recommender: Recommender, lists: I64, held_out: HeldOut) -> F64:
    """(n,) NDCG@10 of each user."""
    targets, n = held_out.targets, len(recommender.catalog)
    rows = as_rows(recommender.catalog.rows(held_out.hashes), n)[targets.tracks]
    wanted = np.concatenate([np.sort(rows[targets.of(user)]) for user in range(len(targets))])
    return rank_metrics(lists, targets.offsets, wanted, n, (TOP_K,)).per_user[f"ndcg@{TOP_K}"]


def catalogue(new: Bundle, current: Bundle, limits: RebuildSettings) -> Check:
    """The tracks of CURRENT are still there.

    Args:
        new: the bundle.
        current: what is CURRENT.
        limits: what the gate lets through.

    Returns:
        The check; found: the share of CURRENT's tracks that may no longer be returned.
    """
    rows = new.catalog.rows(current.catalog.hashes)
    gone = (rows < 0) | np.isin(rows, new.catalog.removed)
    gone &= ~np.isin(current.catalog.hash_rows, current.catalog.removed)
    found = float(gone.sum() / max(1, current.catalog.n_eligible))
    note = f"of CURRENT's tracks, {int(gone.sum()):,}, gone"
    return Check("catalogue", _at_most(found, limits.max_shrink), found, limits.max_shrink, note)


def changed(new: Bundle, ours: I64, current: Bundle, theirs: I64, limits: RebuildSettings, of: str = "users") -> Check:
    """Users still see something they know.

    Args:
        new: the bundle.
        ours: (n, TOP_K) what it serves.
        current: what is CURRENT.
        theirs: (n, TOP_K) what that serves to the same users.
        limits: what the gate lets through.
        of: whose lists they are, in words.

    Returns:
        The check; found: the share of users whose two lists have no track in common.
    """
    as_ours = new.catalog.rows(_hashes_by_row(current)[np.maximum(theirs, 0)].ravel()).reshape(theirs.shape)
    as_ours[theirs < 0] = -1
    kept = ((ours[:, :, None] == as_ours[:, None, :]) & (ours >= 0)[:, :, None]).any(axis=(1, 2))
    both = (ours >= 0).any(axis=1) & (theirs >= 0).any(axis=1)
    if not both.any() or new.catalog.n_eligible < MIN_TRACKS:
        return Check("changed lists", SKIPPED, None, None, f"no users with lists, or fewer than {MIN_TRACKS} tracks")
    found = float(1 - kept[both].mean())
    note = f"of {of} whose top 10 share nothing with before"
    return Check("changed lists", _at_most(found, limits.max_changed_lists), found, limits.max_changed_lists, note)


def _hashes_by_row(bundle: Bundle) -> Hashes:
    by_row = np.empty(len(bundle.catalog), np.uint64)
    by_row[bundle.catalog.hash_rows] = bundle.catalog.hashes
    return by_row


def requests(recommender: Recommender, states: Sequence[UserState], traffic: Traffic = NO_TRAFFIC) -> Check:
    """Requests at the edges of what is allowed are answered as every request is promised.

    Args:
        recommender: serves the bundle.
        states: users to ask for.
        traffic: logged requests, of which the plain ones are asked too.

    Returns:
        The check; the note names the first request that was answered wrongly, and how.
    """
    wrong = ""
    for name, query in (*_edge_requests(recommender, states), *_plain(traffic)):
        try:
            wrong = wrong or broken_promise(recommender, query, recommender.recommend(query))
        except (LhydraError, ValueError) as error:
            wrong = wrong or str(error)
        if wrong:
            return Check("requests", REFUSED, 1, 0, f"{name}: {wrong}")
    return Check("requests", PASSED, 0, 0, "of cold user, heavy listener, k above depth answered wrongly")


def _edge_requests(recommender: Recommender, states: Sequence[UserState]) -> Iterator[tuple[str, Query]]:
    yield "cold user", Query(TOP_K)
    heavy = max(states, key=lambda state: len(state.heard), default=UserState())
    everything = recommender.catalog.hashes
    yield "heavy listener", known_user(heavy, TOP_K)
    yield "heavy listener, all but five heard", Query(TOP_K, heavy, True, everything[5:])
    yield "k above depth", known_user(heavy, recommender.depth + 7)


def _plain(traffic: Traffic) -> Iterator[tuple[str, Query]]:
    """Logged requests whose answer is wholly known beforehand but for its order."""
    for query in traffic.queries:
        if not query.filter and query.rules is None and query.repeat in (Repeat.EXCLUDE, Repeat.ALLOW):
            yield "logged request", query


def broken_promise(recommender: Recommender, query: Query, found: Recommendation) -> str:
    """Returns what is wrong with an answer.

    Args:
        recommender: who answered.
        query: what was asked.
        found: the answer.

    Returns:
        What is wrong, "" when the answer is as every answer must be.
    """
    catalog = recommender.catalog
    heard = no_hashes() if query.repeat is Repeat.ALLOW else query.state.heard
    excluded = catalog.rows(np.concatenate([query.exclude, heard]))
    excluded = np.union1d(excluded[excluded >= 0], catalog.removed)
    if len(found.rows) != min(query.k, len(catalog) - len(excluded)):
        return f"{len(found.rows)} tracks of {min(query.k, len(catalog) - len(excluded))}"
    if len(np.unique(found.rows)) != len(found.rows) or (found.rows < 0).any():
        return "a track twice, or none"
    if np.isin(found.rows, excluded).any():
        return "a track that was excluded or removed"
    if not np.isfinite(found.scores).all():
        return "a score that is not finite"
    return "" if (np.diff(found.logits) <= 0).all() else "tracks that are not best first"


def _at_most(found: float, limit: float) -> str:
    return PASSED if found <= limit else REFUSED
