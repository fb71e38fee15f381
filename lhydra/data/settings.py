"""Settings of `lhydra prepare`; apart from the code that uses them, so that `--help` needs no data tools."""

from dataclasses import dataclass

from lhydra.config import Settings, setting
from lhydra.errors import ConfigError, complain

PROTOCOLS = ("temporal", "leave-last", "random", "column")


@dataclass(frozen=True)
class PrepareSettings(Settings):
    """How to prepare a dataset. `valid` and `test` are fractions of the plays, for temporal and random."""

    split: str | None = setting(
        None,
        "how plays are divided into train, valid and test; without it: column if there is one, else temporal"
        " if there are timestamps, else random",
        choices=PROTOCOLS,
    )
    seed: int = setting(0, "seed of the random split", low=0)
    valid: float = setting(0.1, "fraction of the plays in the valid fold (temporal, random)", low=0, below=1)
    test: float = setting(0.1, "fraction of the plays in the test fold (temporal, random)", low=0, below=1)
    strict: bool = setting(False, "refuse a source with bad rows instead of dropping them")

    def __post_init__(self) -> None:
        """Checks every field, and that plays are left for train."""
        super().__post_init__()
        if self.valid + self.test >= 1:
            found = f"{self.valid:g} and {self.test:g}"
            raise ConfigError(complain("prepare.valid and prepare.test", found, "fractions that leave some for train"))
