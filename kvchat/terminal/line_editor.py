"""Reads the person's lines with prompt-toolkit: keys, history, completion, several lines."""

import os
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from platformdirs import user_state_path
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import Completer
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Condition, is_searching
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import create_input
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.styles import Style

from kvchat.files import private_folder
from kvchat.terminal.text import clean, first_line

BLOCK = '"""'
SUGGESTED = "#767676"  # as readable on white as on black
PASTE = 2000  # characters above which a paste is shown as its size


class Lines:
    """The prompt. Large pastes are shown as `[pasted N lines]` and put back when sent."""

    def __init__(
        self,
        completer: Completer,
        keep_history: bool = True,
        vi: bool = False,
        coloured: bool = True,
    ):
        """`coloured`: as terminal and environment say; else bold and reversed text alone."""
        self.pastes: dict[str, str] = {}
        self.pasted: list[str] = []  # what the last line had in place of marks
        self.shows_memory = False  # F2
        self.is_paste = False  # whether the last line was nothing but a large paste
        self.sent = 0.0  # when Enter was pressed last, by `monotonic`
        self.session: PromptSession[str] = PromptSession(
            input=create_input(always_prefer_tty=True),  # stdin may have been the document
            history=private_history() if keep_history else InMemoryHistory(),
            completer=completer,
            complete_while_typing=True,  # the completer offers nothing but after a slash
            auto_suggest=AutoSuggestFromHistory(),
            key_bindings=self._keys(),
            multiline=True,
            prompt_continuation=lambda width, line, wrapped: " " * width,
            enable_suspend=True,
            editing_mode=EditingMode.VI if vi else EditingMode.EMACS,
            enable_open_in_editor=True,
            search_ignore_case=True,
            reserve_space_for_menu=4,
            color_depth=None if coloured else ColorDepth.DEPTH_1_BIT,
            style=Style.from_dict({"auto-suggestion": SUGGESTED}),
        )

    def read(self, toolbar: Callable[[], str] | None = None, changes: bool = False) -> str:
        """The next message; a toolbar that `changes` is rendered every second.

        Raises EOFError, KeyboardInterrupt.
        """
        self.session.bottom_toolbar = toolbar
        return self.expanded(self.session.prompt("> ", refresh_interval=float(changes)))

    def stop_typed(self) -> bool:
        """Whether Ctrl-C was typed behind the line that was sent; other keys stay for the next.

        Between Enter and the end of raw mode it is a key like any other, not yet a signal.
        """
        source = self.session.input
        keys = [*get_typeahead(source), *source.read_keys()]
        typed = [press for press in keys if press.key not in (Keys.ControlC, Keys.CPRResponse)]
        store_typeahead(source, typed)
        return any(press.key == Keys.ControlC for press in keys)

    def expanded(self, text: str) -> str:
        """`text` with what was pasted in place of its mark, and without block quotes."""
        self.is_paste = text.strip() in self.pastes
        self.pasted = [pasted for mark, pasted in self.pastes.items() if mark in text]
        for mark, pasted in self.pastes.items():
            text = text.replace(mark, pasted)
        self.pastes.clear()
        stripped = text.strip()
        if stripped.startswith(BLOCK) and stripped.endswith(BLOCK) and len(stripped) > 5:
            return stripped[3:-3].strip("\n")
        return text

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        has_text = Condition(lambda: bool(get_app().current_buffer.text))

        @keys.add("enter", filter=~is_searching)
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if buffer.text.lstrip().startswith(BLOCK) and buffer.text.count(BLOCK) % 2:
                buffer.insert_text("\n")
            else:
                self.sent = monotonic()
                buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("c-c", filter=has_text & ~is_searching)
        def _(event: KeyPressEvent) -> None:
            """What is typed goes, and nothing else: an empty line alone asks to leave."""
            self.pastes.clear()
            event.current_buffer.reset()

        @keys.add("f2")
        def _(event: KeyPressEvent) -> None:
            self.shows_memory = not self.shows_memory

        @keys.add("c-g", filter=~is_searching)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.open_in_editor()

        @keys.add(Keys.BracketedPaste)
        def _(event: KeyPressEvent) -> None:
            text = event.data.replace("\r\n", "\n").replace("\r", "\n")
            if len(text) <= PASTE:
                event.current_buffer.insert_text(text)
                return
            lines = text.count("\n") + (not text.endswith("\n"))
            number = f", {len(self.pastes)}" if self.pastes else ""
            first = clean(first_line(text)).replace("]", ")")
            mark = f"[pasted {lines:,} lines, {len(text):,} characters{number}: {first}]"
            self.pastes[mark] = text
            event.current_buffer.insert_text(mark)

        return keys


def private_history() -> History:
    """Questions of earlier chats, readable by the user alone; in memory if that cannot be."""
    path = user_state_path("kvchat") / "history"
    try:
        private_folder(path.parent)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return _History(str(path))


class _History(FileHistory):
    def store_string(self, string: str) -> None:
        """A line that starts with a space is not saved; a full disk does not stop the chat."""
        if not string.startswith(" "):
            with suppress(OSError, UnicodeError):
                super().store_string(string)
