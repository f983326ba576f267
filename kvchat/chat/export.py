"""A chat as a file for people or other programs: `.md`, `.txt`, `.json`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvchat.chat.chatlog import Saved
from kvchat.errors import KvchatError
from kvchat.terminal.text import clean


@dataclass(frozen=True)
class Talk:
    """What of a chat is written: its documents, its model's name and its turns as events."""

    title: str
    model: str
    documents: Sequence[str]
    turns: Sequence[dict[str, Any]]

    @classmethod
    def of(cls, saved: Saved) -> "Talk":
        """What a saved chat has."""
        files = [str(file.get("name")) for file in saved.document.get("files", ())]
        title, model = ", ".join(files) or saved.title, str(saved.chat.get("model"))
        return cls(title, model, files, saved.turns)


def write(talk: Talk, path: Path, otherwise: str) -> None:
    """Write a new file, in the form that its name ends with. Raises KvchatError.

    `otherwise` is a command with a name that would do.
    """
    shown = clean(str(path))
    if path.suffix not in FORMS:
        raise KvchatError("usage", f"{shown} ends with none of {', '.join(FORMS)}", otherwise)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(FORMS[path.suffix](talk))
    except FileExistsError:
        raise KvchatError("input", f"{shown} exists already", "another name") from None
    except OSError as error:
        raise KvchatError("input", f"{shown} cannot be written: {error.strerror}") from None


def markdown(talk: Talk) -> str:
    """Questions as headings."""
    parts = [f"# {talk.title or 'Chat'}"]
    for turn in talk.turns:
        parts += [f"## {turn['question']}", turn["answer"].strip()]
    return "\n\n".join(parts) + "\n"


def plain(talk: Talk) -> str:
    """Questions behind a `>`."""
    parts = (f"> {turn['question']}\n\n{turn['answer'].strip()}" for turn in talk.turns)
    return "\n\n".join(parts) + "\n"


def as_json(talk: Talk) -> str:
    """Everything, with token ids."""
    about = {
        "schema": 1,
        "model": talk.model,
        "documents": [*talk.documents],
        "turns": [*talk.turns],
    }
    return json.dumps(about, ensure_ascii=False, indent=1) + "\n"


FORMS: dict[str, Callable[[Talk], str]] = {".md": markdown, ".txt": plain, ".json": as_json}
