"""`lhydra synth`: writes the synthetic listening world, a source for `lhydra prepare`."""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

from lhydra.config import Settings, add_flags, resolve, setting
from lhydra.console import progress

HELP = "write a synthetic listening world with learnable taste, as a source for `lhydra prepare`"
EXTRA = "data"


@dataclass(frozen=True)
class SynthSettings(Settings):
    """How large a world, and which one."""

    users: int = setting(2_000, "how many users", low=1)
    tracks: int = setting(3_000, "how many tracks", low=1)
    plays: int = setting(150_000, "how many rows of plays, exactly; at least one per user", low=1)
    seed: int = setting(0, "which world: the same seed and sizes give the same bytes", low=0)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `lhydra synth`.

    Args:
        parser: of the command.
    """
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write (a world made before is replaced)")
    add_flags(parser, SynthSettings)


def run(args: argparse.Namespace) -> int:
    """Writes the world and prints what to do with it.

    Args:
        args: of the command line.

    Returns:
        0.
    """
    from lhydra.data import listening
    from lhydra.data.synth import write_world

    settings = resolve("synth", SynthSettings, args)
    with progress(settings.plays, "plays") as on_plays:
        write_world(args.out, **asdict(settings), on_plays=on_plays)
    size_mb = sum(file.stat().st_size for file in args.out.iterdir()) / 1e6
    print(
        f"wrote {args.out}: {settings.users:,} users, {settings.tracks:,} tracks, {settings.plays:,} plays "
        f"(seed {settings.seed}, {size_mb:.1f} MB); what it hides is in {args.out / 'world.json'}"
    )
    print(
        f"planted: sessions of {listening.SESSION_PLAYS} plays, returns with chance age^-{listening.RETURN_DECAY},"
        " skips, taste that drifts, favourite artists, new tracks and users"
    )
    print(f"next: lhydra prepare {args.out} DATASET")
    return 0
