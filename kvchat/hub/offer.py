"""The model that is asked for; one of Hugging Face that is missing is offered, never taken."""

from dataclasses import replace
from pathlib import Path

from kvchat.errors import KvchatError
from kvchat.hub.find import Missing, Model, find_model
from kvchat.settings.options import Options
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import clean


def model_of(options: Options, screen: Screen) -> Model:
    """The model of `--model`; one of Hugging Face that is missing is offered at a terminal.

    Raises KvchatError("model").
    """
    try:
        return find_model(options.model, options.aliases, options.revision)
    except Missing as missing:
        # the library is not needed where nothing is missing
        from kvchat.hub import pull

        unasked = options.machine_readable or options.offline or not pull.somebody()
        if unasked or not pull.download(missing.repository, options.revision, screen):
            raise
        return find_model(options.model, options.aliases, options.revision)


def with_text(model: Model, options: Options) -> Model:
    """The model with `--tokenizer` and `--chat-template`. Raises KvchatError("model")."""
    folder, template = None, options.chat_template
    if options.tokenizer:
        folder = Path(options.tokenizer).expanduser().absolute()
        if not folder.is_dir():
            raise KvchatError("model", f"--tokenizer {clean(options.tokenizer)} is not a folder")
    if template:
        template = str(Path(template).expanduser().absolute())
    return replace(model, tokenizer=folder, template=template)
