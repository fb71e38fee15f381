"""The Dockerfile and deploy/kubernetes under linters of their own; nothing here runs a container."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_supervisor import ROOT

FILES = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))


def lint(tool: str, *argv: str | Path) -> str:
    """What a tool says; an error of it fails the test."""
    found = shutil.which(tool, path=str(Path(sys.executable).parent))
    if not found:
        pytest.skip(f"E2E TOOLS ABSENT: {tool} (make e2e installs it)")
    ran = subprocess.run([found, *argv], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    assert lint("hadolint", ROOT / "Dockerfile") == ""


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_kubernetes_knows_every_field(file: Path) -> None:
    said = lint("kubernetes-validate", "--strict", file)
    assert said.count("passed for resource") == file.read_text().count("\nkind: ")
