"""The chat: reads lines with prompt-toolkit, streams answers, runs slash commands."""

import os
import shutil
import traceback
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

import torch
from platformdirs import user_state_path
from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import Completer, Completion
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyBindings

from kvchat.app import commands, machine, process
from kvchat.app.interrupt import AGAIN_SECONDS, Interrupt
from kvchat.app.oneshot import ask, limit_text
from kvchat.app.options import Options
from kvchat.app.screen import Screen
from kvchat.app.start import Chat, open_chat, unicode
from kvchat.app.text import seconds, sizes
from kvchat.app.toolbar import State, toolbar
from kvchat.engine.events import TurnDone
from kvchat.engine.methods import METHODS
from kvchat.engine.methods.spec import name_of
from kvchat.errors import KvchatError

ENDS = {"stop": "end of turn", "cancelled": "stopped by you"}


def run(options: Options, screen: Screen) -> int:
    """Open the document and talk until the person leaves. Returns the exit code."""
    chat = open_chat(options, screen)
    about = f"Ask about {chat.title}." if chat.files else "No document: ask anything."
    screen.say(f"{about} Alt-Enter new line · Ctrl-C stops an answer · /help")
    prompt = line_reader()
    context = commands.Context(chat, screen)
    speed, pressed = 0.0, -AGAIN_SECONDS
    while True:
        prompt.bottom_toolbar = toolbar_of(chat, speed)
        try:
            line = prompt.prompt("> ")
        except EOFError:
            return 0
        except KeyboardInterrupt:  # once clears the line, twice soon after each other leaves
            if monotonic() - pressed < AGAIN_SECONDS:
                raise
            pressed = monotonic()
            screen.tell("Ctrl-C again, or Ctrl-D, to quit")
            continue
        try:
            if line.startswith("/"):
                commands.run(unicode(line.rstrip()), context)
            elif line.strip():
                speed = answer(chat, line.strip(), screen)
        except commands.Quit:
            return 0
        except KvchatError as error:
            screen.error(error)
        except KeyboardInterrupt:
            screen.tell("stopped")
        except Exception as error:  # the document and the turns must not be lost
            if options.verbose:
                traceback.print_exc()
            screen.error(process.unexpected(error))


def answer(chat: Chat, question: str, screen: Screen) -> float:
    """Stream one answer and print the line that stays after it. Returns tokens per second."""
    with Interrupt() as interrupt:
        done = ask(chat, question, screen, interrupt, show=True)
    screen.say(turn_line(done, chat), style="dim")
    return done.tokens_per_second


def turn_line(done: TurnDone, chat: Chat) -> str:
    """`212 tokens, 54.1 tok/s · first 0.06 s · KV 0.89 of 3.44 GiB · end of turn`."""
    session = chat.session
    reason = ENDS.get(done.finish_reason) or limit_text(done, chat)
    kv = sizes(session.memory().total, session.full_bytes())
    return (
        f"  {done.completion_tokens} tokens, {done.tokens_per_second:.1f} tok/s · "
        f"first {seconds(done.ttft)} · KV {kv} · {reason}"
    )


def toolbar_of(chat: Chat, speed: float) -> Callable[[], str]:
    """A toolbar of numbers taken now: drawing it asks nothing of the engine."""
    session, method = chat.session, chat.method
    state = State(
        model=chat.model.name,
        method=f"{name_of(method)} {method.budget}",
        used=session.cache.position,
        limit=session.limit,
        kv=session.memory().total,
        kv_full=session.full_bytes(),
        resident=machine.resident(),
        total=machine.total(torch.device("cpu")),
        speed=speed,
    )
    return lambda: toolbar(state, shutil.get_terminal_size().columns)


class Commands(Completer):
    """Completes slash commands, and methods after `/method`."""

    def get_completions(self, document, complete_event):
        """Commands or methods that begin with what stands before the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/"):
            return
        word, space, rest = text[1:].partition(" ")
        names = commands.COMMANDS if not space else METHODS if word == "method" else ()
        typed = rest if space else word
        for name in names:
            if name.startswith(typed):
                yield Completion(name, start_position=-len(typed))


def line_reader() -> PromptSession:
    """The prompt: Enter sends, Alt-Enter breaks the line, history is private to the user."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession = PromptSession(
        input=create_input(always_prefer_tty=True),  # stdin may have been the document
        history=private_history(),
        completer=Commands(),
        complete_while_typing=False,
        auto_suggest=AutoSuggestFromHistory(),
        key_bindings=keys,
        multiline=True,
        prompt_continuation=lambda width, line, wrapped: " " * width,
        enable_suspend=True,
        search_ignore_case=True,
    )
    return session


def private_history() -> History:
    """Questions of earlier chats, readable by the user alone; in memory if that cannot be."""
    path = user_state_path("kvchat") / "history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    except OSError:
        return InMemoryHistory()
    return _History(str(path))


class _History(FileHistory):
    def store_string(self, string: str) -> None:
        """A line that starts with a space is not saved; a full disk does not stop the chat."""
        if not string.startswith(" "):
            with suppress(OSError, UnicodeError):
                super().store_string(string)
