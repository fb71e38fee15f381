"""How a turn ended: one document, its page, and what of the run is kept."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from lhydra import __version__
from lhydra.files import write_text
from lhydra.retraining.page import render
from lhydra.retraining.settings import RetrainSettings
from lhydra.retraining.turn import PUBLISHED, Turn
from lhydra.retraining.work import State

FORMAT = 1
_REPORT = "retrain-"  # begins the name of a report, so that those of other commands beside it are let be
_KEPT = ("logs", "model")  # of a run that is over; all else may hold what people played


def document(state: State, settings: RetrainSettings) -> dict[str, Any]:
    """Tells a run as JSON.

    Args:
        state: at the end of the last step.
        settings: of the command.

    Returns:
        format, run_id, outcome, why, and what each step found.
    """
    *_, last = state.done.values()
    return {
        "format": FORMAT,
        "lhydra_version": __version__,
        "run_id": state.run_id,
        "started_s": state.started_s,
        "outcome": last["outcome"],
        "why": last["why"],
        "served_before": state.inputs["the served bundle"],
        "bundle_id": last.get("bundle_id", "") if last["outcome"] == PUBLISHED else "",
        "steps": state.done,
    }


def finish(turn: Turn, state: State, told: dict[str, Any]) -> Path:
    """Writes the report, keeps the model that is served now, and ends the run.

    Whatever of it was done before is done again: a run that is killed here ends the next time.

    Args:
        turn: the turn.
        state: with all its steps.
        told: what `document` returned.

    Returns:
        The page.
    """
    reports = turn.settings.place("store") / "reports"  # where `lhydra web STORE` shows them
    reports.mkdir(parents=True, exist_ok=True)
    page = reports / f"{_REPORT}{state.run_id}.html"
    write_text(page.with_suffix(".json"), json.dumps(told, indent=2, allow_nan=False) + "\n")
    write_text(page, render(told))
    made, served = turn.run / "model", turn.work / "served"
    if told["outcome"] == PUBLISHED and made.is_dir():
        shutil.rmtree(served, ignore_errors=True)
        made.rename(served)
    for path in turn.run.iterdir():
        if path.name not in _KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for name in sorted({one.stem for one in reports.glob(f"{_REPORT}*")}, reverse=True)[turn.settings.keep :]:
        for form in ("html", "json"):
            (reports / f"{name}.{form}").unlink(missing_ok=True)
    replace(state, outcome=told["outcome"]).write(turn.work)
    return page
