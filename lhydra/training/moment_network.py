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
    level: Tensor

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
        # (c,) of the context, which raises all candidates of a moment alike: the loss is blind to it, the score is not.
        self.register_buffer("level", torch.zeros(len(context_mean)))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @classmethod
    def inputs(cls) -> int:
        """Returns how many inputs `prepared` gives."""
        return cls.prepared(torch.zeros(cls.PAIR + len(SIGNALS))).shape[-1]

    @classmethod
    def fitted_to(cls, inputs: Tensor, real: Tensor, context: Tensor) -> "MomentHead":
        """Makes a part that nobody has trained, for inputs of this scale.

        An input counts nothing in which the candidates of fewer than MIN_MOMENTS moments differ, or fewer moments than
        that are unlike most. Its weights are hardly trained, and on its small spread the first other value would be
        large: a skip where the log has none, a place inside a session where it has hardly any.

        Args:
            inputs: (q, C, i) float32 of the candidates of many moments.
            real: (q, C) bool, what is no padding.
            context: (q, c) float32 of the moments.

        Returns:
            The part.
        """
        inputs, padding = cls.prepared(inputs), ~real.unsqueeze(2)
        most = inputs.masked_fill(padding, float("-inf")).amax(1)  # one after the other: each is as large as the inputs
        least = inputs.masked_fill(padding, float("inf")).amin(1)
        differing = (most > least).sum(0)  # moments whose candidates differ
        unlike = (context != context.mode(0)[0]).sum(0)  # moments that are not as most are
        same = context.std(0, correction=0) <= LEAST_SPREAD
        every = inputs[real]
        spread = _spread(every).masked_fill(differing < MIN_MOMENTS, NEVER)
        few = min(MIN_MOMENTS, len(context) - 1)  # of all but the moment that is as most are
        context_spread = _spread(context).masked_fill(same | (unlike < few), NEVER)
        return cls(every.mean(0), spread, context.mean(0), context_spread)

    def reopened(self, fitted: "MomentHead") -> "MomentHead":
        """Takes inputs up that counted nothing until now, and that enough moments tell apart in the plays of now.

        Args:
            fitted: a part that nobody has trained, for the inputs of now.

        Returns:
            A copy; the weights of those inputs are 0.
        """
        part = copy.deepcopy(self)
        for mean, spread, layers in (
            ("mean", "spread", (part.of_pair, part.linear)),
            ("context_mean", "context_spread", (part.of_context,)),
        ):
            before, now = getattr(self, spread), getattr(fitted, spread)
            untold = (before == NEVER) | (before == 1)  # 1: as parts of before had what never differed
            getattr(part, spread)[untold & (now == NEVER)] = NEVER
            opened = untold & (now < NEVER) & (now != before)
            for name in (mean, spread):
                getattr(part, name)[opened] = getattr(fitted, name)[opened]
            for layer in layers:
                layer.weight.data[:, opened] = 0
        part.level[opened] = 0  # the context comes last
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
        of_context, at_context = self.folded_context()
        about = functional.linear(context, of_context, at_context + bias - unheard)
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

    def folded_context(self) -> tuple[Tensor, Tensor]:
        """Gives what the context adds to the hidden values and, last, to the logit.

        Returns:
            (HIDDEN + 1, c) weights of the context as it comes, and (HIDDEN + 1,) shifts.
        """
        weight, bias = folded(self.of_context, self.context_mean, self.context_spread)
        level = self.level / self.context_spread
        return torch.cat([weight, level[None]]), torch.cat([bias, -(level @ self.context_mean)[None]])

    def logits(self, scaled: Tensor, about: Tensor) -> Tensor:
        """Scores candidates.

        Args:
            scaled: (B, N, i + strengths) float32.
            about: (B, c) float32.

        Returns:
            (B, N) float32 logits.
        """
        deep = self.out(self.rest(self.of_pair(scaled) + self.of_context(about).unsqueeze(1)))
        logit: Tensor = (self.linear(scaled) + deep).squeeze(2) + (about @ self.level).unsqueeze(1)
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
