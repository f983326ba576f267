"""TOVA: the entries that the last token attends to."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvchat.engine.methods.base import Prefilled
from kvchat.engine.methods.eviction import Eviction
from kvchat.engine.methods.needs import Needs
from kvchat.engine.methods.options import TOVAOptions
from kvchat.engine.methods.scores import observed_mass


@dataclass(frozen=True)
class TOVA(TOVAOptions, Eviction):
    """Keeps what the last token attends to, on the mean of all heads of a layer.

    Transformers are Multi-State RNNs, https://arxiv.org/abs/2401.06104. Different here: applied
    once, after the document; the authors drop an entry at every step.
    """

    name: ClassVar[str] = "tova"

    @property
    def needs(self) -> Needs:
        """The last query."""
        return Needs(queries=1)

    def score(self, prefilled: Prefilled, entries: int, each: int) -> Tensor:
        """The same for every head, so every head keeps the same tokens."""
        heads, _ = prefilled.shape
        return observed_mass(prefilled, entries).mean(dim=0).repeat(heads, 1)
