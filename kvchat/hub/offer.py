"""The model that is asked for; one of Hugging Face that is missing is offered, never taken."""

from kvchat.hub.find import Model, NotHere, find_model
from kvchat.settings.config import load as load_config
from kvchat.settings.options import Options
from kvchat.terminal.screen import Screen


def model_of(options: Options, screen: Screen) -> Model:
    """The model of `--model`; one of Hugging Face that is missing is offered at a terminal.

    Raises KvchatError("model").
    """
    aliases = load_config().models
    try:
        return find_model(options.model, aliases, options.revision)
    except NotHere as missing:
        # the library is not needed where nothing is missing
        from kvchat.hub import pull

        unasked = options.machine_readable or options.offline or not pull.somebody()
        if unasked or not pull.download(missing.repository, options.revision, screen):
            raise
        return find_model(options.model, aliases, options.revision)
