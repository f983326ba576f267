"""The folder of an evaluation: its description and every answer so far, whole documents only."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from time import time

from platformdirs import user_state_path

from kvchat.errors import KvchatError
from kvchat.eval.report import Record
from kvchat.terminal.text import clean

GROWS = {"questions", "lengths", "tasks", "threads", "out", "output", "plot"}
"""Settings that a run may go on with in another way: they add to it, or do not matter."""
OTHER = "--out ANOTHER-FOLDER"


def default_folder(settings: Record) -> Path:
    """Where the experiment of these settings is kept below the user's state folder."""
    fixed = {k: v for k, v in settings.items() if k not in GROWS | {"data", "overflow"}}
    digest = sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:8]
    name = re.sub(r"[^\w.-]+", "-", settings["model"]).strip("-.")
    return user_state_path("kvchat") / "eval" / f"{name}-{digest}"


class Answers:
    """`answers.jsonl` and `run.json` in a folder."""

    def __init__(self, folder: Path):
        """Make the folder. Raises KvchatError("usage") if that cannot be."""
        self.folder = folder.expanduser()
        self.records: list[Record] = []
        self._answers, self._run = self.folder / "answers.jsonl", self.folder / "run.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._answers.open("a").close()
        except OSError as error:
            named = f"--out {clean(str(folder))}"
            raise KvchatError("usage", f"{named}: {error.strerror}", OTHER) from None

    def resume(self, description: Record) -> None:
        """Take the answers of an earlier run with the same settings, and note the description.

        A document that was not written to its end is dropped, for it will be measured again. Raises
        KvchatError("session") if the folder holds another experiment, or is damaged.
        """
        found = self._found()
        sizes = Counter(map(_document, found))
        self.records = [r for r in found if sizes[_document(r)] == r.get("of")]
        if self.records:
            self._compare(description["settings"])
        _replace(self._answers, "".join(map(_line, self.records)))
        _replace(self._run, json.dumps(description | {"time": int(time())}, indent=1) + "\n")

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

    def _found(self) -> list[Record]:
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

    def _compare(self, settings: Record) -> None:
        """Raise KvchatError("session") if what is here was measured with other settings.

        Files may be added, each stays what it was; `settings` are told of those that were here.
        """
        try:
            before = json.loads(self._run.read_text(encoding="utf-8"))["settings"]
            files, new_files = before["data"], settings["data"]
            old, new = ({k: v for k, v in s.items() if k not in GROWS} for s in (before, settings))
            both = files.keys() & new_files.keys()
            changed = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise self._damaged(self._run.name) from None
        changed = sorted(set(changed) - {"data"})
        changed += [f"data {name}" for name in sorted(both) if files[name] != new_files[name]]
        if old.get("overflow") == "error" and "overflow" in changed:
            changed.remove("overflow")  # nothing was cut so far
        if changed:
            what = f"{clean(', '.join(changed))} differ"
            raise KvchatError("session", f"{self.folder} holds another experiment: {what}", OTHER)
        settings["data"] = files | new_files

    def _damaged(self, where: str) -> KvchatError:
        return KvchatError("session", f"{self.folder}: {where} is damaged", OTHER)


def _replace(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _document(record: Record) -> tuple[str, int, int]:
    return record["task"], record["length"], record["document"]


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
