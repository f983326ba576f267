"""The command line of `kvchat demo`."""

from dataclasses import dataclass
from typing import Any

from kvchat.cli.flags import takes
from kvchat.settings.option import read_all, shared
from kvchat.settings.options import Options


@dataclass(frozen=True)
class DemoOptions:
    """Options of `kvchat demo`."""

    threads: int | None = shared(Options, "threads")
    weights: str = shared(Options, "weights")


@takes(DemoOptions)
def demo(**given: Any) -> int:
    """The bundled model reads the sample, compresses it, answers and marks its questions."""
    from kvchat.cli import demonstration

    options = read_all(DemoOptions, given)
    return demonstration.run(options.threads, options.weights)
