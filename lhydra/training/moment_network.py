"""The part of the head for what comes next: from the signals of a moment to the logit that orders all tracks."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from lhydra.features.moment import CONTEXT, N_OWN, SIGNALS
from lhydra.training.moments import MIN_MOMENTS

LEAST_SPREAD = 0.01
NEVER = 1e9  # the spread of what too few moments tell apart: whatever it is later on counts nothing
TRACKS = CONTEXT.index("tracks")  # 0 for whoever has played nothing
SMALL = 1e-4  # of a strength, the largest of which is about 1
OFFSETS = [SMALL if "base level" in name or n >= N_OWN else 1.0 for n, name in enumerate(SIGNALS)][1:]


class MomentHead(nn.Module):
    """What comes next: the head's logit and the signals of a moment -> the logit that orders all tracks, heard or not.

    Args:
        mean: (i,) of the inputs; both are fitted, so that signals of any scale come in alike.
        spread: (i,) of the inputs.
        context_mean: (c,) of the context.
        context_spread: (c,) of the context.
    """

    PAIR = 4  # inputs before the signals: logit of the rest of the head, cosine, popularity, rarity
    HIDDEN = 32

    mean: Tensor
    spread: Tensor
    context_mean: Tensor
    context_spread: Tensor
    calibration: Tensor

    def __init__(self, mean: Tensor, spread: Tensor, context_mean: Tensor, context_spread: Tensor) -> None:
        super().__init__()
        for name, value in (
            ("mean", mean),
            ("spread", spread),
            ("context_mean", context_mean),
            ("context_spread", context_spread),
        ):
            self.register_buffer(name, value)
        self.linear = nn.Linear(len(mean), 1, bias=False)
        self.of_pair = nn.Linear(len(mean), self.HIDDEN)
        self.of_context = nn.Linear(len(context_mean), self.HIDDEN, bias=False)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(self.HIDDEN, self.HIDDEN), nn.ReLU())
        self.out = nn.Linear(self.HIDDEN, 1)
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))  # of this part's logit, as `Head.calibration`
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @classmethod
    def inputs(cls) -> int:
        """Returns how many inputs `prepared` gives."""
        return cls.prepared(torch.zeros(cls.PAIR + len(SIGNALS))).shape[-1]

    @classmethod
    def fitted_to(cls, inputs: Tensor, real: Tensor, context: Tensor) -> "MomentHead":
        """Makes a part that nobody has trained, for inputs of this scale.

        What differs at fewer than MIN_MOMENTS moments counts nothing: on its scale the first value that differs is
        very large, and the weights that it meets are still those of the draw. So it is of a flag that the log lacks,
        and of sessions where hardly a moment lies inside one.

        Args:
            inputs: (q, C, i) float32 of the candidates of many moments.
            real: (q, C) bool, what is no padding.
            context: (q, c) float32 of the moments.

        Returns:
            The part.
        """
        inputs, padding = cls.prepared(inputs), ~real.unsqueeze(2)
        least, most = (inputs.masked_fill(padding, bound) for bound in (float("inf"), float("-inf")))
        told = (most.amax(1) > least.amin(1)).sum(0)  # moments at which some candidates differ in it
        kinds = context.std(0, correction=0) > LEAST_SPREAD, (context != context.mode(0)[0]).sum(0) >= MIN_MOMENTS
        every = inputs[real]
        spread = _spread(every).masked_fill(told < MIN_MOMENTS, NEVER)
        return cls(every.mean(0), spread, context.mean(0), _spread(context).masked_fill(~(kinds[0] & kinds[1]), NEVER))

    def reopened(self, fitted: "MomentHead") -> "MomentHead":
        """Takes up what counted nothing, and is told apart by enough moments now: skips that the first log lacked.

        Args:
            fitted: a part that nobody has trained, for the inputs of now.

        Returns:
            A part like this one, where that starts at weights of 0.
        """
        part = copy.deepcopy(self)
        for scale, layers in (("", (part.of_pair, part.linear)), ("context_", (part.of_context,))):
            spread, mean = f"{scale}spread", f"{scale}mean"
            opened = (getattr(self, spread) == NEVER) & (getattr(fitted, spread) < NEVER)
            for name in (spread, mean):
                getattr(part, name)[opened] = getattr(fitted, name)[opened]
            for layer in layers:
                layer.weight.data[:, opened] = 0
        return part

    @classmethod
    def prepared(cls, inputs: Tensor) -> Tensor:
        """Takes logarithms: counts, ages and strengths spread over powers of ten; strengths stay beside theirs.

        Args:
            inputs: (..., i) float32: logit, cosine, popularity, rarity and signals as they come.

        Returns:
            (..., i + strengths) float32.
        """
        logs = torch.log(inputs[..., cls.PAIR + 1 :] + torch.tensor(OFFSETS))  # few operations: each costs some 4 us
        own, strength = logs[..., : N_OWN - 1], logs[..., N_OWN - 1 :]
        heard, strengths = inputs[..., cls.PAIR : cls.PAIR + 1], inputs[..., cls.PAIR + N_OWN :]
        return torch.cat([inputs[..., : cls.PAIR + 1], own * heard, strengths, strength], -1)

    def forward(self, pair: Tensor, signals: Tensor, context: Tensor) -> Tensor:
        """Scores candidates.

        Args:
            pair: (B, N, PAIR) float32: logit of the rest of the head, cosine, popularity, rarity.
            signals: (B, N, s) float32.
            context: (B, c) float32 of the moment.

        Returns:
            (B, N) float32 logits.
        """
        of_pair = folded(self.of_pair, self.mean, self.spread)  # what `logits` gives, in few operations
        linear = folded(self.linear, self.mean, self.spread)
        weight, bias = (torch.cat(parts) for parts in zip(of_pair, linear, strict=True))
        # All signals of a track that was never heard are 0, so `prepared` is linear in the inputs and all logarithms.
        n = len(SIGNALS) - N_OWN
        before, own, strengths, logs = torch.split(weight, [self.PAIR + 1, N_OWN - 1, n, n], 1)
        offsets = torch.tensor([1.0, *OFFSETS])
        unheard = own @ offsets[1:N_OWN].log()
        before = before + functional.pad(unheard.unsqueeze(1), (self.PAIR, 0))
        weight = torch.cat([before, torch.zeros_like(own), strengths, torch.zeros_like(before[:, :1]), own, logs], 1)
        of_context, at_context = folded(self.of_context, self.context_mean, self.context_spread)
        # The last column is what `linear` gives: the context says nothing there.
        about = functional.linear(
            context, functional.pad(of_context, (0, 0, 0, 1)), functional.pad(at_context, (0, 1)) + bias - unheard
        )
        both = torch.cat([pair, signals, torch.log(signals + offsets)], -1) @ weight.T + about.unsqueeze(1)
        both = both.flatten(0, 1)
        logit: Tensor = both[:, self.HIDDEN :] + self.out(self.rest(both[:, : self.HIDDEN]))
        return logit.view(pair.shape[0], -1)

    def scaled(self, inputs: Tensor) -> Tensor:
        """Brings inputs to one scale, which does not change in training.

        Args:
            inputs: (..., i) float32, as in `prepared`.

        Returns:
            (..., i + strengths) float32.
        """
        return (self.prepared(inputs) - self.mean) / self.spread

    def about(self, context: Tensor) -> Tensor:
        """Brings the context to one scale.

        Args:
            context: (B, c) float32 of the moment.

        Returns:
            (B, c) float32.
        """
        return (context - self.context_mean) / self.context_spread

    def logits(self, scaled: Tensor, about: Tensor) -> Tensor:
        """Scores candidates.

        Args:
            scaled: (B, N, i + strengths) float32.
            about: (B, c) float32.

        Returns:
            (B, N) float32 logits.
        """
        deep = self.out(self.rest(self.of_pair(scaled) + self.of_context(about).unsqueeze(1)))
        logit: Tensor = (self.linear(scaled) + deep).squeeze(2)
        return logit

    def ranked(
        self, logit: Tensor, pair: Tensor, signals: Tensor, context: Tensor, calibration: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Ranks by this part whoever has played something; of others nothing is known in time, and the rest decides.

        Args:
            logit: (B, N) float32 of the rest of the head.
            pair: as in `forward`, and so are the others.
            signals: (B, N, s).
            context: (B, c).
            calibration: (2,) of the rest of the head.

        Returns:
            (B, N) float32 logits, and (B, N) float32 calibrated probabilities.
        """
        known = context[:, TRACKS : TRACKS + 1] > 0  # (B, 1)
        ranked = torch.where(known, self(pair, signals, context), logit)
        slope = torch.where(known, self.calibration[0], calibration[0])
        shift = torch.where(known, self.calibration[1], calibration[1])
        return ranked, torch.sigmoid(slope * ranked + shift)


def folded(layer: nn.Linear, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Makes a layer that takes inputs as they come of one that takes scaled ones; constants in a graph.

    Args:
        layer: of scaled inputs.
        mean: (i,) of the inputs.
        spread: (i,) of the inputs.

    Returns:
        (o, i) weight and (o,) bias.
    """
    weight = layer.weight / spread
    bias = layer.bias if layer.bias is not None else torch.zeros(len(weight))
    return weight, bias - weight @ mean


def _spread(values: Tensor) -> Tensor:
    """(i,) standard deviations; 1 of what hardly varies: it would make much of the first value that differs."""
    spread = values.std(0, correction=0)
    return torch.where(spread > LEAST_SPREAD, spread, 1.0)
