"""Chooses the next token from logits."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from kvchat.engine.decode.sampling import COLD, Leaning, Sampling
from kvchat.errors import KvchatError

AHEAD = 64  # random numbers that are drawn at once
GAPS = (4.0, 8.0, 16.0)  # below the largest logit, where the likeliest tokens are looked for


class Constraint(Protocol):
    """A form that an answer has to have: a grammar, a JSON schema."""

    def masked(self, logits: Tensor) -> Tensor:
        """`logits [vocab]`, those of tokens that may not come next -inf; may be in place."""

    def accept(self, token: int) -> None:
        """Take the token that was drawn. Raises KvchatError("model") if it may not come."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow."""


class Sampler:
    """Draws tokens one after another; the same seed and logits give the same tokens.

    `drawn` are the tokens that came before, in this answer or in earlier ones: the random stream
    and the repetition penalty go on as if one sampler had drawn them all.
    A token is drawn on the device of the logits, from one random number that was drawn on the host
    beforehand: nothing here waits for the device but `draw`, and all devices draw alike.
    """

    def __init__(
        self,
        sampling: Sampling,
        device: torch.device,
        drawn: Sequence[int] = (),
        constraint: Constraint | None = None,
        leaning: Leaning | None = None,
    ):
        self.sampling, self.constraint, self.leaning = sampling, constraint, leaning
        self.device = device
        self._drawn = list(drawn)
        self._generator = torch.Generator().manual_seed(sampling.seed)
        torch.rand(len(drawn), dtype=torch.float64, generator=self._generator)  # theirs
        self._chances = torch.empty(0, dtype=torch.float64, device=device)  # one per token
        self._used = torch.zeros(1, dtype=torch.int64, device=device)
        self._left = 0
        self._seen: Tensor | None = None  # tokens that were drawn, bool [vocab]
        self._leaned: Tensor | None = None  # what is added to logits, fp32 [vocab]
        self.waits = False  # whether the host may look at logits before a token is chosen

    def provide(self, tokens: int) -> None:
        """Have random numbers ready for so many more tokens."""
        if self.sampling.temperature < COLD or tokens <= self._left:
            return
        missing = max(tokens - self._left, AHEAD)
        more = torch.rand(missing, dtype=torch.float64, generator=self._generator)
        left = self._chances[len(self._chances) - self._left :]
        self._chances = torch.cat((left, more.to(self.device)))
        self._left = len(self._chances)
        self._used.zero_()

    def spend(self) -> None:
        """Note that `choose` has taken a random number."""
        self._left -= self.sampling.temperature >= COLD

    def draw(self, logits: Tensor) -> int:
        """The next token from `logits [vocab]`; the penalty looks at drawn tokens only.

        Raises KvchatError("model") if the logits are no numbers.
        """
        self.provide(1)
        if self.constraint is not None:
            logits = self.constraint.masked(logits)
        token = checked(int(self.choose(logits)))
        self.spend()
        if self.constraint is not None:
            self.constraint.accept(token)
        return token

    @property
    def is_complete(self) -> bool:
        """Whether a constraint lets nothing follow."""
        return self.constraint is not None and self.constraint.is_complete

    def choose(self, logits: Tensor) -> Tensor:
        """The next token `[1]` (int64) on the device, -1 if the logits are no numbers.

        Unless it `waits`, nothing here depends on what the host knows: it can be recorded and run
        again.
        """
        wide = logits.float()
        broken = wide.amax().isnan()  # of numbers and NaN the largest is NaN
        if self.sampling.repeat_penalty != 1.0:
            if self._seen is None:
                self._seen = torch.zeros_like(wide, dtype=torch.bool)
                self._seen[self._drawn] = True
            wide = penalised(wide, self._seen, self.sampling.repeat_penalty)
        if self.leaning is not None:
            wide = wide + self._leans(self.leaning, wide)
        if self.sampling.temperature < COLD:
            token = wide.argmax(0, keepdim=True)
        else:
            chance = self._chances.index_select(0, self._used)
            token = self._drawn_from(wide, chance)
            self._used += 1
        if self._seen is not None:
            self._seen.scatter_(0, token, True)
        if self.leaning is not None:
            self._lean(self.leaning, token)
        return token.masked_fill(broken, -1)

    def _leans(self, leaning: Leaning, logits: Tensor) -> Tensor:
        """What is added to `logits [vocab]` by now."""
        if self._leaned is None:
            self._leaned = torch.zeros_like(logits)
            self._there = torch.zeros_like(logits, dtype=torch.bool)
            for token, value in leaning.bias.items():
                self._leaned[token] = value
            for each in self._drawn:
                self._lean(leaning, torch.tensor([each], device=logits.device))
        return self._leaned

    def _lean(self, leaning: Leaning, token: Tensor) -> None:
        """Count a `token [1]` that was drawn."""
        assert self._leaned is not None
        first = ~self._there[token]
        self._leaned[token] -= leaning.frequency + leaning.presence * first
        self._there.scatter_(0, token, True)

    def _drawn_from(self, logits: Tensor, chance: Tensor) -> Tensor:
        """The token `[1]` that `chance [1]` gives."""
        sampling = self.sampling
        sorts = sampling.top_p < 1 or 0 < sampling.top_k < logits.numel()
        if not self.waits or not sorts:
            return drawn(distribution(logits, sampling), chance)
        ids, few, rest = candidates(logits, sampling)
        return ids[drawn(distribution(few, rest), chance)]


def checked(token: int) -> int:
    """The token that was chosen. Raises KvchatError("model") for what NaN gives."""
    if token < 0:
        raise KvchatError(
            "model",
            "the model computes NaN: its weights are damaged, or too large for f16",
            "--dtype bf16 or --dtype f32",
            "download the weights again",
        )
    return token


def penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits `[vocab]` with those of `seen` tokens made less likely (CTRL, 1909.05858)."""
    less = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, less, logits)


def candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Sampling]:
    """Those of `logits [vocab]` that top-k and top-p can leave: ids, ascending, and logits `[n]`.

    And what is to be done with them: then their `distribution` is that of all. For to sort a whole
    vocabulary takes as long as a small model's token.
    """
    logits, rest = logits / sampling.temperature, replace(sampling, temperature=1.0)
    if 0 < sampling.top_k < logits.numel():
        kept = logits >= logits.topk(sampling.top_k).values[-1]
    else:
        shares, highest = logits.softmax(0), logits.amax()
        for gap in GAPS:
            kept = logits >= highest - gap
            mass = float(shares[kept].sum())
            if mass >= sampling.top_p:
                break
        else:
            kept, mass = torch.ones_like(kept), 1.0
        rest = replace(rest, top_p=min(1.0, sampling.top_p / mass))
    if not bool(kept.any()):  # the largest is NaN, which the caller looks for
        kept = torch.ones_like(kept)
    ids = kept.nonzero()[:, 0]
    return ids, logits[ids], rest


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities `[vocab]` after temperature, top-k, top-p (1904.09751), min-p (2407.01082)."""
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.numel():
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        falling, order = logits.sort(descending=True)
        before = falling.softmax(0).cumsum(0) - falling.softmax(0)  # mass of likelier tokens
        kept = falling.masked_fill(before >= sampling.top_p, -torch.inf)
        logits = torch.empty_like(logits).scatter_(0, order, kept)
    if sampling.min_p > 0:
        probabilities = logits.softmax(0)
        unlikely = probabilities < sampling.min_p * probabilities.max()
        logits = logits.masked_fill(unlikely, -torch.inf)
    return logits.softmax(0)


def drawn(probabilities: Tensor, chance: Tensor) -> Tensor:
    """The token `[1]` into whose share of `probabilities [vocab]` falls `chance [1]` of [0, 1)."""
    ends = probabilities.double().cumsum(0)
    token = torch.searchsorted(ends, chance * ends[-1], right=True)
    return token.clamp(max=len(ends) - 1)
