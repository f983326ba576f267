"""The command line of `kvchat demo`."""

from dataclasses import dataclass
from typing import Any

from kvchat.cli.flags import takes
from kvchat.settings.chat_options import MODEL
from kvchat.settings.kinds import one_of
from kvchat.settings.option import option, read_all, shared
from kvchat.settings.options import Options


@dataclass(frozen=True)
class DemoOptions:
    """Options of `kvchat demo`."""

    act: str | None = option(
        "--act", MODEL, "1: the bundled model; 2: smollm2-135m, if it is here.", one_of("1", "2")
    )
    threads: int | None = shared(Options, "threads")
    weights: str = shared(Options, "weights")


@takes(DemoOptions)
def demo(**given: Any) -> int:
    """The bundled model reads the sample, compresses it, answers and marks its questions."""
    options = read_all(DemoOptions, given)
    code = 0
    if options.act != "2":
        from kvchat.cli import demonstration

        code = demonstration.run(options.threads, options.weights)
    if code == 0 and options.act != "1":
        from kvchat.cli import demonstration_chat

        code = demonstration_chat.run(options.threads, options.weights)
    return code
