"""The tests that the options of `kvchat bench` ask for."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from kvchat.bench.settings import Settings
from kvchat.engine.budget import Budget
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.build import parse_method


@dataclass(frozen=True)
class Test:
    """Tokens to prefill with a method, or to decode after others were; 0 threads: any."""

    method: Method
    threads: int
    n_prompt: int
    n_gen: int
    n_depth: int

    @property
    def name(self) -> str:
        """`pp512`, `tg128`, `tg128 @ d4096`, as in llama-bench."""
        if self.n_prompt:
            return f"pp{self.n_prompt}"
        return f"tg{self.n_gen} @ d{self.n_depth}" if self.n_depth else f"tg{self.n_gen}"

    @property
    def read(self) -> int:
        """Tokens of the prefill; a cache is never empty when something is decoded."""
        return self.n_prompt or max(self.n_depth, 1)


def methods_of(settings: Settings) -> list[Method]:
    """The methods with every budget, each once. Raises KvchatError("usage")."""
    budgets: list[Budget | None] = [Budget.parse(text) for text in settings.budgets]
    found = (parse_method(m, b) for m in settings.methods for b in budgets or [None])
    return list(dict.fromkeys(found))


def cases_of(settings: Settings) -> Iterator[Test]:
    """The cross product of threads, methods, and tokens to prefill or to decode; 0 is none."""
    for threads, method in product(settings.threads or [0], methods_of(settings)):
        for tokens in filter(None, settings.prompts):
            yield Test(method, threads, tokens, 0, 0)
        for depth, tokens in product(settings.depths, filter(None, settings.generates)):
            yield Test(method, threads, 0, tokens, depth)
