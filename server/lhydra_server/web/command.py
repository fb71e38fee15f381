"""`lhydra web`: HTTP and JSON before a running server."""

import argparse
import contextlib
import ipaddress
import socket
from dataclasses import dataclass
from importlib.util import find_spec

from lhydra import config, logs
from lhydra.config import Settings, setting
from lhydra.errors import ConfigError, MissingExtra, complain
from lhydra_server.address import check_exposure, joined

HELP = "HTTP and JSON before a running server: its methods, with no second definition"
EXTRA = "web"
_NEEDED = ("grpc_health", "starlette", "uvicorn")
MAX_CONNECTIONS = 1_000


@dataclass(frozen=True)
class WebSettings(Settings):
    """Flags, YAML section `web` and environment LHYDRA_WEB_… in one."""

    address: str = setting("127.0.0.1:50051", "the server on this machine, HOST:PORT or unix:PATH")
    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(8080, "port to listen on", low=1, high=65_535)
    name: str | None = setting(None, "what browsers call this host, where it listens beyond this machine")
    allow_plays: bool = setting(False, "pass plays on; without it only those of a token that may write")
    insecure: bool = setting(False, "listen beyond this machine without TLS")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments.

    Args:
        parser: of the command.
    """
    config.add_flags(parser, WebSettings)


def run(args: argparse.Namespace) -> int:
    """Serves until told to stop.

    Args:
        args: as parsed.

    Returns:
        The exit code.

    Raises:
        MissingExtra: what the gateway needs is not installed.
        ConfigError: it would listen beyond this machine, or nobody may listen there, or the server is on another one.
    """
    settings = config.resolve("web", WebSettings, args)
    for module in _NEEDED:
        if find_spec(module) is None:
            raise MissingExtra(EXTRA, module)
    _check_local(settings.host, settings.insecure)
    server = local_server(settings.address)
    logs.configure(args.log_level)
    import uvicorn

    from lhydra_server.web.application import LOCAL_NAMES, application
    from lhydra_server.web.connections import Connection
    from lhydra_server.web.gateway import Gateway

    names = (*LOCAL_NAMES, settings.host, *([settings.name] if settings.name else ()))
    app = application(Gateway(server, allow_plays=settings.allow_plays), names)
    made = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        http=Connection,
        ws="none",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=5,
    )
    with _bound(settings.host, settings.port) as listening, contextlib.suppress(KeyboardInterrupt):
        print(f"listening on http://{settings.host}:{settings.port}", flush=True)
        uvicorn.Server(made).run(sockets=[listening])
    return 0


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens, before anybody is told that one does."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family)
    except OSError as error:
        found = str(error.strerror or error).lower()
        raise ConfigError(complain(f"--host {host} --port {port}", found, "a free port of this machine")) from None


def local_server(address: str) -> str:
    """Finds a server of this machine: tokens for another one would travel in the clear.

    Args:
        address: HOST:PORT, [HOST]:PORT for IPv6, or unix:PATH.

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
    raise ConfigError(complain("--address", found, expected))


def _check_local(host: str, insecure: bool) -> None:
    """The rule of the server, in the words of a gateway, which speaks no TLS."""
    try:
        check_exposure(host.strip("[]"), secured=False, insecure=insecure)
    except ConfigError:
        expected = "an address of this machine, or --insecure, behind a proxy with TLS"
        raise ConfigError(complain(f"--host {host}", "no TLS", expected)) from None
