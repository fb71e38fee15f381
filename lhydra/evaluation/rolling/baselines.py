"""What one would try first for what comes next, each with the settings that the valid fold chooses from."""

from collections.abc import Callable
from dataclasses import dataclass

from lhydra.evaluation.rolling.factors import fit_ials
from lhydra.evaluation.rolling.others import (
    fit_co_listening,
    fit_popular,
    fit_popular_lately,
    fit_transitions,
    fit_vsknn,
)
from lhydra.evaluation.rolling.own import Params, Scorer, fit_bll, fit_count, fit_recency
from lhydra.evaluation.rolling.past import Past

BLEND = "blend"
_OWN = ("own-count", "own-recency", "bll")  # know nothing of new tracks


@dataclass(frozen=True)
class Baseline:
    """How a baseline is fitted, and the settings to choose from: the first are usual values."""

    fit: Callable[[Past, Params], Scorer]
    grid: tuple[Params, ...] = ({},)


def baselines(clock: bool) -> dict[str, Baseline]:
    """Lists the baselines but the blend, which is made of them.

    Args:
        clock: whether plays have times; without, ages are counted in sessions.

    Returns:
        By name.
    """
    units = ("hours", "sessions") if clock else ("sessions",)
    found = {"popular": Baseline(fit_popular)}
    if clock:
        found["popular-lately"] = Baseline(fit_popular_lately, tuple({"days": days} for days in (7, 1, 3, 30)))
    return found | {
        "own-count": Baseline(fit_count),
        "own-recency": Baseline(fit_recency),
        "bll": Baseline(
            fit_bll, tuple({"unit": unit, "d": d} for unit in units for d in (0.5, 0.3, 0.8, 1.0, 1.2, 1.5, 2.0))
        ),
        "co-listening": Baseline(
            fit_co_listening,
            tuple(
                {"rows": rows, "unit": "plays", "d": d, "last": last, "norm": norm}
                for rows, d, last in (("sessions", 0.5, 200), ("sessions", 1.0, 200), ("users", 0.5, 1000))
                for norm in (0.5, 0.0)
            ),
        ),
        "transitions": Baseline(
            fit_transitions,
            tuple(
                {"unit": "plays", "d": d, "last": last, "norm": 0.5, "fall": fall}
                for d, last in ((1.0, 50), (0.5, 200), (2.0, 10), (4.0, 10))
                for fall in (1.0, 2.0)
            ),
        ),
        "ials": Baseline(
            fit_ials,
            tuple(
                {"factors": 64, "regularization": reg, "alpha": alpha, "unit": "plays", "d": d}
                for reg, alpha in ((20.0, 4.0), (5.0, 20.0))
                for d in (0.5, 0.0)
            ),
        ),
        "v-sknn": Baseline(
            fit_vsknn,
            tuple(
                {"neighbours": neighbours, "unit": "plays", "d": d, "last": last, "idf": idf}
                for neighbours in (100, 500)
                for d, last in ((1.0, 10), (1.0, 50))
                for idf in (True, False)
            ),
        ),
    }


NAMES = (*baselines(clock=True), BLEND)


def useless(name: str, figure: str) -> bool:
    """Tells whether a scorer has nothing to say of a figure.

    Args:
        name: of the scorer.
        figure: all, repeat or discovery.

    Returns:
        True for own listening, asked for new tracks.
    """
    return figure == "discovery" and name in _OWN
