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
    """Fit what a method wants of a model: the gate of kvzap, or with --for less its maps.

    Each text is read, for the gate with kvzip's replays, whose scores a linear map per layer then
    foretells; for the maps as it is, and entries that are evicted are then made good by a state.
    Some minutes on a CPU for a model below 1 B parameters; Ctrl-C stops, and the same command goes
    on.
    """
    from kvchat.calibrate import run
    from kvchat.hub.find import find_model

    asked = config.settle({"model": model}, config.load())
    return run.run(find_model(asked.model, asked.aliases), texts or [], read_all(Settings, given))
