"""`lhydra retrain`: one turn of the loop, from the log of plays to the next bundle, or to why there is none."""

import argparse
import json
import signal
import sys
from importlib.metadata import entry_points
from types import FrameType

from lhydra import config
from lhydra.errors import ConfigError, StoreLocked, complain
from lhydra.lines import say
from lhydra.retraining.settings import RetrainSettings

HELP = "learn again from what was played: export, prepare, train, compare with what is served, rebuild, publish"
EXTRA = "all"
USAGE, NOT_PUBLISHED, REFUSED, LOCKED = 2, 3, 4, 5  # exit codes; 0 published, 1 failed, 130 interrupted
SECTIONS = ("prepare", "train", "evaluate", "index")  # of the commands that it runs
_EPILOG = """\
exit codes
  0    published: servers on the store move to the new bundle by themselves
  1    failed; the next call goes on where this one ended
  2    flags or configuration that cannot be used
  3    nothing published, and nothing wrong: too few new plays, or a candidate that would not help
  4    refused: the new plays look poisoned, or the gate of the rebuild refused the bundle
  5    another run holds the work folder
  130  interrupted, as by SIGTERM; the next call goes on where this one ended

example
  lhydra retrain --config loop.yaml
  with loop.yaml:
    retrain: {source: listening/, store: store, work: retrain}
    train: {epochs: 16}              # the sections of prepare, train, evaluate and index hold here too
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `lhydra retrain`.

    Args:
        parser: of the command.
    """
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    config.add_flags(parser, RetrainSettings)
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON, nothing else")


def run(args: argparse.Namespace) -> int:
    """Runs one turn, or goes on with the one that was interrupted.

    Args:
        args: of the command line.

    Returns:
        The exit code.

    Raises:
        LhydraError: a step failed.
    """
    from lhydra.page.page import tools
    from lhydra.retraining import work

    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        settings = _settings(args)
        tools()  # refuses before any work where no report can be drawn
        with work.locked(settings.place("work")) as lock:
            return _turn(settings, args, lock)
    except (ConfigError, StoreLocked) as error:
        print(f"lhydra retrain: {error}", file=sys.stderr)
        return USAGE if isinstance(error, ConfigError) else LOCKED
    finally:
        signal.signal(signal.SIGTERM, before)


def _settings(args: argparse.Namespace) -> RetrainSettings:
    """The settings, once all that is named is there and every section can be read."""
    settings = config.resolve("retrain", RetrainSettings, args)
    for name in ("source", "store", "work"):
        settings.place(name)
    for inner, outer in (("work", "source"), ("store", "source"), ("work", "store")):
        if settings.place(inner).resolve().is_relative_to(settings.place(outer).resolve()):
            found, expected = f"a folder in retrain.{outer}", "another place: a run changes it"
            raise ConfigError(complain(f"retrain.{inner} {settings.place(inner)}", found, expected))
    _check_sections(args)
    return settings


def _turn(settings: RetrainSettings, args: argparse.Namespace, lock: int) -> int:
    from lhydra.retraining import result
    from lhydra.retraining.turn import Turn
    from lhydra.retraining.under_way import go_on, start

    def tell(line: str) -> None:
        say(line, sys.stderr if args.json else sys.stdout)

    state = start(settings, args.config, tell)
    turn = Turn(settings, args.config, lock, state.started_s, state.judged_s, tell)
    state = go_on(turn, state)
    document = result.document(state, settings)
    path = result.finish(turn, state, document)
    if args.json:
        print(json.dumps(document, allow_nan=False))
    else:
        print(f"{document['outcome']}: {document['why']}")
        print(f"report: {path}")
    return {"published": 0, "nothing new": NOT_PUBLISHED, "no help": NOT_PUBLISHED}.get(document["outcome"], REFUSED)


def _check_sections(args: argparse.Namespace) -> None:
    """Refuses a key or value of another section now, which its command would refuse after hours."""
    modules = {entry.name: entry for entry in entry_points(group="lhydra.commands")}
    for name in SECTIONS:
        settings = modules[name].load().SETTINGS
        found = config.resolve(name, settings, argparse.Namespace(config=args.config))
        for key, allowed in (("split", (None, "temporal")), ("append", (False,)), ("protocol", ("static",))):
            if (value := getattr(found, key, allowed[0])) not in allowed:
                expected = f"{allowed[-1]}: the newest plays judge" if name != "index" else str(allowed[-1])
                raise ConfigError(complain(f"{name}.{key}", str(value), expected))


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ends the step under way and then the run, as Ctrl-C does."""
    raise KeyboardInterrupt
