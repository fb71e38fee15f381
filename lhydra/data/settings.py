"""Settings of `lhydra prepare`; apart from the code that uses them, so that `--help` needs no data tools."""

from dataclasses import dataclass

from lhydra.config import setting

PROTOCOLS = ("temporal", "leave-last", "random", "column")


@dataclass(frozen=True)
class PrepareSettings:
    """How to prepare a dataset. `valid` and `test` are fractions of the plays, for temporal and random."""

    split: str | None = setting(
        None,
        "how plays are divided into train, valid and test; without it: column if there is one, else temporal"
        " if there are timestamps, else random",
        choices=PROTOCOLS,
    )
    seed: int = setting(0, "seed of the random split, 0 or more")
    valid: float = setting(0.1, "fraction of the plays in the valid fold (temporal, random)")
    test: float = setting(0.1, "fraction of the plays in the test fold (temporal, random)")
    strict: bool = setting(False, "refuse a source with bad rows instead of dropping them")
