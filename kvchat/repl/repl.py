"""The chat: reads lines, answers them, runs slash commands, and survives what goes wrong."""

import shutil
import traceback
from collections.abc import Callable
from dataclasses import replace
from math import inf
from time import monotonic

from kvchat import process
from kvchat.chat.prepare import Prepared
from kvchat.chat.resume import open_or_resume
from kvchat.chat.shortage import out_of_memory
from kvchat.engine.methods.specs import name_of
from kvchat.errors import KvchatError
from kvchat.repl import commands, memory
from kvchat.repl.completion import SlashCompleter
from kvchat.terminal.colours import ERROR
from kvchat.terminal.interrupt import Interrupt, soon_after
from kvchat.terminal.key_prompt import choose
from kvchat.terminal.line_editor import Lines
from kvchat.terminal.log import LOG
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import clean, first_line, unicode
from kvchat.terminal.toolbar import State, toolbar


def run(prepared: Prepared, screen: Screen) -> int:
    """Open the chat, say what there is to ask about, and talk. Returns the exit code."""
    chat, writer = open_or_resume(prepared, screen)
    context = commands.Context(chat, screen, writer)
    with chat.saving():
        title = chat.book.title if chat.book.files else ""
        about = f"Ask about {title}." if title else "No document: ask anything."
        screen.say(f"{about} Alt-Enter new line · Ctrl-C interrupts · /help")
        if chat.session.turns:
            last = chat.session.turns[-1]
            screen.say(f"last question: {first_line(last.question)}")
        coloured = chat.options.color != "never"
        lines = Lines(SlashCompleter(context), chat.options.history, chat.options.vi, coloured)
        try:
            return talk(context, lines)
        finally:
            context.writer.close()


def talk(context: commands.Context, lines: Lines) -> int:
    """Line after line until the person leaves."""
    screen, pressed = context.screen, -inf
    screen.named = False
    with Interrupt() as calm:
        while True:
            context.chat.cache.tell()
            lines.sent = 0.0
            try:
                with calm.idle(lambda: lines.sent > 0):
                    bar = None if screen.plain else toolbar_of(context, lines)
                    line = lines.read(bar, changes=bool(screen.fallback))
            except EOFError:
                return 0
            except KeyboardInterrupt:  # on an empty line; twice soon after each other leaves
                if soon_after(pressed):
                    raise
                pressed = monotonic()
                screen.tell("Ctrl-C again, or Ctrl-D, to quit")
                continue
            pressed = -inf  # a press before this line has nothing to do with the next
            calm.forget(before=lines.sent)
            for text in lines.pasted:
                screen.excerpt(text)
            if lines.stop_typed():  # after Enter, before anybody listened for it
                calm.press()
            try:
                obey(context, line, lines.is_paste)
            except commands.Quit:
                return 0
            calm.forget()  # it was for the answer that ended just now


def obey(context: commands.Context, line: str, is_paste: bool = False) -> None:
    """Answer a line or run its command; whatever goes wrong is said, and the chat goes on.

    A line that `is_paste` and nothing else is rather a document: the person chooses.
    """
    screen = context.screen
    try:
        what = "s"
        if is_paste:
            what = choose("[a]ttach it as a document / [s]end it", "as", "s", refused="")
        if not what:
            screen.tell("neither: what was pasted is dropped")
        elif what == "a":
            commands.attach_text(context, unicode(line))
        elif line.startswith("/") and not is_paste:
            commands.run(unicode(line.rstrip()), context)
        elif line.strip():
            commands.answer(context, unicode(line.strip()))
    except commands.Quit:
        raise
    except KvchatError as error:
        say_error(screen, error)
    except KeyboardInterrupt:
        screen.tell("interrupted")
    except Exception as error:  # the document and the turns must not be lost
        if context.chat.options.verbose:
            traceback.print_exc()
        known = out_of_memory(context.chat, error)
        say_error(screen, known if isinstance(known, KvchatError) else process.unexpected(error))


def say_error(screen: Screen, error: KvchatError) -> None:
    """What went wrong and the ways out, in a line each: here it needs no program's name."""
    LOG.error(clean(error.message))
    screen.tell(error.message, ERROR)
    if error.tries:
        screen.tell(f"  try: {' · '.join(error.tries)}")


def toolbar_of(context: commands.Context, lines: Lines) -> Callable[[], str]:
    """A toolbar of numbers taken now: rendering it asks nothing of the engine."""
    chat, usage = context.chat, memory.breakdown(context.chat)
    session, method, last = chat.session, chat.method, chat.last
    state = State(
        model=clean(chat.model.name),
        method=f"{name_of(method)} {'reads ' if chat.attended_share() else ''}{method.budget}",
        used=session.cache.rotary,
        limit=session.limit,
        kv=session.memory().total,
        kv_full=usage.full,
        resident=usage.process,
        total=usage.total,
        speed=last.tokens_per_second if last else 0.0,
        peak=usage.peak,
        where="gpu" if session.engine.device.type == "cuda" else "ram",
        inexact=last is not None and last.finish_reason == "cancelled",
    )

    def render() -> str:
        width = shutil.get_terminal_size().columns
        text = toolbar(replace(state, notice=context.screen.fallback), width)
        return f"{text}\n{memory.line(usage, width)}" if lines.shows_memory else text

    return render
