"""`lhydra serve`: serves the CURRENT bundle of a store over gRPC until told to stop."""

import argparse
from importlib.util import find_spec
from pathlib import Path

from lhydra import config, logs
from lhydra.errors import MissingExtra
from lhydra_server.config import ServeSettings
from lhydra_server.tracing import check_endpoint

HELP = "serve the CURRENT bundle of a store over gRPC; moves to a new bundle by itself"
EXTRA = "server"
_NEEDED = ("numpy", "lmdb", "faiss", "onnxruntime", "grpc_health", "grpc_reflection")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments.

    Args:
        parser: of the command.
    """
    parser.add_argument("store", type=Path, metavar="STORE", help="the store made by `lhydra index rebuild`")
    config.add_flags(parser, ServeSettings)
    parser.set_defaults(log_level="info")  # one line per request


def run(args: argparse.Namespace) -> int:
    """Serves until told to stop.

    Args:
        args: as parsed.

    Returns:
        The exit code.

    Raises:
        MissingExtra: what workers need is not installed.
        ConfigError: no address that spans can be sent to.
    """
    settings = config.resolve("serve", ServeSettings, args)
    for module in _NEEDED:  # workers need them, this process does not: say so before any is started
        if find_spec(module) is None:
            raise MissingExtra(EXTRA, module)
    check_endpoint(settings.trace_endpoint)
    logs.configure(args.log_level, as_json=True)
    from lhydra_server.supervisor import Supervisor

    return Supervisor(args.store, settings, log_level=args.log_level).run()
