"""Dropout that is fast on a CPU."""

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) from uniform numbers, several times faster on a CPU than nn.Dropout's.

    Args:
        chance: of a zero, 0 to 1.
    """

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance

    def forward(self, x: Tensor) -> Tensor:
        """Drops out.

        Args:
            x: float, of any shape.

        Returns:
            The same shape; x itself in evaluation mode.
        """
        if not self.training or self.chance == 0:
            return x
        return x * ((torch.rand_like(x) >= self.chance) / (1 - self.chance))
