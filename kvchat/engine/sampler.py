"""Chooses the next token from logits. Knows no model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvchat.engine.sampling import Sampling
from kvchat.errors import KvchatError

# Dividing logits by less than this overflows; the likeliest token is certain long before.
COLD = 1e-5


class Sampler:
    """Draws tokens one after another; the same seed and logits give the same tokens."""

    def __init__(self, sampling: Sampling, device: torch.device):
        self.sampling = sampling
        self.generator = torch.Generator(device=device).manual_seed(sampling.seed)

    def draw(self, logits: Tensor, generated: Sequence[int]) -> int:
        """The next token from `logits [vocab]`; the penalty looks at `generated` tokens only.

        Raises KvchatError("model") if the logits are no numbers.
        """
        wide = logits.float()
        if bool(wide.amax().isnan()):  # of numbers and NaN the largest is NaN
            raise KvchatError(
                "model",
                "the model computes NaN: its weights are damaged, or too large for f16",
                "--dtype bf16 or --dtype f32",
                "download the weights again",
            )
        if self.sampling.repeat_penalty != 1.0 and generated:
            wide = penalised(wide, generated, self.sampling.repeat_penalty)
        if self.sampling.temperature < COLD:
            return int(wide.argmax())
        probabilities = distribution(wide, self.sampling)
        return int(torch.multinomial(probabilities, 1, generator=self.generator))


def penalised(logits: Tensor, generated: Sequence[int], penalty: float) -> Tensor:
    """Logits `[vocab]` with those of generated tokens made less likely (CTRL, 1909.05858)."""
    seen = torch.tensor(sorted(set(generated)), device=logits.device)
    values = logits[seen]
    return logits.scatter(0, seen, torch.where(values > 0, values / penalty, values * penalty))


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities `[vocab]` after temperature, top-k, top-p (1904.09751), min-p (2407.01082)."""
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.numel():
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        falling, order = logits.sort(descending=True)
        before = falling.softmax(0).cumsum(0) - falling.softmax(0)  # mass of likelier tokens
        logits = logits.index_fill(0, order[before >= sampling.top_p], -torch.inf)
    if sampling.min_p > 0:
        probabilities = logits.softmax(0)
        unlikely = probabilities < sampling.min_p * probabilities.max()
        logits = logits.masked_fill(unlikely, -torch.inf)
    return logits.softmax(0)
