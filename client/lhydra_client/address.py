"""Addresses of servers: which are taken, which are on this machine, and which gRPC would reach through a proxy."""

import ipaddress
import os
import re
from collections.abc import Mapping

from lhydra_client.errors import InvalidRequest

_SCHEMES = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:")
_PORT = re.compile(r"0*[1-9][0-9]{0,4}")
_NO_HOST = re.compile(r"[\s/@,]")
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # in the order in which gRPC asks; the first that is set counts
_EXPECTED = "HOST:PORT with a port from 1 to 65535, [HOST]:PORT for IPv6, or unix:PATH"


def target(address: str) -> str:
    """Checks the address of a server.

    Args:
        address: HOST:PORT, of IPv6 with or without brackets, or a gRPC URI such as unix:PATH.

    Returns:
        What gRPC takes for it: an IPv6 address stands in brackets.

    Raises:
        InvalidRequest: none of them.
    """
    if not isinstance(address, str):
        raise InvalidRequest(f"address: found {str(address)[:80]!r}, expected {_EXPECTED}")
    if address.startswith(_SCHEMES):
        if address.partition(":")[2].strip("/"):
            return address
    else:
        host, _, port = address.rpartition(":")
        named = bool(host) and host.isprintable() and not _NO_HOST.search(host)
        if named and _PORT.fullmatch(port) and int(port) < 65_536:  # gRPC would take the port modulo 65536
            inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
            if _is_ipv6(inner):
                return f"[{inner}]:{port}"
            if inner == host and not set(host) & set(":[]"):
                return address
    raise InvalidRequest(f"address: found {address[:80]!r}, expected {_EXPECTED}")


def is_local(target: str) -> bool:
    """Says whether a server is on this machine, where no proxy has anything to do.

    Args:
        target: as `target` returned it.

    Returns:
        True of Unix sockets, loopback addresses and `localhost`.
    """
    return target.startswith("unix") or all(_is_loopback(host) for host in _hosts(target))


def proxy_variable(target: str, environ: Mapping[str, str] = os.environ) -> str:
    """Names the environment variable whose proxy gRPC goes through to reach a server.

    Args:
        target: as `target` returned it.
        environ: variables by name.

    Returns:
        `grpc_proxy`, `https_proxy` or `http_proxy`; "" where gRPC goes there directly.
    """
    name = next((name for name in _PROXIES if name in environ), "")
    if not environ.get(name) or is_local(target):
        return ""
    excepted = environ.get("no_grpc_proxy", environ.get("no_proxy", "")).split(",")
    hosts = _hosts(target)
    return "" if hosts and any(_is_within(hosts[0], entry.strip()) for entry in excepted) else name


def server_name(target: str) -> str:
    """Names a server as errors do, with what stands between it and us.

    Args:
        target: as `target` returned it.

    Returns:
        The target, and the variable of the proxy where there is one.
    """
    variable = proxy_variable(target)
    return f"{target} through the proxy of {variable}" if variable else target


def _hosts(target: str) -> list[str]:
    """The hosts that a target names, without brackets."""
    scheme = next((scheme for scheme in _SCHEMES if target.startswith(scheme)), "")
    names = target.removeprefix(scheme).rpartition("/")[2].split(",")
    return [_without_port(name) for name in names]


def _without_port(name: str) -> str:
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name if name.count(":") > 1 else name.partition(":")[0]


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None) or found
    return mapped.is_loopback or mapped.is_unspecified  # to connect to 0.0.0.0 is to connect to this machine


def _is_within(host: str, entry: str) -> bool:
    """Whether gRPC counts a host as one that `no_proxy` names: by its end, or as an address of a network."""
    if not entry:
        return False
    if host.lower().endswith(entry.lower()):
        return True
    try:
        return "/" in entry and ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
