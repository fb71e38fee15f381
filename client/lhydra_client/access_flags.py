"""Flags of `lhydra query` for TLS and the token, and the environment in their place."""

import argparse
import os
from typing import Any

_FILES = {
    "tls_ca": "PEM file of the authorities that the server's certificate may be from",
    "tls_cert": "PEM file of your own certificate, for a server that asks for one",
    "tls_key": "PEM file of its private key",
    "token_file": "file with your token in it",
}
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the flags. The token itself has none: every user of a machine can see the arguments of a process.

    Args:
        parser: of an action.
    """
    parser.add_argument(
        "--tls", action="store_true", help="the server speaks TLS; so the files below say too (default: LHYDRA_TLS)"
    )
    for name, text in _FILES.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, metavar="FILE", help=f"{text} (default: {_variable(name)})")
    parser.add_argument(
        "--insecure", action="store_true", help="send the token to another machine without TLS too, readable to others"
    )


def read(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what `Client` is to be given.

    Args:
        args: as parsed. A flag counts before the environment, LHYDRA_TOKEN before LHYDRA_TOKEN_FILE.

    Returns:
        Keyword arguments.

    Raises:
        InvalidRequest: a variable or the file of the token is not one.
    """
    from lhydra_client.errors import InvalidRequest

    values: dict[str, Any] = {name: getattr(args, name) or os.environ.get(_variable(name)) or None for name in _FILES}
    path, token = values.pop("token_file"), os.environ.get("LHYDRA_TOKEN", "")
    if path and (args.token_file or not token):
        token = _token(path)
    word = os.environ.get("LHYDRA_TLS", "").lower()
    if word not in (*_YES, *_NO):
        raise InvalidRequest(f"environment variable LHYDRA_TLS: found {word[:40]!r}, expected true or false")
    return values | {"tls": args.tls or word in _YES, "token": token, "insecure": args.insecure}


def _variable(name: str) -> str:
    return f"LHYDRA_{name.upper()}"


def _token(path: str) -> str:
    from lhydra_client.errors import InvalidRequest

    try:
        with open(path, encoding="ascii") as file:
            words = file.read(4096).split()
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or "characters other than ASCII"
        raise InvalidRequest(f"token file {path}: found {found}, expected a file with a token") from None
    if len(words) != 1:
        raise InvalidRequest(f"token file {path}: found {len(words)} words, expected one token")
    return words[0]
