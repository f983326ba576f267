"""Another model for a chat: it reads the same documents and goes on with the same turns."""

import gc
from dataclasses import replace
from typing import Any

from kvchat.chat.chat import Chat
from kvchat.chat.generation import FILE
from kvchat.chat.open import open_chat
from kvchat.chat.prepare import Prepared
from kvchat.chat.work import Dropped, run
from kvchat.engine.model.read import load_config
from kvchat.hub.offer import model_of, with_text
from kvchat.machine import resources as machine
from kvchat.settings.options import Options

OWN = ("tokenizer", "chat_template", "revision", "ctx_size")  # options about the model before


def switch(chat: Chat, name: str) -> bool:
    """Go on with another model, which is loaded beside the present one until all is read.

    False if the person stopped it; the chat is then as it was. Raises KvchatError.
    """
    screen, options = chat.screen, asked(chat.options, name)
    model = with_text(model_of(options, screen), options)
    config, files = load_config(model.path), list(chat.book.files)
    system = chat.book.system or None
    prepared = Prepared(replace(options, system=system or ""), model, config, files)
    other = open_chat(prepared, screen, interactive=True)
    turns = other.session.retold(chat.session.all_turns)
    try:
        if files and not other.book.files:
            raise Dropped
        count = sum(len(turn.ids) for turn in turns)
        run(other, other.session.restore(turns), "restoring turns", count)
    except Dropped:
        screen.tell("interrupted: nothing has changed")
        return False
    chat.cache.__exit__(None, None, None)  # what it saves is of the model before
    device = chat.session.engine.device
    vars(chat).update(vars(other))
    gc.collect()  # its weights are free now
    machine.release(device)
    return True


def asked(options: Options, name: str) -> Options:
    """The options of a chat for another model: without what the one before brought along."""
    gone = [*OWN, *(key for key, origin in options.origins.items() if origin == FILE)]
    usual: dict[str, Any] = {key: getattr(Options, key, None) for key in gone}
    origins = {key: origin for key, origin in options.origins.items() if key not in gone}
    return replace(options, **usual, model=name, origins={**origins, "model": "/model"})
