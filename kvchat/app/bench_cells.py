"""The cells of a benchmark: those that were measured, and those for which memory was not enough."""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import sleep
from typing import Any, TypeVar

from kvchat.app import machine
from kvchat.app.methods import cost_of
from kvchat.app.plan import make_plan
from kvchat.app.screen import Screen
from kvchat.app.text import size
from kvchat.engine.engine import Engine
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.spec import name_of
from kvchat.errors import EXIT_CODES, is_out_of_memory

R = TypeVar("R")


@dataclass
class Cells:
    """Runs cells one after the other; the sweep goes on where one has no room."""

    engine: Engine
    screen: Screen
    delay: float = 0.0  # seconds of rest before each
    missed: list[dict[str, Any]] = field(default_factory=list)

    def run(self, method: Method, test: str, read: int, work: Callable[[], R]) -> list[R]:
        """What `work` measures, or nothing if memory runs out at reading `read` tokens."""
        if self.delay:
            with self.screen.busy(f"resting {self.delay:g} s"):
                sleep(self.delay)
        self.screen.say(f"{name_of(method)} {method.budget}: {test}")
        try:
            return [work()]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        config, itemsize = self.engine.config, self.engine.dtype.itemsize
        cuda, chunk = self.engine.device.type == "cuda", self.engine.chunk
        plan = make_plan(
            config, itemsize, read, method.budget, read, chunk, cuda, cost=cost_of(method)
        )
        machine.release(self.engine.device)
        self.missed.append(
            {
                "method": name_of(method),
                "budget": str(method.budget),
                "test": test,
                "needed_bytes": plan.reading,
                "free_bytes": machine.free(self.engine.device),
            }
        )
        return []

    def lines(self) -> list[str]:
        """A line for every cell that is missing."""
        return [
            f"{cell['method']} {cell['budget']}  {cell['test']}  OOM (needed ≥ "
            f"{size(cell['needed_bytes'])}, estimated; {size(cell['free_bytes'])} free)"
            for cell in self.missed
        ]

    @property
    def exit_code(self) -> int:
        """0, or that of memory if a cell is missing."""
        return EXIT_CODES["memory"] if self.missed else 0
