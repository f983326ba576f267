"""Questions that one key answers."""

from prompt_toolkit import PromptSession
from prompt_toolkit.input import create_input
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys

REPLIES = (Keys.CPRResponse,)  # of the terminal, not of a person


def typed_text(title: str) -> str | None:
    """Lines until Ctrl-D on an empty one; None for Ctrl-C."""
    bindings = KeyBindings()

    @bindings.add("c-d")
    def _(event: KeyPressEvent) -> None:
        if not event.current_buffer.document.current_line:
            event.current_buffer.validate_and_handle()

    session: PromptSession[str] = PromptSession(
        f"{title}\n",
        input=create_input(always_prefer_tty=True),
        key_bindings=bindings,
        multiline=True,
    )
    try:
        return session.prompt()
    except (EOFError, KeyboardInterrupt):
        return None


def choose(question: str, keys: str, default: str, refused: str) -> str:
    """The key of `keys` that is pressed; `default` for Enter, `refused` for Ctrl-C and the end of
    input.

    What was typed before the question was there answers nothing: it waits for the next line.
    """
    source = create_input(always_prefer_tty=True)
    early = [key for key in (*get_typeahead(source), *source.read_keys()) if key.key not in REPLIES]
    bindings = KeyBindings()

    def answers(key: str, reply: str, shown: str = "") -> None:
        @bindings.add(key)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text(shown)
            event.app.exit(result=reply)

    for key in keys:
        answers(key, key, key)
        answers(key.upper(), key, key)
    answers("enter", default)
    answers("c-c", refused)
    answers("c-d", refused)

    @bindings.add("<any>")
    def _(event: KeyPressEvent) -> None:
        """Other keys are no answer."""

    session: PromptSession[str] = PromptSession(input=source, key_bindings=bindings)
    try:
        return session.prompt(f"{question} ")
    except (EOFError, KeyboardInterrupt):
        return refused
    finally:
        store_typeahead(source, [*early, *get_typeahead(source)])
