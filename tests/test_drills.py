"""The drills, shortened: on a server that keeps its promises they pass, and where one is broken they say so."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.drills import fuzz, mutants, network, service, world
from benchmarks.drills.verdict import Verdict
from benchmarks.drills.world import World
from lhydra.bundle.manifest import BUNDLE_ID, current_bundle_id
from lhydra.data.dataset import Dataset
from lhydra.errors import LhydraError
from tests.harness import deep


@pytest.fixture(scope="module")
def made(tiny_store: Path, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("drills")
    store = folder / "store"
    shutil.copytree(tiny_store, store)
    ids = sorted(path.name for path in store.iterdir() if BUNDLE_ID.fullmatch(path.name))
    current = current_bundle_id(store)
    (other,) = (one for one in ids[-2:] if one != current)
    return world.known(folder, tiny_dataset.path, store, (current, other))


def met(rows: list[Verdict]) -> bool:
    assert all(row.met for row in rows), rows
    return True


def test_swaps_fail_no_call_and_mix_nothing(made: World) -> None:
    rows = service.swaps(made, 3 if deep() else 2)
    assert met(rows[:3])  # so few swaps tell no leak


def test_an_answer_that_is_not_the_one_of_its_bundle_is_counted(made: World) -> None:
    (user, *_), (bundle, _) = made.users, made.bundles
    first, second, *rest = made.lists[bundle, user]
    swapped = replace(made, lists=made.lists | {(bundle, user): (second, first, *rest)})
    failed = [row.promise for row in service.swaps(swapped, 1) if not row.met]
    assert any("mixes" in promise for promise in failed)


def test_noise_and_pings_trouble_nobody(made: World) -> None:
    assert met(network.noise(made, 300))
    assert met(network.pings(made))


def test_a_mutant_lacks_its_mend_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("a\nb\nc\n")
    mutants.break_it(tmp_path, mutants.Mutant("", (), "", (("one.py", "b\n", ""),)))
    assert (tmp_path / "one.py").read_text() == "a\nc\n"
    with pytest.raises(ValueError, match=r"one\.py: found no 'b"):  # it has moved: the mutant would prove nothing
        mutants.break_it(tmp_path, mutants.Mutant("", (), "", (("one.py", "b\n", ""),)))


def test_what_is_told_to_callers_is_a_clean_line() -> None:
    fuzz.refused(LhydraError("port: found x, expected a number"))
    for inner in ("two\nlines", "\x1b[31m", "", "found KeyError('x')", "<class 'int'>", "<lhydra object at 0x7f>"):
        with pytest.raises(AssertionError):
            fuzz.refused(LhydraError(inner))
