"""One turn of the loop: its steps in order, each by commands that a person could type, each in processes of its own.

A step that is killed is begun again; what it left is replaced. A step that has ended stands in state.json, and is not
done again by the same run. Nothing but `lhydra index rebuild` writes to the store.
"""

import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lhydra.bundle.manifest import current_or_none
from lhydra.config import read_yaml
from lhydra.errors import LhydraError
from lhydra.files import read_json, write_text
from lhydra.retraining.bundles import model_in_service, of_model
from lhydra.retraining.decide import decide
from lhydra.retraining.settings import RetrainSettings

PUBLISHED, NOTHING_NEW, NO_HELP, DOUBTED, REFUSED = "published", "nothing new", "no help", "doubted", "refused"
FROM_COMMAND_LINE = [sys.executable, "-P", "-m"]
Found = dict[str, Any]  # what a step found; `outcome` ends the turn, `why` says it in a line
Say = Callable[[str], None]


@dataclass
class Turn:
    """One turn under way. lock: the descriptor that its processes inherit. started_s: Unix
    seconds of its begin; judged_s: of that of the turn before, 0 for none. done: what each step before has found.
    """

    settings: RetrainSettings
    config: Path | None
    lock: int
    started_s: int
    judged_s: int
    say: Say
    done: Mapping[str, Found] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)  # of the step under way, as a person would type them

    @property
    def work(self) -> Path:
        """The work folder."""
        return self.settings.place("work")

    @property
    def run(self) -> Path:
        """What this run makes."""
        return self.work / "run"

    @property
    def store(self) -> Path:
        """Where bundles are published."""
        return self.settings.place("store")

    def section(self, name: str) -> dict[str, Any]:
        """Returns a section of the configuration as it stands there.

        Args:
            name: of a command.

        Returns:
            Values by key.
        """
        document = read_yaml(self.config) if self.config is not None else None
        found = document.get(name) if isinstance(document, dict) else None
        return dict(found) if isinstance(found, dict) else {}

    def lhydra(self, *words: object, config: Path | None = None, environ: Mapping[str, str] = os.environ) -> str:
        """Runs a command of `lhydra` with the configuration of the turn.

        Args:
            words: after `lhydra`.
            config: another configuration.
            environ: variables by name.

        Returns:
            What it printed on stdout.

        Raises:
            LhydraError: it failed.
        """
        config = config or self.config
        flags = [] if config is None or words[0] in ("compare", "plays") else ["--config", config]
        return self.python("lhydra.cli", *words, *flags, shown="lhydra", environ=environ)

    def python(self, module: str, *words: object, shown: str = "", environ: Mapping[str, str] = os.environ) -> str:
        """Runs a module in a process of its own; what it prints is kept in the folder of the run.

        Args:
            module: its name.
            words: its arguments.
            shown: how the command is called, by default as it is run.
            environ: variables by name.

        Returns:
            What it printed on stdout.

        Raises:
            LhydraError: it failed; the line is its last one.
        """
        argv = [*FROM_COMMAND_LINE, module, *map(str, words)]
        line = shlex.join([*(shown.split() or ["python", "-m", module]), *map(str, words)])
        self.commands.append(line)
        self.say(f"  $ {line}")
        log = (
            self.run / "logs" / f"{len(list((self.run / 'logs').glob('*.err'))):02}-{words[0] if shown else module}.err"
        )
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            ran = subprocess.run(
                argv, stdout=subprocess.PIPE, stderr=errors, env=environ, pass_fds=(self.lock,), check=False
            )
        if ran.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"exit code {ran.returncode}"
            raise LhydraError(f"{reason} ({line}; its messages: {log})")
        return ran.stdout.decode()


def export(turn: Turn) -> Found:
    """Takes the plays out of the log, as they are now: the run goes on with these, whatever comes in meanwhile.

    Args:
        turn: under way.

    Returns:
        The hash of the file.
    """
    from lhydra.files import copy, sha256

    out = turn.run / "export.parquet"
    turn.run.mkdir(parents=True, exist_ok=True)
    if turn.settings.plays is not None:
        copy(turn.settings.plays, out)
    else:
        users = turn.settings.users  # by the environment: an address may hold a password, and command lines are kept
        environ = dict(os.environ) if users is None else os.environ | {"LHYDRA_PLAYS_USERS": users}
        turn.lhydra("plays", "export", *(("--store", turn.store) if users is None else ()), out, environ=environ)
    return {"sha256": sha256(out)}


def screen(turn: Turn) -> Found:
    """Leaves out plays whose time cannot be, and puts the tracks file beside the plays of its tracks.

    Args:
        turn: under way.

    Returns:
        What was counted.
    """
    limits = turn.settings
    times = {"now": turn.started_s, "oldest": limits.oldest_s, "ahead": limits.ahead_s, "late": limits.late_s}
    words = [str(word) for name, value in times.items() for word in (f"--{name}", value)]
    words += ["--since", str(turn.judged_s), *(() if limits.tracks is None else ("--tracks", str(limits.tracks)))]
    said = turn.python("lhydra.retraining.screen", turn.run / "export.parquet", turn.run / "screened", *words)
    found: Found = json.loads(said)
    wrong = found["future"] + found["ancient"] + found["late"]
    share = wrong / max(1, found["came"])
    note = (
        f"{found['future']:,} of {found['came']:,} plays lie more than {limits.ahead_s:,} s ahead of the clock and "
        f"{found['ahead']:,} by less, {found['ancient']:,} before there was a log, {found['late']:,} were recorded "
        f"more than {limits.late_s / 86_400:g} days late: `max_clock` allows {limits.max_clock:.1%} of them"
    )
    bad = share > limits.max_clock
    found["check"] = {"name": "broken clock", "found": share, "limit": limits.max_clock, "bad": bad, "note": note}
    if bad:
        return found | {"outcome": DOUBTED, "why": f"broken clock: {note}"}
    return found


def prepare_all(turn: Turn) -> Found:
    """Prepares everything there is, with nothing held out for test: what the model that wins learns from in the end.

    Args:
        turn: under way.

    Returns:
        What dataset.json counts.
    """
    return _prepared(turn, turn.run / "full", 0.0, "screened")


def look(turn: Turn) -> Found:
    """Compares the new plays with those of before, and counts those that the served model has not seen.

    Args:
        turn: under way.

    Returns:
        What `lhydra.retraining.checks` found.
    """
    limits = turn.settings
    words = ["--holdout", limits.holdout, "--max-pushed", limits.max_pushed, "--min-own", limits.min_own]
    if current_or_none(turn.store):
        words += ["--store", turn.store]
    found: Found = json.loads(turn.python("lhydra.retraining.checks", turn.run / "full", *words))
    found["checks"].insert(0, turn.done["screen"]["check"])
    if found["new"] < limits.min_plays and found["served"]:
        why = f"{found['new']:,} plays that the served model does not know, of {limits.min_plays:,} wanted"
        return found | {"outcome": NOTHING_NEW, "why": why}
    doubts = [one for one in found["checks"] if one["bad"]]
    if doubts:
        return found | {"outcome": DOUBTED, "why": "; ".join(f"{one['name']}: {one['note']}" for one in doubts)}
    return found


def hold_out(turn: Turn) -> Found:
    """Prepares the same plays again, the newest of the new ones that came from no list held out for test.

    Plays that came from served lists are no judges of another model: those as new as what is held out are left out.

    Args:
        turn: under way.

    Returns:
        What dataset.json counts, and how many plays judge.
    """
    seen = turn.done["look"]
    words = ["--learned", seen.get("learned", 0), "--holdout", turn.settings.holdout]
    places = turn.run / "screened", turn.run / "judging"
    own: Found = json.loads(turn.python("lhydra.retraining.unprompted", *places, *words))
    test = own["judges"] / (seen["timed"] - own["left_out"]) if own["judges"] and seen["served"] else seen["test"]
    return _prepared(turn, turn.run / "held", test, "judging") | own


def train(turn: Turn) -> Found:
    """Trains the candidate on what lies before the plays held out, from the served model where that is at hand.

    Args:
        turn: under way.

    Returns:
        What model.json says of it.
    """
    settings = turn.settings
    known = [turn.work / "served", *(() if settings.model is None else (settings.model,))]
    return _trained(turn, "held", "candidate", warm=model_in_service(turn.store, known))


def judge(turn: Turn) -> Found:
    """Measures the candidate and what is served on the plays held out, user by user.

    Args:
        turn: under way.

    Returns:
        The comparison and the verdict.
    """
    how = ["--protocol", "static", "--as-of", "test"]
    if "baselines" not in turn.section("evaluate") and "LHYDRA_EVALUATE_BASELINES" not in os.environ:
        how += ["--baselines", "none"]
    held, run = turn.run / "held", turn.run
    turn.lhydra("evaluate", held, "--model", run / "candidate", "--json", run / "candidate.json", *how)
    if not turn.done["look"]["served"]:
        return {"why": "nothing was served before", "helps": True}
    turn.lhydra("evaluate", held, "--store", turn.store, "--json", run / "served.json", *how)
    turn.lhydra("compare", run / "served.json", run / "candidate.json", "--json", run / "compare.json")
    compared = read_json(run / "compare.json", LhydraError, "what `lhydra compare` wrote")
    found = decide(compared, turn.done["look"]["new_tracks"], turn.settings.margin)
    return found if found["helps"] else found | {"outcome": NO_HELP}


def refit(turn: Turn) -> Found:
    """Trains the model to publish, from everything: the plays held out until now are its newest.

    Args:
        turn: under way.

    Returns:
        What model.json says of it.
    """
    return _trained(turn, "full", "model", "--refit", warm=turn.run / "candidate")


def rebuild(turn: Turn) -> Found:
    """Rebuilds the index; its gate decides whether the bundle is published.

    Args:
        turn: under way.

    Returns:
        The bundle and its gate.
    """
    model_id = turn.done["refit"]["model_id"]
    found = of_model(turn.store, model_id)
    if found is None:
        try:
            turn.lhydra(
                "index",
                "rebuild",
                "--model",
                turn.run / "model",
                "--data",
                turn.run / "full",
                "--store",
                turn.store,
                "--json",
            )
        except LhydraError:
            if of_model(turn.store, model_id) is None:
                raise
        found = of_model(turn.store, model_id)
    assert found is not None  # rebuild has ended well, or its gate has refused
    told = {"bundle_id": found.bundle_id, "gate": found.gate, "n_tracks": found.n_tracks, "recipe": found.recipe}
    if current_or_none(turn.store) != found.bundle_id and found.gate["verdict"] == "refused":
        names = "; ".join(
            f"{one['name']}: {one['note']}" for one in found.gate["checks"] if one["verdict"] == "refused"
        )
        return told | {"outcome": REFUSED, "why": f"the gate refused {found.bundle_id}: {names}"}
    return told | {"outcome": PUBLISHED, "why": f"{found.bundle_id}; {turn.done['judge']['why']}"}


STEPS: tuple[tuple[str, str, Callable[[Turn], Found]], ...] = (
    ("export", "take the plays out of the log", export),
    ("screen", "leave out what no clock could have said", screen),
    ("prepare", "prepare all plays", prepare_all),
    ("look", "compare the new plays with those of before", look),
    ("hold_out", "hold the newest plays out", hold_out),
    ("train", "train a candidate", train),
    ("judge", "measure it beside what is served", judge),
    ("refit", "train it again with the plays that were held out", refit),
    ("rebuild", "rebuild the index, ask its gate, publish", rebuild),
)


def _prepared(turn: Turn, out: Path, test: float, plays: str) -> Found:
    """Prepares the source, then adds the plays of the log, if there are any, and divides all of them by time."""
    own = turn.run / "append.yaml"
    given = turn.section("prepare")
    kept = {name: given[name] for name in ("valid", "strict", "deduplicate") if name in given}
    write_text(own, json.dumps({"columns": turn.section("columns"), "prepare": kept}, indent=2))  # JSON is YAML
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LHYDRA_PREPARE_")}
    split, parts = ["--split", "temporal", "--test", f"{test:.9f}"], sorted((turn.run / plays).iterdir())
    first = ["prepare", turn.settings.place("source"), out, "--json", *([] if parts else split)]
    said = json.loads(turn.lhydra(*first))
    dropped = Counter(said["dropped"])
    for part in parts:
        more = ["prepare", part, out, "--append", *split, "--json"]
        said = json.loads(turn.lhydra(*more, config=own, environ=environ))
        dropped.update(said["dropped"])
    return {"counts": said["counts"], "split": said["split"], "dropped": dict(dropped)}


def _trained(turn: Turn, dataset: str, model: str, *flags: str, warm: Path | None) -> Found:
    """Trains a model, going on from another where it can, and from the last whole epoch where one was left behind."""
    out = turn.run / model
    words = ["train", turn.run / dataset, out, *flags]
    if (out / "checkpoint" / "last.safetensors").is_file():
        words.append("--resume")
    cold = "" if turn.settings.warm else "retrain.warm is off"
    if warm is not None and not cold:
        try:
            turn.lhydra(*words, "--warm", warm)
        except LhydraError as error:
            if "without --warm" not in str(error):
                raise
            cold = str(error)
            turn.say(f"      from the start: {cold}")
    if warm is None or cold:
        turn.lhydra(*words)
    said = read_json(out / "model.json", LhydraError, "what `lhydra train` wrote")
    kept = ("model_id", "quality", "fitted_on", "config", "warm_from")
    return {name: said.get(name) for name in kept} | ({"cold": cold} if cold else {})
