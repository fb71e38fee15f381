"""Dropout that is fast on a CPU."""

import torch
from torch import Tensor, nn

BITS = 15  # random_() draws 63 of an int64, so the sign of its last int16 is never drawn


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) from 15 random bits for each number, on a CPU many times faster than nn.Dropout.

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
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device).random_()  # 4 numbers each
        drawn = words.view(torch.int16)[: x.numel()].bitwise_and_(2**BITS - 1).view_as(x)
        kept: Tensor = (drawn >= round(self.chance * 2**BITS)) / (1 - self.chance)
        return x * kept
