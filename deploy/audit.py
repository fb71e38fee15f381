"""Asks pip-audit whether locks name a version with a known flaw, and never takes silence for a good answer.

python audit.py PIP_AUDIT LOCK...   exit code 0: looked up, none known; 1: flaws found; 2: not run, in whole or in part
"""

import json
import subprocess
import sys
from pathlib import Path


def audited(pip_audit: str, lock: str) -> int:
    """Looks up every version that a lock names, and prints a line about it.

    Args:
        pip_audit: the command.
        lock: a file of requirements with hashes.

    Returns:
        The exit code, as said above.
    """
    pins = {line.split("==")[0] for line in Path(lock).read_text(encoding="utf-8").splitlines() if line[:1].isalnum()}
    command = [pip_audit, "--strict", "--disable-pip", "--require-hashes", "--requirement", lock, "--format", "json"]
    ran = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True, check=False)
    try:
        found = json.loads(ran.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        lines = ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"]
        print(f"{lock}: NOT RUN: {lines[-1]}")
        return 2
    flaws = {(one["name"], flaw["id"]) for one in found for flaw in one.get("vulns", ())}
    for name, flaw in sorted(flaws):
        print(f"{lock}: {name}: {flaw}")
    unseen = len([one for one in found if "skip_reason" in one])
    if flaws:
        return 1
    if unseen or not found:
        print(f"{lock}: NOT RUN for {unseen or len(pins)} of {len(pins)} packages")
        return 2
    print(f"{lock}: no known flaw in {len(found)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(max([audited(sys.argv[1], lock) for lock in sys.argv[2:]], default=2))
