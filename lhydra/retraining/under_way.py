"""A turn from where it is: begun anew, or gone on with after whatever ended it."""

import hashlib
import json
import os
import shutil
import time
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

from lhydra import __version__
from lhydra.bundle.manifest import current_or_none
from lhydra.data.sources import EXTENSIONS
from lhydra.errors import ConfigError, LhydraError, complain
from lhydra.files import new_id, read_json
from lhydra.retraining.bundles import of_model
from lhydra.retraining.settings import RetrainSettings
from lhydra.retraining.turn import DOUBTED, NOTHING_NEW, STEPS, Say, Turn
from lhydra.retraining.work import State, fingerprint

_SERVED = "the served bundle"
_VARIABLES = tuple(f"LHYDRA_{section}_" for section in ("PREPARE", "TRAIN", "EVALUATE", "INDEX"))


def start(settings: RetrainSettings, config: Path | None, say: Say) -> State:
    """Finds where to go on: in the run that was interrupted, if all that it was begun with is as it was.

    Args:
        settings: of the command.
        config: the YAML file, None where there is none.
        say: told where it goes on, or why it begins anew.

    Returns:
        The state, written.

    Raises:
        ConfigError: a file that goes in is not there.
    """
    work = settings.place("work")
    before, inputs = State.read(work), _inputs(settings, config)
    if before.run_id and not before.outcome:
        if _published(before, settings, work):
            inputs[_SERVED] = before.inputs[_SERVED]  # it was this run that changed it
        differ = sorted(name for name in inputs if inputs[name] != before.inputs.get(name))
        if not differ:
            done = ", ".join(before.done) or "nothing"
            say(f"going on with run {before.run_id}; done: {done}")
            return before
        say(f"run {before.run_id} did not end, and {' and '.join(differ)} changed since: beginning anew")
    # Plays that were doubted are doubted again, not passed over: the alarm lasts until somebody looks.
    has_judged = before.outcome and before.outcome != DOUBTED
    judged, judged_s = (_judged(before), before.started_s) if has_judged else (before.judged, before.judged_s)
    now = datetime.now(UTC)
    state = State(new_id(now), int(now.timestamp()), inputs, judged=judged, judged_s=judged_s)
    state.write(work)
    return state


def go_on(turn: Turn, state: State) -> State:
    """Does the steps that are left, one after the other.

    Args:
        turn: the turn.
        state: where it is.

    Returns:
        The state at the end, with its outcome.

    Raises:
        LhydraError: a step failed; the state stays where it is.
    """
    if not state.done:
        shutil.rmtree(turn.run, ignore_errors=True)  # of the run before
        turn.run.mkdir(parents=True)
    for number, (name, text, step) in enumerate(STEPS, 1):
        if any("outcome" in found for found in state.done.values()):
            break
        if name in state.done:
            continue
        turn.say(f"[{number}/{len(STEPS)}] {text}")
        turn.done, turn.commands = state.done, []
        started = time.monotonic()
        found = step(turn)
        took_s = round(time.monotonic() - started, 2)
        state = state.with_step(name, {**found, "commands": turn.commands, "took_s": took_s})
        if name == "export" and _judged(state) == state.judged:
            found = {"outcome": NOTHING_NEW, "why": "no play was recorded since the run before"}
            state = state.with_step(name, {**state.done[name], **found})
        state.write(turn.work)
        turn.say(f"      {took_s:.1f} s")
    return state


def _inputs(settings: RetrainSettings, config: Path | None) -> dict[str, str]:
    """All that decides what a run does, but for the plays: a text each, by the name that people know it by."""
    own = [f"{one.name} {getattr(settings, one.name)}" for one in fields(settings)]
    own += sorted(f"{name} {value}" for name, value in os.environ.items() if name.startswith(_VARIABLES))
    said = config.read_text(encoding="utf-8") if config is not None else ""
    found = {
        "the configuration": _hash("\n".join([*own, said])),
        "the version of lhydra": __version__,
        _SERVED: current_or_none(settings.place("store")),
    }
    for name in ("source", "tracks", "plays"):
        path = getattr(settings, name)
        if path is not None:
            found[f"retrain.{name}"] = fingerprint(path)
    if settings.tracks is not None and not settings.tracks.name.endswith(EXTENSIONS):
        raise ConfigError(
            complain("retrain.tracks", str(settings.tracks), f"a file that ends in {', '.join(EXTENSIONS)}")
        )
    return found


def _judged(state: State) -> str:
    """What a run judges, as a hash: all that goes in but the served bundle, which it replaces itself."""
    given = {name: text for name, text in state.inputs.items() if name != _SERVED}
    return _hash(json.dumps([given, state.done.get("export", {}).get("sha256")], sort_keys=True))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _published(state: State, settings: RetrainSettings, work: Path) -> bool:
    """Whether the bundle that is served is the one that the interrupted run has made."""
    store = settings.place("store")
    if state.done.get("rebuild", {}).get("bundle_id") == current_or_none(store):
        return True  # killed while it ended, its model may be put away already
    try:
        model_id = read_json(work / "run" / "model" / "model.json", LhydraError, "a model")["model_id"]
    except (LhydraError, KeyError):
        return False
    found = of_model(store, model_id)
    return found is not None and found.bundle_id == current_or_none(store)
