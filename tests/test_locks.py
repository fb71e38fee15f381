"""deploy/locks agree with pyproject.toml and constraints.txt and are complete; an audit is never silent."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "deploy" / "locks"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {"client": (), "serve": ("server", "redis"), "dev": ("all",), "build": ()}
PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;]+)( ; [^\\]+?)?( \\)?")


def pins(text: str) -> dict[str, str]:
    """Versions by name."""
    found = (PIN.fullmatch(line.strip()) for line in text.splitlines())
    return {str(canonicalize_name(pin[1])): pin[2] for pin in found if pin}


def locked(name: str) -> dict[str, str]:
    return pins((LOCKS / f"{name}.txt").read_text())


def required(name: str) -> Iterator[Requirement]:
    """What pyproject.toml asks for by name, extras of extras included."""
    waiting = list(EXTRAS[name])
    texts = list(PROJECT["build-system"]["requires"] if name == "build" else PROJECT["project"]["dependencies"])
    if name == "dev":
        texts += PROJECT["dependency-groups"]["dev"]
    while waiting:
        texts += PROJECT["project"]["optional-dependencies"][waiting.pop()]
        waiting += [extra for text in texts if text.startswith("lhydra[") for extra in Requirement(text).extras]
        texts = [text for text in texts if not text.startswith("lhydra[")]
    yield from map(Requirement, texts)


@pytest.mark.parametrize("name", EXTRAS)
def test_a_lock_is_pins_and_hashes_and_nothing_else(name: str) -> None:
    for line in (LOCKS / f"{name}.txt").read_text().splitlines():
        if not line.startswith("#"):
            assert PIN.fullmatch(line) or re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line), line
        assert "://" not in line
    text = (LOCKS / f"{name}.txt").read_text()
    assert not re.search(r"==[^\n]*[^\\\n]\n", text), "a package without a hash"


@pytest.mark.parametrize("name", EXTRAS)
def test_a_lock_holds_what_pyproject_asks_for(name: str) -> None:
    found = locked(name)
    for requirement in required(name):
        if requirement.name != "torch":
            assert requirement.specifier.contains(found[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("name", EXTRAS)
def test_a_lock_has_the_versions_that_are_tested(name: str) -> None:
    tested = pins((ROOT / "constraints.txt").read_text())
    assert {package: tested.get(package, version) for package, version in locked(name).items()} == locked(name)


def test_what_two_locks_hold_is_one_version() -> None:
    client, serve, dev, build = map(locked, EXTRAS)
    assert {*client.items()} <= {*serve.items()} <= {*dev.items()} >= {*build.items()}
    assert set(client) == {"grpcio", "protobuf", "typing-extensions"}


def test_a_server_installs_no_tool_of_training_or_data_and_nobody_cuda() -> None:
    assert not set(locked("serve")) & {"torch", "pandas", "pyarrow", "duckdb", "onnx", "scipy", "rich"}
    assert not [name for name in locked("dev") if re.match(r"torch|triton|nvidia|cuda", name)]


@pytest.mark.parametrize("name", EXTRAS)
def test_a_lock_is_complete(name: str) -> None:
    """With hashes pip refuses what a lock does not name; asked of the packages as they are installed here."""
    found = locked(name)
    waiting = [(canonicalize_name(one.name), frozenset(one.extras)) for one in required(name) if one.name != "torch"]
    seen = set()
    while waiting:
        package, extras = waiting.pop()
        if (package, extras) in seen:
            continue
        seen.add((package, extras))
        try:
            asked = importlib.metadata.version(package) == found[package]
        except importlib.metadata.PackageNotFoundError:
            asked = False
        if not asked:
            continue  # of another version, as with the lowest ones, or of another platform
        for text in importlib.metadata.requires(package) or ():
            needed = Requirement(text)
            if any(needed.marker is None or needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                assert canonicalize_name(needed.name) in found, f"{package} needs {needed.name}"
                waiting.append((canonicalize_name(needed.name), frozenset(needed.extras)))


AUDIT = ROOT / "deploy" / "audit.py"
LOCK = "a==1 \\\n    --hash=sha256:0\nb==2 \\\n    --hash=sha256:1\n"
GOOD = '{"dependencies": [{"name": "a", "version": "1", "vulns": []}, {"name": "b", "version": "2", "vulns": []}]}'
SKIPPED = GOOD.replace('"version": "2", "vulns": []', '"skip_reason": "not found"')
FLAW = GOOD.replace("[]", '[{"id": "CVE-1"}]', 1)


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (f"echo '{GOOD}'", 0, "no known flaw in 2 packages"),
        (f"echo '{FLAW}'; exit 1", 1, "a: CVE-1"),
        ("echo 'Connection refused' >&2; exit 1", 2, "NOT RUN: Connection refused"),
        ("echo 'No known vulnerabilities found' >&2", 2, "NOT RUN: No known vulnerabilities found"),
        ("exit 0", 2, "NOT RUN: exit code 0"),
        (f"echo '{SKIPPED}'", 2, "NOT RUN for 1 of 2 packages"),
        ("""echo '{"dependencies": []}'""", 2, "NOT RUN for 2 of 2 packages"),
    ],
)
def test_an_audit_that_looked_nothing_up_says_so(tmp_path: Path, answer: str, code: int, said: str) -> None:
    (tmp_path / "lock.txt").write_text(LOCK)
    (tmp_path / "pip-audit").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "pip-audit").chmod(0o755)
    argv = [sys.executable, str(AUDIT), "./pip-audit", "lock.txt"]
    ran = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (code, f"lock.txt: {said}\n")
