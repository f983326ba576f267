"""Commands about turns: answer again, go on, take back, forget."""

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from kvchat.engine.events import drain
from kvchat.errors import KvchatError
from kvchat.repl.commands.context import Context
from kvchat.repl.turn import ask, say_turn
from kvchat.repl.turn import more as go_on
from kvchat.terminal.text import clean, counted, first_line
from kvchat.terminal.tty import seen


def retry(context: Context, argument: str) -> None:
    """answer again, with the next seed

    The earlier answer is forgotten once the new one is there. With temperature 0 it will be the
    same.
    """
    chat = context.chat
    require_turns(context, 1)
    before, answered = chat.settings, False
    chat.settings = before.changed("seed", before.sampling.seed + 1, "/retry")
    if not before.sampling.temperature:
        context.screen.tell("temperature is 0, so the answer may not change (/set temperature 0.7)")
    try:
        answered = ask_again(context, chat.session.turns[-1].question)
    finally:
        if not answered:
            chat.settings = before


def edit(context: Context, argument: str) -> None:
    """change the last question in $EDITOR and ask that

    The new question takes the place of the old one and of its answer. Before any question it is
    the first that is written so.
    """
    chat = context.chat
    last = chat.session.turns[-1].question if chat.session.turns else ""
    question = edited(last).strip()
    if question in ("", last.strip()):
        context.screen.tell("nothing has changed")
        return
    context.screen.tell(f"> {question}")
    if chat.session.turns:
        ask_again(context, question)
        return
    done = ask(chat, context.screen, question)
    if done.completion_tokens:
        context.keeper.turn(chat)
    say_turn(done, chat, context.screen)


def ask_again(context: Context, question: str) -> bool:
    """Ask in place of the last turn, which stays if nothing comes of it: False then."""
    chat = context.chat
    [old] = chat.session.undo(1)
    try:
        done = ask(chat, context.screen, question)
    except BaseException:
        drain(chat.session.restore([old]))
        raise
    if not done.completion_tokens:  # stopped before anything came
        drain(chat.session.restore([old]))
        context.screen.tell("stopped: the earlier answer stays")
        return False
    context.keeper.turn(chat, replaces=1)
    say_turn(done, chat, context.screen)
    return True


def edited(text: str) -> str:
    """What a person makes of a text in their editor. Raises KvchatError("usage")."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "question.md"
        file.write_text(text, encoding="utf-8")
        try:
            with seen():
                done = subprocess.run([*shlex.split(editor), str(file)])
        except (OSError, ValueError) as error:
            raise KvchatError(
                "usage", f"the editor {clean(editor)!r} cannot be run: {error}", "EDITOR=nano"
            ) from None
        if done.returncode:
            raise KvchatError("usage", f"the editor ended with {done.returncode}")
        return file.read_text(encoding="utf-8", errors="replace")


def more(context: Context, argument: str) -> None:
    """go on with an answer that was cut"""
    done = go_on(context.chat, context.screen)
    context.keeper.turn(context.chat, replaces=1)
    say_turn(done, context.chat, context.screen)


def undo(context: Context, argument: str) -> None:
    """take back the last turn, or `/undo N`: the last N

    Nothing is read again, unless old turns were folded (`--tail-budget`) and one of those that stay
    was folded together with one that goes.
    """
    count = 1
    if argument:
        if not (argument.isascii() and argument.isdecimal()) or int(argument) < 1:
            raise KvchatError("usage", f"/undo {argument}: a number of turns is wanted", "/undo 2")
        count = int(argument)
    require_turns(context, count)
    folded = context.chat.session.folded
    dropped = context.chat.session.undo(count)
    if folded and not context.chat.session.folded and context.chat.session.turns:
        tokens = sum(len(turn.ids) for turn in context.chat.session.turns)
        context.screen.tell(f"the turns before were folded: read {tokens:,} tokens of them again")
    context.keeper.undo(context.chat, count)
    first = first_line(dropped[0].question)
    context.screen.tell(f"{counted(count, 'turn')} taken back, from {first!r} on")


def clear(context: Context, argument: str) -> None:
    """forget the conversation, keep the document"""
    session = context.chat.session
    count = len(session.turns)
    session.clear()
    context.keeper.undo(context.chat, count)
    context.chat.last = None
    context.screen.tell("conversation forgotten; the document is kept")


def require_turns(context: Context, count: int) -> None:
    """Raise KvchatError("usage") if there are fewer turns."""
    there = len(context.chat.session.turns)
    if there < count:
        some = f"there are {there}" if there else "nothing has been asked"
        raise KvchatError("usage", f"no {'turn' if count == 1 else f'{count} turns'}: {some}")
