"""The tokenizer that a model is used with."""

from kvchat.engine.text.tokenizer import Tokenizer
from kvchat.hub.find import Model
from kvchat.settings.text_files import read


def load_tokenizer(model: Model) -> Tokenizer:
    """The tokenizer that a model is used with. Raises KvchatError."""
    tokenizer = Tokenizer.load(model.text_path)
    if model.template is not None:
        tokenizer.hf.chat_template = read(model.template) if model.template else None
    return tokenizer
