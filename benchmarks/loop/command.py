"""`python -m benchmarks.loop WORK --out FILE.json`: a service that learns from its plays, beside one that never does.

A synthetic world, whose truth is known, and two servers with the same bundle. Their listeners are the same people with
the same luck. Every week all of them listen; then one service runs `lhydra retrain` and goes on with what that
publishes, the other goes on as it is. Plays are recorded by both, so both know what each listener has heard.
WORK is a new folder, or that of a drill that was stopped between two weeks and goes on there.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.drills.server import serve
from benchmarks.drills.world import command
from benchmarks.loop.figures import figures, page, table
from benchmarks.loop.learning import begin, learn
from benchmarks.loop.listeners import PAST_WEEKS, WEEKS, Past, draw_week, listen, taste_of
from benchmarks.loop.plot import write_plot
from benchmarks.loop.service import LEARNING, NEVER, TIMEOUT_S, TWINS, Played, Shown, serve_week, write_source
from benchmarks.machine import machine, versions
from lhydra.commands.outputs import check_output, is_json_with
from lhydra.data.world import World, make_world
from lhydra.errors import LhydraError
from lhydra.files import write_text
from lhydra.lines import say
from lhydra_client import Client


@dataclass
class Drill:
    """What has happened so far. weeks: that are over; begun: or under way; seconds: that they took."""

    settings: dict[str, int]
    weeks: int = 0
    begun: int = 0
    seconds: float = 0.0
    turns: list[dict[str, Any]] = field(default_factory=list)
    played: dict[str, list[Played]] = field(default_factory=lambda: {twin: [] for twin in TWINS})
    shown: dict[str, list[Shown]] = field(default_factory=lambda: {twin: [] for twin in TWINS})

    @classmethod
    def read(cls, path: Path, settings: dict[str, int]) -> "Drill":
        """Reads a drill that was stopped.

        Args:
            path: its state.json; where there is none, a new drill begins.
            settings: that it must have.

        Returns:
            The drill.

        Raises:
            SystemExit: it was begun with other settings, or stopped within a week, part of which is recorded.
        """
        if not path.exists():
            return cls(settings)
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["settings"] != settings:
            raise SystemExit(f"{path}: found {found['settings']}, expected {settings}")
        if found["begun"] > found["weeks"]:
            raise SystemExit(
                f"{path}: found a drill stopped in week {found['weeks']}, expected one stopped after a week"
            )
        played = {twin: [Played(*one) for one in rows] for twin, rows in found["played"].items()}
        shown = {twin: [Shown(*one) for one in rows] for twin, rows in found["shown"].items()}
        return cls(settings, found["weeks"], found["begun"], found["seconds"], found["turns"], played, shown)

    def write(self, path: Path) -> None:
        """Replaces state.json.

        Args:
            path: of it.
        """
        write_text(path, json.dumps(vars(self)) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the drill, prints its table and writes it.

    Args:
        argv: the words after the program's name; None for those of this process.

    Returns:
        0, or 1 where learning has not raised the share of plays from lists, or FILE holds something else.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--tracks", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0, help="of the world and of all chance")
    parser.add_argument("--epochs", type=int, default=6, help="of `lhydra train`")
    parser.add_argument("--weeks", type=int, default=WEEKS, help="stop after this week; the same command goes on")
    parser.add_argument("--out", type=Path, help="JSON to write; a table (.md) and a plot (.svg) beside it")
    args = parser.parse_args(argv)
    try:
        check_output("--out", args.out, is_json_with("benchmark", "rows"))
    except LhydraError as error:
        print(error, file=sys.stderr)
        return 1
    settings = {name: getattr(args, name) for name in ("users", "tracks", "seed", "epochs")}
    args.work.mkdir(parents=True, exist_ok=True)
    drill = Drill.read(args.work / "state.json", settings)
    go_on(args.work, drill, args.weeks)
    found = figures(drill.played, drill.shown, drill.turns, args.seed)
    say(table(found))
    if args.out:
        words = " ".join(f"--{name} {value}" for name, value in settings.items())
        document = {
            "benchmark": "loop",
            "command": f"python -m benchmarks.loop WORK {words} --out FILE.json",
            "settings": settings,
            "seconds": round(drill.seconds),
            "machine": machine(),
            "versions": versions(),
            **found,
        }
        write_text(args.out, json.dumps(document, indent=1) + "\n")
        write_text(args.out.with_suffix(".md"), page(document))
        write_plot(args.out.with_suffix(".svg"), found)
    return 0 if found["last"]["share"]["low"] > 0 else 1


def go_on(folder: Path, drill: Drill, weeks: int) -> None:
    """Goes on until so many weeks are over.

    Args:
        folder: of the drill.
        drill: as it stands; grows.
        weeks: at most WEEKS.
    """
    settings = drill.settings
    world = make_world(settings["users"], settings["tracks"], 10 * settings["users"], settings["seed"])
    before = past_of(world, settings["seed"])
    if not drill.weeks:
        started = time.monotonic()
        _begin(folder, world, before, settings)
        drill.seconds += time.monotonic() - started
    with ExitStack() as stack:
        servers = {twin: stack.enter_context(serve(folder / twin, folder / f"{twin}.log", workers=1)) for twin in TWINS}
        past = {twin: [Past(own.tracks.copy(), own.times.copy()) for own in before] for twin in TWINS}
        for twin in TWINS:
            for one in drill.played[twin]:
                past[twin][one.user].tracks.append(one.track)
                past[twin][one.user].times.append(one.time)
        for week in range(drill.weeks, min(weeks, WEEKS)):
            started = time.monotonic()
            drill.begun = week + 1
            drill.write(folder / "state.json")
            taste, draws = taste_of(world, week), draw_week(world, week, settings["seed"])
            fresh: dict[str, list[Played]] = {}
            for twin in TWINS:
                with Client(servers[twin].address, timeout_s=TIMEOUT_S) as client:
                    fresh[twin], shown = serve_week(client, taste, draws, past[twin], week)
                drill.played[twin] += fresh[twin]
                drill.shown[twin] += shown
            if week + 1 < WEEKS:
                turn = learn(folder, world, week)
                servers[LEARNING].settled(turn["bundle_id"], workers=1)
                drill.turns.append(turn)
            drill.weeks = week + 1
            drill.seconds += time.monotonic() - started
            drill.write(folder / "state.json")
            share = {twin: sum(one.place > 0 for one in fresh[twin]) / len(fresh[twin]) for twin in TWINS}
            say(f"week {week}: {share}, {drill.turns[-1]}, {time.monotonic() - started:.0f} s")


def past_of(world: World, seed: int) -> list[Past]:
    """Returns what listeners play before there is a service.

    Args:
        world: the hidden truth.
        seed: of the drill.

    Returns:
        The past of each listener.
    """
    past = [Past() for _ in range(len(world.audience.age))]
    for week in range(-PAST_WEEKS, 0):
        taste, draws = taste_of(world, week), draw_week(world, week, seed)
        for user, own in enumerate(past):
            for session in range(int(draws.sessions[user])):
                own.add(listen(taste, draws, user, session, (), own))
    return past


def _begin(folder: Path, world: World, past: Sequence[Past], settings: dict[str, int]) -> None:
    """Makes the world's tables, the first bundle, and a store for each twin."""
    sizes = [("--" + name, settings[name]) for name in ("users", "tracks", "seed")]
    command("synth", folder / "world", *sum(sizes, ()), "--plays", 10 * settings["users"])
    source = write_source(folder, world, past)
    begin(folder, source, settings["epochs"])
    shutil.copytree(folder / LEARNING, folder / NEVER)
