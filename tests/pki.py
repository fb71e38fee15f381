"""Certificates for tests: two authorities that know nothing of each other, and files of what they have issued."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trustme

PAST = {"not_before": datetime(2020, 1, 1, tzinfo=UTC), "not_after": datetime(2021, 1, 1, tzinfo=UTC)}


@dataclass
class Pki:
    """Files of an authority, of a server and of a client in a folder."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.authority = trustme.CA()
        self.ca = self.folder / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.cert, self.key = self.issue("server")
        self.client_cert, self.client_key = self.issue("client")

    def issue(self, name: str, **when: Any) -> tuple[Path, Path]:
        """Writes a certificate for this machine: (its chain, its key)."""
        made = self.authority.issue_cert("127.0.0.1", "localhost", common_name=name, **when)
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        cert.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        key.write_bytes(made.private_key_pem.bytes())
        key.chmod(0o600)
        return cert, key

    @property
    def server(self) -> dict[str, str]:
        """Settings of a server with TLS."""
        return {"tls_cert": str(self.cert), "tls_key": str(self.key)}

    @property
    def client(self) -> dict[str, Any]:
        """Arguments of a client that has a certificate."""
        return {"tls_ca": self.ca, "tls_cert": self.client_cert, "tls_key": self.client_key}
