"""Records as csv, json and jsonl: one after the other, as they come. Knows no Markdown."""

import csv
import json
from io import StringIO

from kvchat.bench.record import Record


class Json:
    """An array with an object per test, as llama-bench writes it; whole also when it ends early."""

    def __init__(self) -> None:
        self.begun = False

    def row(self, record: Record) -> str:
        """The next object, after what must stand before it."""
        before, self.begun = "," if self.begun else "[", True
        return f"{before}\n{json.dumps(record, indent=1)}"

    def end(self) -> str:
        """What closes the array."""
        return "\n]\n"


class Lines:
    """An object per line."""

    def row(self, record: Record) -> str:
        """One line."""
        return json.dumps(record) + "\n"

    def end(self) -> str:
        """Nothing more."""
        return ""


class Csv:
    """A line of names, then one per test; lists and options are JSON inside their cell."""

    def __init__(self) -> None:
        self.begun = False

    def row(self, record: Record) -> str:
        """The next line, the names before the first."""
        lines = StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        if not self.begun:
            writer.writerow(record)
            self.begun = True
        writer.writerow(
            json.dumps(value) if isinstance(value, list | dict) else value
            for value in record.values()
        )
        return lines.getvalue()

    def end(self) -> str:
        """Nothing more."""
        return ""
