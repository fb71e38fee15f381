"""Who gets in, asked by another client: gRPC for Node, with certificates and tokens, against a server as it runs."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fake_serve import write_bundle
from tests.pki import Pki
from tests.test_access import CALLS, RIGHTS, TRANSPORTS, expected, settings, write_tokens
from tests.test_supervisor import B1, ROOT, fake, publish, running

MODULES = ROOT / ".cache" / "node"
PROTO = ROOT / "protos" / "lhydra_protos" / "v1" / "recommender.proto"
if not (shutil.which("node") and (MODULES / "node_modules" / "@grpc" / "grpc-js").is_dir()):
    pytest.skip("E2E TOOLS ABSENT: node, and @grpc/grpc-js (make e2e installs it by npm)", allow_module_level=True)


def asked(address: str, pki: Pki, transport: str, token: str) -> dict[str, str]:
    """The code of every method."""
    files = {"plain": (), "tls": ("ca",), "mtls": ("ca", "cert", "key")}[transport]
    access: dict[str, Any] = {name: str(pki.client[f"tls_{name}"]) for name in files} | {"token": token}
    script = ROOT / "tests" / "e2e" / "access.mjs"
    argv = ["node", str(script), str(MODULES), str(PROTO), address, json.dumps(access)]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, str] = json.loads(ended.stdout)
    return found


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_node_may_do_what_its_token_says(tmp_path: Path, transport: str) -> None:
    pki, store = Pki(tmp_path / "pki"), tmp_path / "store"
    write_bundle(store, B1, n=100)
    publish(store, B1)
    made = settings(pki, transport) | {"token_file": str(write_tokens(tmp_path))}
    with running(fake(store, workers=1, **made), tmp_path / "log") as server:
        for token in (*RIGHTS, "wrong", ""):
            codes = asked(server.address, pki, transport, token)
            for name, (right, _) in CALLS.items():
                reached = "OK" if codes[name] == "UNIMPLEMENTED" else codes[name]
                assert reached == expected(right, token), (name, token)
        if transport == "mtls":
            assert set(asked(server.address, pki, "tls", "wrong").values()) == {"UNAVAILABLE"}
