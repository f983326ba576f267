"""The form that answers of `-p` have to have: a JSON schema or a grammar in a file."""

import json
from collections.abc import Callable

from kvchat.chat.chat import Chat
from kvchat.engine.decode.sampler import Constraint
from kvchat.engine.text.grammar import Forms
from kvchat.errors import KvchatError
from kvchat.settings.text_files import read
from kvchat.terminal.text import clean


def form_of(chat: Chat) -> Callable[[], Constraint] | None:
    """What makes the form of an answer anew for each question; None: any text will do.

    Raises KvchatError for what is no schema or no grammar.
    """
    schema, grammar = chat.options.json_schema, chat.options.grammar
    if schema is None and grammar is None:
        return None
    if schema is not None and grammar is not None:
        raise KvchatError("usage", "--json-schema and --grammar exclude each other")
    text, session = read(schema or grammar or ""), chat.session
    forms = Forms(session.dialogue.tokenizer, session.engine.config.vocab_size, session.ends)
    if grammar is not None:
        forms.of_grammar(text)  # refused now
        return lambda: forms.of_grammar(text)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KvchatError("input", f"{clean(schema or '')} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise KvchatError("input", f"{clean(schema or '')} is no JSON object")
    forms.of_schema(found)
    return lambda: forms.of_schema(found)
