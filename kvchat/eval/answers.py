"""The folder of an evaluation: its description and every answer so far, whole documents only."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import time
from typing import Any

from kvchat.errors import KvchatError
from kvchat.terminal.text import clean

Record = dict[str, Any]
GROWS = {"questions", "lengths", "tasks", "threads", "out", "output", "plot"}
"""Settings that a run may go on with in another way: they add to it, or do not matter."""


class Answers:
    """`answers.jsonl` and `run.json` in a folder."""

    def __init__(self, folder: str):
        """Make the folder. Raises KvchatError("usage") if that cannot be."""
        self.folder = Path(folder).expanduser()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._answers.open("a").close()
        except OSError as error:
            raise KvchatError(
                "usage", f"--out {clean(folder)}: {error.strerror}", "--out ANOTHER-FOLDER"
            ) from None
        self.records: list[Record] = []

    def resume(self, description: Record) -> None:
        """Take the answers of an earlier run with the same settings, and note the description.

        A document that was not written to its end is dropped, for it will be measured again. Raises
        KvchatError("session") if the folder holds another experiment, or is damaged.
        """
        found = self._read()
        sizes = Counter(_document(record) for record in found)
        self.records = [r for r in found if sizes[_document(r)] == r.get("of")]
        if self.records:
            self._compare(description)
        self._replace(self._answers, "".join(map(_line, self.records)))
        text = json.dumps(description | {"time": int(time())}, indent=1)
        self._replace(self._description, text + "\n")

    def add(self, document: Sequence[Record]) -> None:
        """Write down the records of a document; each says how many they are."""
        new = [record | {"of": len(document)} for record in document]
        with self._answers.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, new)))
        self.records += new

    @property
    def done(self) -> set[tuple[str, int, int]]:
        """Task, length and number of the documents that are here."""
        return {_document(record) for record in self.records}

    @property
    def _answers(self) -> Path:
        return self.folder / "answers.jsonl"

    @property
    def _description(self) -> Path:
        return self.folder / "run.json"

    def _read(self) -> list[Record]:
        lines = self._answers.read_text(encoding="utf-8", errors="replace").split("\n")
        found = []
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                record = json.loads(line)
                _document(record)
            except (ValueError, LookupError, TypeError):
                if number == len(lines):  # no line break: the process ended while it was written
                    break
                raise self._damaged(f"{self._answers.name}, line {number}") from None
            found.append(record)
        return found

    def _compare(self, description: Record) -> None:
        try:
            before = json.loads(self._description.read_text(encoding="utf-8"))
            old, new = _fixed(before["settings"]), _fixed(description["settings"])
            files = before["settings"]["data"]
        except (OSError, ValueError, LookupError, TypeError):
            raise self._damaged(self._description.name) from None
        changed = [key for key in new if key in old and old[key] != new[key]]
        changed += [key for key in old.keys() ^ new.keys() if not key.startswith("data ")]
        if old.get("overflow") == "error" and "overflow" in changed:
            changed.remove("overflow")  # nothing was cut so far
        if changed:
            raise KvchatError(
                "session",
                f"{self.folder} holds another experiment: {clean(', '.join(changed))} differ",
                "--out ANOTHER-FOLDER",
            )
        description["settings"]["data"] = files | description["settings"]["data"]

    def _damaged(self, where: str) -> KvchatError:
        return KvchatError("session", f"{self.folder}: {where} is damaged", "--out ANOTHER-FOLDER")

    @staticmethod
    def _replace(path: Path, text: str) -> None:
        part = path.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)


def _document(record: Record) -> tuple[str, int, int]:
    return record["task"], record["length"], record["document"]


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _fixed(settings: Record) -> Record:
    """Settings that must not change; further files may be added, each stays what it was."""
    files = {f"data {name}": found for name, found in settings.get("data", {}).items()}
    return {k: v for k, v in settings.items() if k not in GROWS | {"data"}} | files
