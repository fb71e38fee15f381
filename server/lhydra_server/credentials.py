"""TLS of the gRPC port: certificates that change while it is open."""

from pathlib import Path
from typing import Any

import grpc

from lhydra_server.certificates import CERT, CLIENT_CA, KEY


class Certificates:
    """What a gRPC server shows, and the authority that it asks of its clients; safe to change from any thread.

    Args:
        copies: folder with CERT and KEY, and CLIENT_CA where clients must have a certificate too.
    """

    def __init__(self, copies: str) -> None:
        self._asks_clients = (Path(copies) / CLIENT_CA).exists()
        self.take(copies)
        self._fresh = False

    def take(self, copies: str) -> None:
        """Uses other certificates for connections from now on; those that are open stay.

        Args:
            copies: folder of them.
        """
        folder = Path(copies)
        pair = (folder / KEY).read_bytes(), (folder / CERT).read_bytes()
        authority = (folder / CLIENT_CA).read_bytes() if self._asks_clients else None
        self._shown = grpc.ssl_server_certificate_configuration([pair], authority)
        self._fresh = True

    def credentials(self) -> grpc.ServerCredentials:
        """Returns what a port is opened with."""
        fetch: Any = self._changed  # which may return None, though its type does not say so
        return grpc.dynamic_ssl_server_credentials(self._shown, fetch, self._asks_clients)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        if not self._fresh:
            return None  # gRPC keeps what it has: to read it again would cost every handshake
        self._fresh = False
        return self._shown
