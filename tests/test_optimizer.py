"""Tables updated by row end where AdamW, which moves every row in every step, ends."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lhydra.training import optimizer
from lhydra.training.ahead import ahead
from lhydra.training.optimizer import RowwiseAdamW

RATES = (1e-4, 1e-2, 3e-2, 2e-2)


def trained(by_row: bool, steps: int, seed: int, decay: float, settled: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Table, its two means and the rest of the network, after steps that each see a few of 12 rows, some twice."""
    drawn = torch.Generator().manual_seed(seed)
    table = torch.nn.Parameter(torch.randn(12, 3, generator=drawn, dtype=torch.float64))
    rest = torch.nn.Parameter(torch.randn(3, generator=drawn, dtype=torch.float64))
    group = {"params": [table, rest], "peak": 1e-2, "weight_decay": decay, "eps": 1e-30}  # the exact part, see _current
    made = RowwiseAdamW(group, {"table": table} if by_row else {})
    for number in range(steps):
        made.param_groups[0]["lr"] = RATES[number % len(RATES)]
        rows = torch.randint(0, 12 if number % 3 else 4, (5,), generator=drawn)
        made.zero_grad()
        numbers, at = torch.unique(rows, return_inverse=True)
        taken = made.take(numbers)
        used = taken["table"][at] if by_row else table[rows]
        ((used - torch.randn(3, generator=drawn)) * rest).square().sum().backward()  # type: ignore[no-untyped-call]
        made.clip(2.0)
        made.step()
        if settled and number % settled == 0:
            made.catch_up()
    made.catch_up()
    state = made.state[table]
    assert int(state["step"]) == steps
    return table.detach(), state["exp_avg"], state["exp_avg_sq"], rest.detach()


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 60), st.integers(0, 2**16), st.sampled_from([0.0, 0.01]), st.sampled_from([0, 7]))
def test_rows_end_where_they_would_have_been_moved_to_step_by_step(
    steps: int, seed: int, decay: float, settled: int
) -> None:
    whole, by_row = (trained(rows, steps, seed, decay, settled) for rows in (False, True))
    for a, b in zip(whole, by_row, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-3)  # a tenth of a step


def test_a_row_that_is_not_seen_again_still_moves_as_its_gradients_fade() -> None:
    """What a gradient sets going goes on for some ten steps: leaving it out would train rare tracks ten times less."""
    table = torch.nn.Parameter(torch.randn(3, 2))
    made = RowwiseAdamW({"params": [table], "peak": 1e-2, "weight_decay": 0.0}, {"table": table})
    before = table.detach().clone()
    moved = []
    for rows in ([0, 1], *[[1]] * 40):
        made.take(torch.tensor(rows))["table"].sum().backward()  # type: ignore[no-untyped-call]
        made.step()
        moved.append(float((before - table.detach())[0, 0]))
    made.catch_up()
    assert moved[0] == moved[-1] == pytest.approx(1e-2, rel=1e-3)  # nobody has looked at the row since
    assert float((before - table.detach())[0, 0]) > 3 * moved[0]
    assert torch.equal(table.detach()[2], before[2])


def test_catching_up_goes_by_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(True, 20, 1, 0.1, 0)
    monkeypatch.setattr(optimizer, "ROWS_AT_ONCE", 5)
    for a, b in zip(whole, trained(True, 20, 1, 0.1, 0), strict=True):
        assert torch.equal(a, b)


def test_things_made_ahead_come_in_order_and_what_goes_wrong_is_raised() -> None:
    assert list(ahead(lambda number: number * number, range(5))) == [0, 1, 4, 9, 16]
    assert list(ahead(str, [])) == []

    def numbers() -> Iterator[int]:
        yield from (2, 1, 0, 5)

    made = ahead(lambda number: 4 // number, numbers())
    assert [next(made), next(made)] == [2, 4]
    with pytest.raises(ZeroDivisionError):
        next(made)


def test_a_start_that_is_interrupted_leaves_no_thread_in_torch() -> None:
    """Python aborts where it ends while a thread is in torch: 1 of some 40 interrupted epochs did."""
    program = """if True:
        import sys, threading, torch
        from lhydra.training.ahead import ahead

        def interrupted(self, timeout=None):
            raise KeyboardInterrupt

        def make(number):
            while True:
                torch.ones(64, 64).softmax(1)

        threading.Event.wait = interrupted
        try:
            next(ahead(make, range(3)))
        except KeyboardInterrupt:
            sys.exit(130)
    """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (130, "")
