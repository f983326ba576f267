"""`/think`: what is done about thoughts, and the last one."""

from kvchat.chat.thinking import how
from kvchat.repl.commands.context import Context


def think(context: Context, argument: str) -> None:
    """the last thought; show, hide or stop thoughts

    `/think show`: a thought is shown while it comes and leaves one line. `/think hide`: only that
    line. `/think off`: the model answers at once, by its template's own switch, or because an empty
    thought is written for it. A thought never counts as the answer.
    """
    chat, screen = context.chat, context.screen
    if argument:
        chat.options = chat.options.changed("think", argument, "/think")
        context.writer.changed(chat)
    elif chat.session.turns and (thought := chat.session.turns[-1].reasoning):
        screen.tell(thought, "dim")
    screen.tell(how(chat.session.dialogue, chat.options.think or "show"))
