"""Options of `kvchat bench`, and the tests that they ask for."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from kvchat.engine.budget import Budget
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.spec import parse_method

FORMATS = ("md", "csv", "jsonl")


@dataclass(frozen=True)
class Settings:
    """What to measure, on what, and where the results go."""

    model: str | None
    dummy: str | None
    prompts: list[int]
    generates: list[int]
    depths: list[int]
    repeat: int
    methods: list[str]
    budgets: list[str]
    threads: list[int]  # none: as many as torch takes
    chunk: int | None
    seed: int
    text: str | None  # a file whose tokens are used, in place of random ones
    warmup: bool
    delay: float  # seconds before each test
    device: str
    dtype: str
    weights: str
    attention: str
    mem_limit: int | None
    output: str
    errput: str | None
    plot: str | None

    @property
    def longest(self) -> int:
        """Tokens of the longest cache."""
        decoded = (d + n for d in self.depths for n in self.generates)
        return max([1, *self.prompts, *decoded])

    def parsed(self) -> list[Method]:
        """The methods with every budget, each once. Raises KvchatError("usage")."""
        budgets: list[Budget | None] = [Budget.parse(text) for text in self.budgets]
        return list(
            dict.fromkeys(parse_method(m, b) for m in self.methods for b in budgets or [None])
        )

    def tests(self) -> "Iterator[Test]":
        """The cross product of threads, methods, and tokens to prefill or to decode; 0 is none."""
        for threads, method in product(self.threads or [0], self.parsed()):
            for tokens in filter(None, self.prompts):
                yield Test(method, threads, tokens, 0, 0)
            for depth, tokens in product(self.depths, filter(None, self.generates)):
                yield Test(method, threads, 0, tokens, depth)


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
