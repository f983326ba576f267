"""Commands about turns: answer again, change, go on, remove."""

import os
import shlex
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from kvchat.chat.chatlog import new_path
from kvchat.chat.chatlog_writer import ChatLogWriter
from kvchat.chat.citing import place, sources
from kvchat.chat.prefill import go_on
from kvchat.engine.decode.sampling import COLD, Sampling
from kvchat.engine.events import drain
from kvchat.errors import KvchatError
from kvchat.repl.commands.context import Context, number
from kvchat.repl.turn import ask, say_turn
from kvchat.terminal.text import clean, counted, first_line
from kvchat.terminal.tty import seen

WARM = 0.7  # the temperature of another answer, where greedy decoding gives the same again


def answer(
    context: Context,
    question: str | None,
    replaces: int = 0,
    otherwise: str = "the question was not asked",
    sampling: Sampling | None = None,
) -> bool:
    """Answer in place of `replaces` turns, or go on with the last answer if `question` is None;
    write the turn down and print the line that stays after it. `sampling` is for this answer alone.

    False if it was interrupted before anything came: `otherwise` says what that means.
    """
    chat, screen = context.chat, context.screen
    done = ask(chat, screen, question, sampling)
    if not done.completion_tokens:
        screen.tell(f"interrupted: {otherwise}")
        return False
    context.writer.turn(chat, replaces)
    say_turn(done, chat, screen)
    return True


def answer_again(context: Context, question: str, sampling: Sampling | None = None) -> bool:
    """Answer in place of the last turn, which stays if nothing comes of it: False then."""
    session = context.chat.session
    there = len(session.all_turns)
    [old] = session.undo(1)
    try:
        return answer(context, question, 1, "the earlier answer stays", sampling)
    finally:
        if len(session.all_turns) < there:
            drain(session.restore([old]))


def retry(context: Context, argument: str) -> None:
    """answer the last question again, with the next seed

    The earlier answer is removed once the new one is there. With temperature 0 it would be the
    same, so this one answer is drawn at 0.7.
    """
    chat = context.chat
    require_turns(context, "answer again")
    before, answered = chat.options, False
    chat.options = before.changed("seed", before.sampling.seed + 1, "/retry")
    drawn = chat.options.sampling
    if drawn.temperature < COLD:
        drawn = replace(drawn, temperature=WARM)
        context.screen.tell(
            f"temperature is 0, which would give the same answer: this one has {WARM:g} and seed "
            f"{drawn.seed} (/set temperature {WARM:g} keeps it)"
        )
    try:
        answered = answer_again(context, chat.session.turns[-1].question, drawn)
    finally:
        if not answered:
            chat.options = before
    if answered:
        context.writer.changed(chat)  # the seed


def edit(context: Context, argument: str) -> None:
    """change the last question in $EDITOR and ask that

    The new question takes the place of the old one and of its answer. Without an earlier question
    it is the first one.
    """
    turns = context.chat.session.turns
    last = turns[-1].question if turns else ""
    question = edited(last).strip()
    if question in ("", last.strip()):
        context.screen.tell("nothing has changed")
        return
    context.screen.tell(f"> {question}")
    (answer_again if turns else answer)(context, question)


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
    """go on with an answer that was cut, or with a prefill

    A prefill that was interrupted and left for later goes on where it was; what was asked meanwhile
    stands behind the documents then.
    """
    chat = context.chat
    if chat.waiting and not chat.book.files:
        if go_on(chat):
            context.writer.changed(chat)
        return
    answer(context, None, 1, "nothing was added")


def sources_(context: Context, argument: str) -> None:
    """show the passages that the last answer is from

    They are those that the answer's tokens attend to most, with their share of the attention to the
    documents. An answer that none of them stands out for is from all over the documents, or from
    the model itself. `/set sources off` shows none under an answer.
    """
    chat, screen = context.chat, context.screen
    require_turns(context, "find the sources of")
    found = sources(chat)
    if not found:
        screen.tell("no passage stands out: the answer is from all over, or from the model itself")
    for source in found:
        where = f"{place(source, chat)} {source.weight:.0%} of the attention"
        screen.passage(where, source.text)


def undo(context: Context, argument: str) -> None:
    """remove the last turn, or the last N

    Nothing is processed again, unless old turns were compressed (`--tail-budget`) and one of those
    that stay was compressed together with one that goes.
    """
    session = context.chat.session
    require_turns(context, "undo")
    count = number("/undo", argument, 1, len(session.turns)) if argument else 1
    compressed = session.compacted
    removed = session.undo(count)
    if compressed and not session.compacted and session.turns:
        tokens = sum(len(turn.ids) for turn in session.turns)
        context.screen.tell(f"the turns before were compressed: {tokens:,} tokens processed again")
    context.writer.undo(context.chat, count)
    first = first_line(removed[0].question)
    context.screen.tell(f"removed {counted(count, 'turn')}, from {first!r} on")


def clear(context: Context, argument: str) -> None:
    """remove all turns, keep the documents

    A new chat begins over the same documents; the old one stays among the saved ones.
    """
    chat, writer = context.chat, context.writer
    count = len(chat.session.all_turns)
    chat.session.clear()
    chat.last = None
    kept = ""
    if count and writer.path is not None:
        kept = f", and {writer.title!r} among the saved chats"
        writer.close()
        context.writer = ChatLogWriter(context.screen, new_path())
    context.screen.tell(f"removed {counted(count, 'turn')}; the documents stay{kept}")


def require_turns(context: Context, what: str) -> None:
    """Raise KvchatError("usage") if nothing has been asked."""
    if not context.chat.session.turns:
        raise KvchatError("usage", f"nothing to {what}")
