"""Certificates of the server as files: checked, and tried by a handshake before any worker gets them."""

import base64
import re
import ssl
from contextlib import suppress
from pathlib import Path

from lhydra.errors import ConfigError, complain

CERT, KEY, CLIENT_CA = "cert.pem", "key.pem", "client_ca.pem"  # copies, as `WatchedFiles` makes them
_PRIVATE = re.compile(rb"-----BEGIN ([A-Z ]*)PRIVATE KEY-----([A-Za-z0-9+/=\s]*)-----END")
_KINDS = tuple(map(bytes.fromhex, ("2a864886f70d010101", "2a8648ce3d030107", "2b81040022")))  # RSA, P-256, P-384


def context_of(copies: Path) -> ssl.SSLContext:
    """Opens certificates for a server of Python's own.

    Args:
        copies: folder with CERT and KEY, and CLIENT_CA where clients must have a certificate too.

    Returns:
        The server's side.

    Raises:
        ConfigError: a file is not what its name says, or the key is that of another certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for name in (CERT, CLIENT_CA):
        if (copies / name).exists():
            try:
                context.load_verify_locations(copies / name)
            except ssl.SSLError:
                raise ConfigError(complain(copies / name, "no certificate in it", "certificates in PEM form")) from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # one that does not trust the server's own
    if (copies / CLIENT_CA).exists():
        context.load_verify_locations(copies / CLIENT_CA)
        context.verify_mode = ssl.CERT_REQUIRED
    locked = ConfigError(complain(copies / KEY, "a key under a passphrase", "a private key without one"))

    def refuse() -> str:
        raise locked

    try:
        context.load_cert_chain(copies / CERT, copies / KEY, refuse)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            found, expected = "the key of another certificate", f"that of {copies / CERT}"
        elif str(error).startswith("[SSL"):
            found, expected = "none that can be used", "a private key in PEM form"
        else:
            found, expected = (error.reason or "no key").lower().replace("_", " "), "a private key in PEM form"
        raise ConfigError(complain(copies / KEY, found, expected)) from None
    if not _is_served((copies / KEY).read_bytes()):
        raise ConfigError(complain(copies / KEY, "a kind that gRPC cannot serve", "RSA, or EC on P-256 or P-384"))
    return context


def _is_served(key: bytes) -> bool:
    """Whether gRPC can serve a key of this kind: it opens a port with others, to which nobody can connect."""
    found = _PRIVATE.search(key)
    if found is None or found[1] == b"RSA ":
        return found is not None
    return any(kind in base64.b64decode(found[2]) for kind in _KINDS)  # it is named inside, as an object identifier


def check(copies: Path) -> int:
    """Tries certificates by a handshake with themselves.

    Args:
        copies: as `context_of` takes it.

    Returns:
        When the server's own ends, in Unix seconds.

    Raises:
        ConfigError: no client would take them: wrong, not valid yet or any more, or not made for servers.
    """
    context_of(copies)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(copies / CERT, copies / KEY)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself is trusted, whoever has signed it
    client.load_verify_locations(copies / CERT)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server)
    try:
        done = False
        while not done:
            with suppress(ssl.SSLWantReadError):
                theirs.do_handshake()
                done = True
            with suppress(ssl.SSLWantReadError):
                ours.do_handshake()
    except ssl.SSLCertVerificationError as error:
        expected = "a certificate that is valid now, for a server"
        raise ConfigError(complain(copies / CERT, error.verify_message, expected)) from None
    except ssl.SSLError as error:
        found = (error.reason or str(error)).lower().replace("_", " ")
        raise ConfigError(complain(copies / CERT, found, "a certificate that clients can connect by")) from None
    shown = theirs.getpeercert()
    assert shown is not None
    return int(ssl.cert_time_to_seconds(str(shown["notAfter"])))
