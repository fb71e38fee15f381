"""One rolling evaluation: settings chosen on the valid fold, then every moment of the asked fold, as one document."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lhydra import __version__
from lhydra.console import with_progress
from lhydra.data.dataset import TRAIN, VALID, Dataset
from lhydra.domain import I64
from lhydra.errors import DataError
from lhydra.evaluation.lists import Recommends
from lhydra.evaluation.metrics import MRR_DEPTH
from lhydra.evaluation.rolling.baselines import BLEND, Baseline, baselines
from lhydra.evaluation.rolling.blend import Candidates, blended, candidates, fit_weights
from lhydra.evaluation.rolling.document import Choice, RollingDocument, heard_in_truth, make_document
from lhydra.evaluation.rolling.lists import FIGURES, Figure, K, Lister, belongs
from lhydra.evaluation.rolling.measure import KS, heard_share, mean_over_users, measure
from lhydra.evaluation.rolling.moments import Moments, Protocol, find_moments
from lhydra.evaluation.rolling.own import Scored, Scorer
from lhydra.evaluation.rolling.past import F64, Known, Past, fold_seen
from lhydra.evaluation.rolling.served import Served
from lhydra.evaluation.rolling.slices import slices
from lhydra.evaluation.unseen import describe

MAX_TUNED = 600  # moments of the valid fold that settings are chosen on


def evaluate_rolling(
    dataset: Dataset,
    protocol: Protocol,
    *,
    as_of: str = "test",
    known: int = 0,
    users: int = 0,
    seed: int = 0,
    names: Sequence[str],
    refit: bool = False,
    recommender: Recommends | None = None,
) -> RollingDocument:
    """Measures baselines on what users play next, each moment with what is known by then.

    Args:
        dataset: with single plays, split in time.
        protocol: what is asked when.
        as_of: the fold that is asked for.
        known: plays of the session that are known.
        users: how many users are drawn, 0 for all.
        seed: of that draw, of the moments that are tuned on, and of the intervals.
        names: of the baselines to measure.
        refit: whether, once chosen, baselines are fitted on the valid fold too.
        recommender: what is measured beside them; None for the baselines alone.

    Returns:
        The document; `protocol` does not yet say what was evaluated on which dataset.

    Raises:
        DataError: nothing to ask for.
    """
    moments = find_moments(dataset, protocol, as_of, known)
    if users:
        drawn = np.random.default_rng(seed).permutation(np.unique(moments.user))[:users]
        moments = moments.take(np.flatnonzero(np.isin(moments.user, drawn)))
    metric = "ndcg@20" if protocol == "next-track" else "ndcg@10"
    fair = baselines(bool((dataset.events.time > 0).any()))
    fair = {name: one for name, one in fair.items() if name in names}
    skipped = {name: "plays have no times" for name in names if name not in fair and name != BLEND}
    past = _past(dataset, TRAIN)
    tuned = _tuned_on(dataset, protocol, known, seed)
    chosen = choose(fair, past, tuned, metric)
    weights = blend_weights(fair, chosen, past, tuned, metric) if BLEND in names and len(fair) > 1 else {}
    if refit:
        past = _past(dataset, VALID)
    served = Served(recommender, dataset) if recommender is not None else None
    lists, shares = answer(fair, chosen, weights, past, moments, served)
    measured = {
        figure: {name: measure(found, moments, figure, dataset.n_tracks) for name, found in own.items()}
        for figure, own in lists.items()
    }
    parts = slices(lists["all"], measured["all"], moments, past, heard_in_truth(moments))
    return make_document(
        dataset, moments, measured, parts, shares, chosen, weights, skipped,
        {
            "split": dataset.info.split, "protocol": protocol, "as_of": as_of, "known": known, "refit": refit,
            "ks": list(KS), "mrr_depth": MRR_DEPTH, "users": users or "all", "seed": seed,
            "tuned_on": metric, "lhydra_version": __version__, "hash": "",
        },
    )  # fmt: skip


def _past(dataset: Dataset, last: int) -> Past:
    """Plays with what a fit on the folds up to `last` may see."""
    return Past(dataset.events, dataset.n_tracks, fold_seen(dataset.events, len(dataset.user_ids), last))


def _tuned_on(dataset: Dataset, protocol: Protocol, known: int, seed: int) -> Moments | None:
    """Moments of the valid fold, at most MAX_TUNED drawn at random; None where there are none."""
    try:
        moments = find_moments(dataset, protocol, "valid", known)
    except DataError:
        return None
    drawn = np.random.default_rng(seed).permutation(len(moments))[:MAX_TUNED]
    return moments.take(np.sort(drawn))


def choose(
    fair: Mapping[str, Baseline], past: Past, tuned: Moments | None, metric: str
) -> dict[str, dict[Figure, Choice]]:
    """Chooses the settings of each baseline for each figure by its own NDCG.

    Args:
        fair: the baselines.
        past: what is fitted on.
        tuned: moments of the valid fold; None where there are none: the usual values.
        metric: that decides.

    Returns:
        By name and figure.
    """
    chosen: dict[str, dict[Figure, Choice]] = {}
    knowns = [past.at(tuned, n) for n in range(len(tuned))] if tuned is not None else []
    tries = [(name, params) for name, one in fair.items() for params in one.grid]
    for name, params in with_progress(tries, len(tries), "choosing settings"):
        own = chosen.setdefault(name, {})
        if tuned is None:
            own.update({figure: Choice(fair[name].grid[0], 1, None) for figure in FIGURES})
            continue
        scorer = fair[name].fit(past, params)
        lists = _lists(Lister(past, 20), ((known, scorer(known)) for known in knowns), len(tuned))
        for figure, found in lists.items():
            value = mean_over_users(measure(found, tuned, figure, past.n_tracks, (10, 20)), metric)
            best = own.get(figure)
            if best is None or best.valid is None or value > best.valid:
                own[figure] = Choice(params, len(fair[name].grid), value)
    return chosen


def _lists(lister: Lister, scored: Any, n: int, k: int = 20) -> dict[Figure, I64]:
    """The lists of n moments, each with what is known and the scores."""
    found: dict[Figure, I64] = {figure: np.full((n, k), -1, np.int64) for figure in FIGURES}
    for place, (known, scores) in enumerate(scored):
        for figure, own in lister.lists(known, scores, FIGURES).items():
            found[figure][place, : len(own)] = own
    return found


@dataclass(frozen=True)
class Fitted:
    """The scorers of all settings that a figure chose; `of` names by figure and baseline the place of its scorer."""

    scorers: Sequence[Scorer]
    of: Mapping[Figure, Mapping[str, int]]

    def scores(self, known: Known) -> dict[Figure, dict[str, Scored]]:
        """Scores the tracks of a moment, with each scorer once.

        Args:
            known: of the moment.

        Returns:
            By figure and baseline.
        """
        scored = [scorer(known) for scorer in self.scorers]
        return {figure: {name: scored[n] for name, n in own.items()} for figure, own in self.of.items()}


def fit(fair: Mapping[str, Baseline], chosen: Mapping[str, Mapping[Figure, Choice]], past: Past) -> Fitted:
    """Fits every baseline with the settings that some figure chose.

    Args:
        fair: the baselines.
        chosen: their settings.
        past: what is fitted on.

    Returns:
        The scorers.
    """
    scorers: list[Scorer] = []
    of: dict[Figure, dict[str, int]] = {figure: {} for figure in FIGURES}
    for name, own in chosen.items():
        places: dict[str, int] = {}
        for figure, one in own.items():
            settings = json.dumps(one.params, sort_keys=True)
            if settings not in places:
                places[settings] = len(scorers)
                scorers.append(fair[name].fit(past, one.params))
            of[figure][name] = places[settings]
    return Fitted(scorers, of)


def _candidates(known: Known, scored: Mapping[str, Scored], figure: Figure, n_tracks: int) -> Candidates:
    """What the baselines say of the tracks that a figure is about."""
    heard = np.zeros(n_tracks, np.bool_)
    heard[known.tracks] = True
    fitting = []
    for tracks, scores in scored.values():
        fits = belongs(figure, heard[tracks])
        fitting.append((tracks[fits], scores[fits]))
    return candidates(fitting)


def blend_weights(
    fair: Mapping[str, Baseline],
    chosen: Mapping[str, Mapping[Figure, Choice]],
    past: Past,
    tuned: Moments | None,
    metric: str,
) -> dict[Figure, tuple[F64, float | None]]:
    """Chooses the weights of the blend for each figure.

    Args:
        fair: the baselines.
        chosen: their settings.
        past: what is fitted on.
        tuned: moments of the valid fold; None where there are none: equal weights.
        metric: that decides.

    Returns:
        By figure, a weight per baseline and the NDCG on the valid fold.
    """
    if tuned is None:
        return {figure: (np.ones(len(fair)), None) for figure in FIGURES}
    fitted, found = fit(fair, chosen, past), {figure: list[Candidates]() for figure in FIGURES}
    for n in with_progress(range(len(tuned)), len(tuned), "scoring for the blend"):
        known = past.at(tuned, n)
        for figure, scored in fitted.scores(known).items():
            found[figure].append(_candidates(known, scored, figure, past.n_tracks))
    weights: dict[Figure, tuple[F64, float | None]] = {}
    for figure in FIGURES:
        offsets, targets = tuned.only(belongs(figure, tuned.heard))
        start = np.zeros(len(fair))
        start[int(np.argmax([own[figure].valid or 0.0 for own in chosen.values()]))] = 1.0
        wanted = np.split(targets, offsets[1:-1])
        weights[figure] = fit_weights(found[figure], wanted, tuned.user, start, int(metric.split("@")[1]))
    return weights


def answer(
    fair: Mapping[str, Baseline],
    chosen: Mapping[str, Mapping[Figure, Choice]],
    weights: Mapping[Figure, tuple[F64, float | None]],
    past: Past,
    moments: Moments,
    served: Served | None = None,
) -> tuple[dict[Figure, dict[str, I64]], dict[str, F64]]:
    """Makes every list of every moment.

    Args:
        fair: the baselines.
        chosen: their settings.
        weights: of the blend; {} without it.
        past: what is fitted on.
        moments: q of them.
        served: what is measured beside them.

    Returns:
        By figure and name (q, K) lists, -1 padded; by name the share of heard tracks in the top 10 of `all`, by user.
    """
    lists: dict[Figure, dict[str, I64]] = {figure: {} for figure in FIGURES}
    fitted, lister, heard = fit(fair, chosen, past), Lister(past), []
    for n in with_progress(range(len(moments)), len(moments), "asking"):
        known = past.at(moments, n)
        heard.append(np.unique(known.tracks))
        found: dict[tuple[Figure, str], I64] = {}
        if served is not None:
            found |= served.lists(known)
        for figure, scored in fitted.scores(known).items():
            if weights:
                blend = blended(_candidates(known, scored, figure, past.n_tracks), weights[figure][0])
                scored = {**scored, BLEND: blend}
            found |= {(figure, name): lister.lists(known, one, (figure,))[figure] for name, one in scored.items()}
        for (figure, name), listed in found.items():
            if name not in lists[figure]:
                lists[figure][name] = np.full((len(moments), K), -1, np.int64)
            lists[figure][name][n, : len(listed)] = listed
    return lists, {name: heard_share(found, moments, heard) for name, found in lists["all"].items()}


def learned(dataset: Dataset, fitted: Mapping[str, Any]) -> str:
    """Tells why a model may have learned from what is asked for.

    Args:
        dataset: whose held-out plays are the targets.
        fitted: `split` of the dataset that the model was fitted on; {} where it is unknown.

    Returns:
        The reason, "" where it has surely not.
    """
    if not fitted:
        return "the model does not say what it was fitted on; train it again"
    ours = dataset.info.split
    if fitted.get("hash") == ours["hash"]:
        return ""
    newest, oldest = fitted.get("newest", {}), ours.get("oldest", {})
    if newest and oldest and 0 < max(newest["train"], newest["valid"]) < oldest["test"]:
        return ""
    return f"the model was fitted under another split ({describe(fitted)}; this dataset: {describe(ours)})"
