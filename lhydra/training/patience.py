"""When the training of the towers ends before its last epoch."""

from lhydra.training.checkpoint import State
from lhydra.training.config import TrainSettings
from lhydra.training.validate import worth

ENOUGH = 0.01  # what a cycle after the first must have gained for another to follow


def over(state: State, config: TrainSettings) -> bool:
    """Tells whether to stop.

    Args:
        state: after some epochs.
        config: settings of the training.

    Returns:
        True after --patience epochs without a better one, counted anew in each cycle of the learning rate, and at the
        end of a later cycle that raised the best epoch's worth by less than ENOUGH of it: most gain less than the one
        before. False without a validation fold.
    """
    if state.best is None:
        return False
    start = (state.epoch - 1) // config.cycle * config.cycle  # a new cycle gets a chance
    if state.epoch - max(state.best["epoch"], start) >= config.patience:
        return True
    if not state.began or state.epoch % config.cycle:
        return False
    return worth(state.best["retrieval"]) < (1 + ENOUGH) * state.began
