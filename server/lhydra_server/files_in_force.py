"""The files that a server reads again when they change: rules, certificates, tokens. The supervisor watches them."""

import ssl
from pathlib import Path
from typing import Any

from lhydra.errors import ConfigError, complain
from lhydra_server import certificates, rules_file, tokens
from lhydra_server.access import Access
from lhydra_server.config import ServeSettings
from lhydra_server.watched_files import WatchedFiles


class FilesInForce:
    """All of them; `access` and `context` are what the metrics port checks its callers by, and its TLS.

    Args:
        settings: of the command.
        store: folder of the bundles.

    Raises:
        ConfigError: some are named without others that they need.
    """

    def __init__(self, settings: ServeSettings, store: Path) -> None:
        for flag, given, needed in (
            ("--tls-key", settings.tls_key, settings.tls_cert),
            ("--tls-cert", settings.tls_cert, settings.tls_key or settings.tls_client_ca),
        ):
            if needed and not given:
                raise ConfigError(complain(flag, "nothing", "a file: --tls-cert and --tls-key go together"))
        self.expires_s = 0  # of the server's certificate, in Unix seconds

        def check_rules(copies: Path, bundle_id: str) -> None:
            rules_file.rule_sets(str(copies), rules_file.columns_of(store / bundle_id))

        def check_certificates(copies: Path, bundle_id: str) -> None:
            self.expires_s = certificates.check(copies)

        def check_tokens(copies: Path, bundle_id: str) -> None:
            tokens.read(copies / tokens.COPY)

        pair = {certificates.CERT: settings.tls_cert, certificates.KEY: settings.tls_key}
        authority = {certificates.CLIENT_CA: settings.tls_client_ca}
        self._rules = WatchedFiles("rules", {rules_file.COPY: settings.rules}, check_rules)
        self._certificates = WatchedFiles(
            "certificates", pair | authority, check_certificates, secret=(certificates.KEY,)
        )
        self._tokens = WatchedFiles("tokens", {tokens.COPY: settings.token_file}, check_tokens, secret=(tokens.COPY,))
        self._all = (self._rules, self._certificates, self._tokens)
        self.access = Access()
        self.context: ssl.SSLContext | None = None

    def open(self, bundle_id: str) -> None:
        """Reads all files for the first time.

        Args:
            bundle_id: what will be served.

        Raises:
            ConfigError: one cannot be read, is wrong, or does not fit the bundle.
        """
        for watched in self._all:
            watched.open(bundle_id)
        self._use()

    def look(self, bundle_id: str) -> None:
        """Takes new versions that are sound; else says why not.

        Args:
            bundle_id: what is served.
        """
        changed = [watched.look(bundle_id) for watched in self._all]
        if any(changed):
            self._use()

    def close(self) -> None:
        """Removes the copies."""
        for watched in self._all:
            watched.close()

    @property
    def in_force(self) -> dict[str, Any]:
        """Returns the folders of their copies, by the fields of `WorkerSettings`."""
        return {"rules": self._rules.path, "certificates": self._certificates.path, "tokens": self._tokens.path}

    @property
    def told(self) -> dict[str, Any]:
        """Returns what `FleetStatus` says of them: the folders, and why the files themselves are not in force."""
        access = "; ".join(filter(None, (self._certificates.error, self._tokens.error)))
        return self.in_force | {"rules_error": self._rules.error, "access_error": access}

    @property
    def failures(self) -> dict[str, int]:
        """Returns how many versions of each were refused."""
        return dict(zip(("rules", "certificates", "tokens"), (one.failures for one in self._all), strict=True))

    def _use(self) -> None:
        self.access.take(self._tokens.path)
        if self._certificates.path:
            self.context = certificates.context_of(Path(self._certificates.path))
