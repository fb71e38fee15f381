"""`lhydra web`: HTTP and JSON before a server, its own or a running one."""

import argparse
import contextlib
import ipaddress
import os
import re
import signal
import socket
import sys
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from lhydra import config, logs
from lhydra.config import Settings, setting
from lhydra.errors import ConfigError, MissingExtra, UsageError, complain
from lhydra_server.address import check_exposure, joined
from lhydra_server.web.own_server import own_server

HELP = "a page, HTTP and JSON before a store's server, its own or a running one"
EXTRA = "web"
_NEEDED = ("grpc_health", "httptools", "starlette", "uvicorn")
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")


@dataclass(frozen=True)
class WebSettings(Settings):
    """Flags, YAML section `web` and environment LHYDRA_WEB_… in one."""

    address: str | None = setting(None, "a running server on this machine in place of STORE, HOST:PORT or unix:PATH")
    compare: str | None = setting(None, "what to show beside: with STORE a bundle's id or previous, else an address")
    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(8080, "port to listen on", low=1, high=65_535)
    name: str | None = setting(None, "what browsers call this host, where it listens beyond this machine")
    allow_plays: bool = setting(False, "pass plays on; without it only those of a token that may write")
    cors: str | None = setting(
        None, "origins of other sites' pages that may call, https://HOST[:PORT], by commas", listed=True
    )
    rate: float = setting(0.0, "requests a second of one address; 0 means any number", low=0, high=1_000_000)
    open: bool = setting(False, "show the page in a browser, where there is one")
    insecure: bool = setting(False, "listen beyond this machine without TLS")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments.

    Args:
        parser: of the command.
    """
    parser.add_argument(
        "store", nargs="?", type=Path, metavar="STORE", help="starts a server of its own for this store"
    )
    config.add_flags(parser, WebSettings)


def run(args: argparse.Namespace) -> int:
    """Serves until told to stop.

    Args:
        args: as parsed.

    Returns:
        The exit code.

    Raises:
        MissingExtra: what the gateway needs is not installed.
        ConfigError: it would listen beyond this machine, or nobody may listen there, or the server is on another one,
            or it is not said which server, or --cors names no origin.
        LhydraError: there is no such store, or its own server has ended.
    """
    settings = config.resolve("web", WebSettings, args)
    for module in _NEEDED:
        if find_spec(module) is None:
            raise MissingExtra(EXTRA, module)
    _check_local(settings.host, settings.insecure)
    if (args.store is None) == (settings.address is None):
        found = "neither" if args.store is None else "both"
        raise UsageError(complain("STORE and --address", found, "one of them: a store to serve, or a running server"))
    origins = _origins(settings.cors)
    logs.configure(args.log_level)
    import uvicorn

    from lhydra_server.web.application import LOCAL_NAMES, application
    from lhydra_server.web.connections import Connection
    from lhydra_server.web.gateway import Gateway

    names = (*LOCAL_NAMES, settings.host, *([settings.name] if settings.name else ()))
    url = f"http://{joined(settings.host.strip('[]'), settings.port)}"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn ends, and sends itself what ended it
    signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    with (
        contextlib.suppress(KeyboardInterrupt),
        _bound(settings.host, settings.port) as listening,
        _servers(args, settings) as (address, compared),
    ):
        gateway = Gateway(address, allow_plays=settings.allow_plays)
        other = Gateway(compared, compared=True) if compared else None
        print(f"listening on {url}", flush=True)
        if settings.open and not _show(url):
            print(f"--open: no browser with a window is here; open {url} in one", flush=True)
        served = uvicorn.Config(
            application(gateway, names, other, origins=origins, rate=settings.rate, store=args.store),
            access_log=False,
            log_config=None,
            server_header=False,
            http=Connection,
            ws="none",
            timeout_graceful_shutdown=5,
        )
        uvicorn.Server(served).run(sockets=[listening])
    return 0


@contextlib.contextmanager
def _servers(args: argparse.Namespace, settings: WebSettings) -> Iterator[tuple[str, str]]:
    """Where the server is, and the one to compare with, "" for none; own ones run until the block ends."""
    if settings.address is not None:
        compared = local_server(settings.compare, "--compare") if settings.compare is not None else ""
        yield local_server(settings.address), compared
        return
    from lhydra.bundle.listed import find_bundle_id
    from lhydra.bundle.manifest import current_bundle_id

    current_bundle_id(args.store)  # before a server is started, whose word it would be
    words = ["--log-level", args.log_level, *(["--config", str(args.config)] if args.config else [])]
    if settings.compare is not None:
        find_bundle_id(args.store, settings.compare, "--compare")
    with contextlib.ExitStack() as stack:
        address, compared = stack.enter_context(own_server(args.store, words)), ""
        if settings.compare is not None:
            words += ["--bundle", settings.compare, "--metrics-port", "0", "--log-answers", "0"]
            compared = stack.enter_context(own_server(args.store, words))
        yield address, compared


def _origins(cors: str | None) -> list[str]:
    """The origins that --cors names; refuses what no browser would send."""
    origins = cors.split(",") if cors is not None else []
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ConfigError(complain("--cors", repr(origin[:80]), "https://HOST or https://HOST:PORT, by commas"))
    return origins


def _show(url: str) -> bool:
    """Opens a browser that has a window of its own, where there is one: one in the terminal would take it."""
    if sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        with contextlib.suppress(OSError, webbrowser.Error):
            return webbrowser.open(url)
    return False


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens, before anybody is told that one does."""
    try:  # by a look-up, as `check_exposure` does it: bound without one, "" would be every address
        places = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return socket.create_server(places[0][4], family=places[0][0])
    except (OSError, UnicodeError) as error:
        found = str(getattr(error, "strerror", None) or error).lower().partition(" (while")[0]
        raise ConfigError(complain(f"--host {host} --port {port}", found, "a free port of this machine")) from None


def local_server(address: str, flag: str = "--address") -> str:
    """Finds a server of this machine: tokens for another one would travel in the clear.

    Args:
        address: HOST:PORT, [HOST]:PORT for IPv6, or unix:PATH.
        flag: that gave it.

    Returns:
        What gRPC connects to: numbers, as a name may stand for another machine when it is asked for again.

    Raises:
        ConfigError: it is none of these, or on another machine.
    """
    if address.startswith("unix:") and address.strip("/") != "unix:":
        return address
    host, _, port = address.rpartition(":")
    found = f"{address[:80]!r}"
    try:
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
            raise OSError
        numeric = {info[4][0] for info in socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)}
        if all(ipaddress.ip_address(str(one)).is_loopback for one in numeric):
            return joined(str(min(numeric, key=str)), port)
        found += ", on another machine"
    except (OSError, ValueError):  # UnicodeError and numbers of a zone are ValueErrors
        pass
    expected = "HOST:PORT or [HOST]:PORT of this machine, or unix:PATH: there is no TLS between them"
    raise ConfigError(complain(flag, found, expected))


def _check_local(host: str, insecure: bool) -> None:
    """The rule of the server, in the words of a gateway, which speaks no TLS."""
    try:
        check_exposure(host.strip("[]"), secured=False, insecure=insecure)
    except ConfigError:
        expected = "an address of this machine, or --insecure, behind a proxy with TLS"
        raise ConfigError(complain(f"--host {host}", "no TLS", expected)) from None
