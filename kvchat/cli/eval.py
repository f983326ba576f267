"""The command line of `kvchat eval`."""

from typing import Any

from kvchat.cli.flags import takes
from kvchat.eval.settings import Settings
from kvchat.settings.option import read_all


@takes(Settings)
def evaluate(**given: Any) -> int:
    """Quality at a budget: scores of answers and KL to the full cache, by method.

    The demo model answers the task `world` only; the others are for chat models that follow
    instructions. A needle task asks one question per document: --questions 11 is one per depth.
    """
    from kvchat.eval import run as evaluation

    return evaluation.run(read_all(Settings, given).resolved())
