"""Where tests find the real data sets; they are never part of the project (licences)."""

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("LHYDRA_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def real_data(name: str) -> Path:
    """Returns the folder of the real data set `name`; skips the calling test, saying so, when it is absent."""
    folder = ROOT / name
    if not folder.is_dir():
        pytest.skip(f"REAL DATA ABSENT: {name} (set LHYDRA_REAL_DATA)")
    return folder
