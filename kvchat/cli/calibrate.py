"""The command line of `kvchat calibrate`."""

from typing import Annotated, Any

import typer

from kvchat.calibrate.settings import Settings
from kvchat.cli.flags import takes
from kvchat.settings import config
from kvchat.settings.option import read_all


@takes(Settings)
def calibrate(
    model: Annotated[str, typer.Argument(help="A model, as --model names it.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Documents to fit it to.")] = None,
    **given: Any,
) -> int:
    """Fit the gate of a model: kvzap then compresses in one prefill what kvzip does in two.

    Each text is read with kvzip's replays; a linear map per layer then foretells their scores.
    Some minutes on a CPU for a model below 1 B parameters; Ctrl-C stops, and the same command goes
    on.
    """
    from kvchat.calibrate import run
    from kvchat.hub.find import find_model

    asked = config.settle({"model": model}, config.load())
    return run.run(find_model(asked.model, asked.aliases), texts or [], read_all(Settings, given))
