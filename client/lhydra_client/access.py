"""What a client shows a server: TLS with its certificates, and a bearer token that does not travel in the clear."""

import os
import re
import ssl

import grpc

from lhydra_client.errors import InvalidRequest

Path = str | os.PathLike[str]
_TOKEN = re.compile(r"[!-~]{1,512}")


def credentials(*, tls: bool, ca: Path | None, cert: Path | None, key: Path | None) -> "grpc.ChannelCredentials | None":
    """Reads the certificates of a channel.

    Args:
        tls: whether there is TLS; a file says so too.
        ca: PEM file of the authorities that the server's certificate may be from; None for those that gRPC brings.
        cert: PEM file of the client's own certificate, for servers that ask for one.
        key: PEM file of its private key.

    Returns:
        What a channel is opened with; None without TLS.

    Raises:
        InvalidRequest: a file cannot be read, or is no such file.
    """
    if not (tls or ca or cert or key):
        return None
    if bool(cert) != bool(key):
        missing = "tls_key" if cert else "tls_cert"
        raise InvalidRequest(f"{missing}: found nothing, expected a file: tls_cert and tls_key go together")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    roots = None
    if ca is not None:
        roots = _read("tls_ca", ca)
        try:
            context.load_verify_locations(ca)
        except ssl.SSLError:
            raise InvalidRequest(f"tls_ca {ca}: found no certificate in it, expected some in PEM form") from None
    if cert is None or key is None:
        return grpc.ssl_channel_credentials(roots)
    chain, private = _read("tls_cert", cert), _read("tls_key", key)
    try:
        context.load_cert_chain(cert, key, lambda: "")  # never asks the terminal for a passphrase
    except ssl.SSLError:
        pair = f"tls_cert {cert}, tls_key {key}"
        raise InvalidRequest(f"{pair}: found no pair, expected a certificate and its key in PEM form") from None
    return grpc.ssl_channel_credentials(roots, private, chain)


def metadata(token: str | None, *, private: bool) -> tuple[tuple[str, str], ...] | None:
    """Makes the metadata of every call.

    Args:
        token: of the caller; "" or None for none.
        private: whether nobody else reads what is sent, or the caller does not mind.

    Returns:
        Names and values; None for none.

    Raises:
        InvalidRequest: no token can look like it, or it would travel in the clear.
    """
    if token is None or token == "":
        return None
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise InvalidRequest("token: found other characters, expected 1 to 512 of ASCII, without spaces")
    if not private:
        raise InvalidRequest(
            "token: found a server on another machine without TLS, expected tls, or insecure to send it in the clear"
        )
    return (("authorization", f"Bearer {token}"),)


def _read(name: str, path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise InvalidRequest(f"{name} {path}: found {error.strerror or error}, expected a PEM file") from None
