"""`kvchat bench`: speed and memory of reading and writing, method by method."""

import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Protocol, TextIO

from kvchat import process
from kvchat.bench.formats import Csv, Json, Lines
from kvchat.bench.markdown import Markdown
from kvchat.bench.record import Record
from kvchat.bench.settings import FORMATS, Settings
from kvchat.bench.subject import Subject, load
from kvchat.bench.sweep import sweep
from kvchat.errors import EXIT_CODES, KvchatError
from kvchat.machine import resources as machine
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import clean, size


class Format(Protocol):
    """How records are written, one after the other."""

    def row(self, record: Record) -> str:
        """The next record."""
        ...

    def end(self) -> str:
        """What comes after the last."""
        ...


OTHERS: Mapping[str, Callable[[], Format]] = {"csv": Csv, "json": Json, "jsonl": Lines}


def run(settings: Settings) -> int:
    """Measure every test, write records as they come. Returns the exit code."""
    process.interruptible()
    picture = _checked(settings)
    screen = Screen(quiet=settings.errput is not None)
    subject = load(settings, screen)
    outputs = [(sys.stdout, _format(settings.output, settings, subject, sys.stdout))]
    if settings.errput is not None:
        outputs.append((sys.stderr, _format(settings.errput, settings, subject, sys.stderr)))
    records: list[Record] = []
    try:
        for record in sweep(settings, subject, screen):
            records.append(record)
            for stream, output in outputs:
                print(output.row(record), end="", file=stream, flush=True)
    except KeyboardInterrupt:
        return process.CTRL_C
    finally:  # what was measured is whole, whatever ended it
        for stream, output in outputs if records else ():
            print(output.end(), end="", file=stream, flush=True)
        if picture is not None and records:
            picture([r for r in records if r["n_gen"] and not r["error"]], screen)
    return EXIT_CODES["memory"] if any(record["error"] for record in records) else 0


def list_devices() -> int:
    """Print what `--device` can be."""
    for device in machine.devices():
        name = machine.device_name(device).partition(" ")[2]
        free, whole = size(machine.free(device)), size(machine.total(device))
        print(f"{device}  {name}, {free} of {whole} free")
    return 0


def _checked(settings: Settings) -> Callable[[list[Record], Screen], None] | None:
    """Refuse what cannot be, before anything is loaded. Returns what draws the picture, if any."""
    for flag, name in (("-o", settings.output), ("-oe", settings.errput)):
        if name is not None and name not in FORMATS:
            ways = [f"{flag} {known}" for known in FORMATS]
            raise KvchatError("usage", f"{flag} {clean(name)!r} is unknown", *ways)
    tests = list(settings.tests())
    if not tests:
        raise KvchatError("usage", "there is nothing to measure: -p 0 and -n 0", "-p 512", "-n 64")
    if settings.plot is None:
        return None
    if not any(test.n_gen for test in tests):
        raise KvchatError("usage", "--plot shows how fast is written, and -n is 0", "-n 64")
    # matplotlib behind it is optional
    from kvchat.bench.picture import draw
    from kvchat.plots import target

    path = target(settings.plot)

    def drawn(records: list[Record], screen: Screen) -> None:
        if not records:
            screen.warn(f"no picture in {path}: nothing was written")
            return
        draw(path, records)
        screen.say(f"picture in {path}")

    return drawn


def _format(name: str, settings: Settings, subject: Subject, stream: TextIO) -> Format:
    if name == "md":
        width = shutil.get_terminal_size().columns if stream.isatty() else None
        return Markdown(settings, subject, width)
    return OTHERS[name]()
