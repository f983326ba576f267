"""The tokenizer and the chat template of a chat, where the person names others than the model's."""

from dataclasses import replace
from pathlib import Path

from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.errors import KvchatError
from kvchat.hub.find import Model
from kvchat.settings.choices import read
from kvchat.settings.options import Options
from kvchat.terminal.text import clean


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


def load_tokenizer(model: Model) -> Tokenizer:
    """The tokenizer that a model is used with. Raises KvchatError."""
    tokenizer = Tokenizer.load(model.text_folder)
    if model.template is not None:
        tokenizer.hf.chat_template = read(model.template) if model.template else None
    return tokenizer
