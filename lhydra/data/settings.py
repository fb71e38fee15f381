"""Settings of `lhydra prepare`; apart from the code that uses them, so that `--help` needs no data tools."""

from dataclasses import dataclass

from lhydra.config import Settings, setting
from lhydra.errors import ConfigError, complain

PROTOCOLS = ("temporal", "leave-last", "random", "column", "next-session", "global-time")


@dataclass(frozen=True)
class PrepareSettings(Settings):
    """How to prepare a dataset. `valid` and `test` are fractions: of the plays (temporal), of the pairs (random)."""

    split: str | None = setting(
        None,
        "how plays are divided into train, valid and test; without it: column if there is one, else temporal"
        " if there are timestamps, else random",
        choices=PROTOCOLS,
    )
    seed: int = setting(0, "seed of the random split", low=0)
    valid: float = setting(0.1, "fraction of the plays in the valid fold (temporal, random)", low=0, below=1)
    test: float = setting(0.1, "fraction of the plays in the test fold (temporal, random)", low=0, below=1)
    valid_sessions: int = setting(1, "each user's sessions in the valid fold (next-session)", low=0)
    test_sessions: int = setting(1, "each user's sessions in the test fold (next-session)", low=1)
    valid_s: int = setting(86_400, "length of the valid fold in seconds (global-time)", low=0)
    test_s: int = setting(86_400, "length of the test fold in seconds (global-time)", low=1)
    gap_s: int = setting(1_800, "seconds left out before the valid and before the test fold (global-time)", low=0)
    strict: bool = setting(False, "refuse a source with bad rows instead of dropping them")

    def __post_init__(self) -> None:
        """Checks every field, and that plays are left for train."""
        super().__post_init__()
        if self.valid + self.test >= 1:
            found = f"{self.valid:g} and {self.test:g}"
            raise ConfigError(complain("prepare.valid and prepare.test", found, "fractions that leave some for train"))
