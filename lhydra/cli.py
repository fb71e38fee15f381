"""The one command `lhydra`: finds the subcommands of the installed parts, runs one, turns errors into one line.

A subcommand is a module in the entry-point group `lhydra.commands` with `HELP`, `EXTRA` (the extra that
carries its needs, "" for the base install), `configure(parser)` and `run(args) -> exit code`, and `SETTINGS`, the
class of its section, where `lhydra retrain` runs it. Its module
imports only the standard library at the top; the heavy imports happen in `run`. Exit code: 0 fine, 1 refused
or failed (one line on stderr), 2 usage, 130 interrupted, 143 ended by SIGTERM.
"""

import argparse
import difflib
import importlib
import itertools
import logging
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from types import FrameType, ModuleType
from typing import Any, NoReturn

from lhydra import __version__, logs
from lhydra.errors import LhydraError, MissingExtra, UsageError, printable
from lhydra.lines import let_go

GROUP = "lhydra.commands"
ORDER = (
    *("demo", "synth", "prepare", "train", "evaluate", "compare", "recommend"),
    *("users", "plays", "retrain", "index", "serve", "web", "query"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `lhydra ARGV`.

    Args:
        argv: the words after `lhydra`; by default those of this process.

    Returns:
        The exit code.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    with _heard() as came:
        return _main(argv, came)


def _main(argv: list[str], came: list[int]) -> int:
    name = "lhydra"
    try:
        args, command = _parse(argv)  # it imports the command, which takes a while
        name = f"lhydra {args.command}"
        logs.configure(args.log_level)
        code = _run(command, args)
        sys.stdout.flush()  # here, where a reader who has gone is known: at exit it would be a traceback
        return code
    except LhydraError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        is_terminated = signal.SIGTERM in came
        print(f"{name}: {'ended by SIGTERM' if is_terminated else 'interrupted'}", file=sys.stderr)
        return 143 if is_terminated else 130
    except BrokenPipeError:  # `lhydra … | head`
        let_go(sys.stdout)
        return 1
    except (OSError, MemoryError) as error:
        logging.getLogger(__name__).debug("unexpected", exc_info=True)
        print(f"{name}: {_reason(error)}", file=sys.stderr)
        return 1


@contextmanager
def _heard() -> Iterator[list[int]]:
    """Has SIGTERM end a command as Ctrl-C does, so that what it began is taken away; yields which of them came.

    The second one ends the process at once. Commands that stop in their own way replace the handlers. Where one comes
    while an object is taken away, Python drops the exception: it is raised again a moment later.
    """
    came: list[int] = []
    told, before = sys.unraisablehook, dict[int, Any]()

    def end(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for one in before:  # whichever comes next
            if signal.getsignal(one) is end:
                signal.signal(one, signal.SIG_DFL)
        raise KeyboardInterrupt

    def dropped(said: "sys.UnraisableHookArgs") -> None:
        if (
            said.exc_type is not KeyboardInterrupt
            or not came
            or threading.current_thread() is not threading.main_thread()
        ):
            told(said)
            return
        signal.signal(came[-1], end)
        threading.Timer(0.01, signal.pthread_kill, (threading.get_ident(), came.pop())).start()

    if threading.current_thread() is threading.main_thread():
        for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(number) is usual:
                before[number] = signal.signal(number, end)
    sys.unraisablehook = dropped
    try:
        yield came
    finally:
        sys.unraisablehook = told
        for name, handler in before.items():
            if signal.getsignal(name) in (end, signal.SIG_DFL):
                signal.signal(name, handler)


_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)$", re.DOTALL)  # of argparse, as it says it


class _Parser(argparse.ArgumentParser):
    """Says how a value that looks like a flag is given; flags may stand between places."""

    _words: Sequence[str] = ()
    _mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses, and remembers the words.

        Places are filled once all are known: argparse alone gives a place that may be left out nothing as soon as a
        flag follows the place before it.

        Args:
            args: the words.
            namespace: to fill.

        Returns:
            The namespace and the words that are left.
        """
        if self._mixing:
            return super().parse_known_args(args, namespace)
        self._words = args or ()
        if any(action.nargs == argparse.PARSER for action in self._actions):
            return super().parse_known_args(args, namespace)
        if "--" in self._words:
            found, left = super().parse_known_args(args, namespace)
        else:
            self._mixing = True
            try:
                found, left = super().parse_known_intermixed_args(args, namespace)
            finally:
                self._mixing = False
        if left:  # said here, with the usage of this command
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return found, left

    def error(self, message: str) -> NoReturn:
        """Ends the process with usage and one line.

        Args:
            message: what is wrong.
        """
        if message.endswith("expected one argument"):
            flag = message.removeprefix("argument ").partition(":")[0].split("/")[-1].strip()
            message += f"; one that begins with a dash is written {flag}=-VALUE"
            if f"{flag}-file" in self._option_string_actions:
                message += f", or stands in a file: {flag}-file FILE"
        if one := _CHOICE.search(message):
            near = difflib.get_close_matches(one[1], re.findall(r"[^\s',]+", one[2]), 1)
            message += "".join(f"; the nearest is {name}" for name in near)
        before = itertools.takewhile("--".__ne__, self._words)
        odd = next((word for word in before if word.startswith("-") and not self._is_flag(word)), "")
        if odd and message.startswith(("unrecognized arguments: -", "the following arguments")):
            flags = {flag.lstrip("-"): flag for flag in (*self._option_string_actions, "--log-level")}
            near = difflib.get_close_matches(odd.partition("=")[0].lstrip("-"), flags, 1)
            hints = [f"the nearest is {flags[name]}" for name in near]
            if not near or not odd.startswith("--"):  # an id, it may be
                hints.append("if it is an id, it comes last, after --")
            message += f"; {odd} is no flag: {'; '.join(hints)}"
        super().error(printable(message))

    def _is_flag(self, word: str) -> bool:
        """Whether argparse takes a word for a flag, abbreviated ones too, or for a negative number."""
        if self._negative_number_matcher.match(word):
            return True
        name, short = word.partition("=")[0], word.startswith("--")
        return any(flag == name or (short and flag.startswith(name)) for flag in self._option_string_actions)


def _reason(error: OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return str(error) or "out of memory"
    if error.strerror and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    return error.strerror or str(error) or type(error).__name__


def _run(command: ModuleType, args: argparse.Namespace) -> int:
    try:
        return int(command.run(args))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not command.EXTRA or missing.startswith("lhydra"):
            raise
        raise MissingExtra(command.EXTRA, missing) from None


def _parse(argv: list[str]) -> tuple[argparse.Namespace, ModuleType]:
    found = {entry.name: entry.value for entry in entry_points(group=GROUP)}
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # taken anywhere on the line
    common.add_argument("--log-level", choices=logs.LEVELS, help="default: warning, info for serve")
    parser = _Parser(prog="lhydra", description="Lhydra, a music recommender.", parents=[common])
    parser.add_argument("--version", action="version", version=f"lhydra {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    known = [name for name in ORDER if name in found] + sorted(set(found) - set(ORDER))
    named = next((word for word in argv if word in found), None)  # only that one's module is imported
    modules: dict[str, ModuleType] = {}
    for name in [named] if named else known:
        modules[name] = importlib.import_module(found[name])
        modules[name].configure(commands.add_parser(name, help=modules[name].HELP, description=modules[name].HELP))
    everywhere, rest = common.parse_known_args(argv)
    args = parser.parse_args(rest)
    args.log_level = everywhere.log_level or args.log_level or "warning"  # a command may have its own default
    return args, modules[args.command]


if __name__ == "__main__":
    sys.exit(main())
