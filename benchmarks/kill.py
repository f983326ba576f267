"""Kills kvchat at random points and counts what is lost: `python benchmarks/kill.py`.

A saved chat over a document is gone on with again and again, and every run is ended by SIGKILL:
after a random time, or a moment after a random event of `--jsonl`. What a run has said is done must
be in the chat; the chat must open; every cached document must be whole, and beside them there may
be temporary files of ours alone. Every few runs a new chat with a new document begins, so that
kills fall into prefill and caching too. A line of JSON comes last; the exit code is 1 if anything
was lost.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from kvchat.chat import chatlog
from kvchat.engine.store import Refused
from kvchat.engine.store.atomic import MARK, TEMPORARY
from kvchat.engine.store.tensors import Mapped
from kvchat.errors import KvchatError

QUESTIONS = ("Who lives by the river?", "What is the boat called?", "Where is the mill?") * 2
SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "valley.txt"
ROUND = 4  # kills of one chat


def main() -> int:
    """Kill, look, count. Returns the exit code."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=40)
    options.add_argument("--seconds", type=float, default=600.0, help="no kill begins later")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--characters", type=int, default=8000, help="of the document")
    chosen = options.parse_args()
    dice, counts = random.Random(chosen.seed), Counter[str]()
    begin, usual = time.monotonic(), None
    with tempfile.TemporaryDirectory() as place:
        os.environ |= {
            "XDG_STATE_HOME": f"{place}/state",
            "XDG_CACHE_HOME": f"{place}/cache",
            "XDG_CONFIG_HOME": f"{place}/config",
        }
        book = Path(place) / "book.txt"
        for number in range(chosen.kills):
            if time.monotonic() - begin > chosen.seconds:
                break
            if number % ROUND == 0:
                name, said = f"chat {number}", 0
                book.write_text(f"{number}.\n" + SAMPLE.read_text()[: chosen.characters])
                usual = usual or run(book, "measured")
            at = dice.randrange(1, usual.events) if dice.random() < 0.7 else 0
            ran = run(book, name, dice.uniform(0.1, usual.seconds), at, dice.uniform(0, 0.02))
            said += ran.done
            counts["acknowledged"] += ran.done
            counts["kills"] += ran.killed
            look(name, said, counts)
            said = max(said, turns_of(name))  # what was on disk and not yet said stays, too
            print(f"{number + 1:4} {name}: {said} turns, {counts['lost']} lost", file=sys.stderr)
        for path in (Path(place) / "cache").rglob("*"):
            whole(path, counts)
    figures = {key: counts[key] for key in
               ("kills", "acknowledged", "lost", "unreadable", "cached", "damaged", "foreign",
                "left_over")}  # fmt: skip
    print(json.dumps(figures | {"seed": chosen.seed}))
    return int(any(counts[key] for key in ("lost", "unreadable", "damaged", "foreign")))


class Ran(NamedTuple):
    """What a run did: turns it said were done, events, how long it lived, whether it was killed."""

    done: int
    events: int
    seconds: float
    killed: bool


def run(book: Path, name: str, seconds: float = 0.0, at: int = 0, moment: float = 0.0) -> Ran:
    """Ask all questions. Kill a moment after event number `at`, or after so many seconds if that
    is 0; without both let it end."""
    asked = [part for question in QUESTIONS for part in ("-p", question)]
    known = chatlog.folder().exists() and any(chat.name == name for chat in chatlog.chats())
    command = [sys.executable, "-m", "kvchat", *([] if known else [str(book)]), "--session", name,
               *asked, "-n", "8", "-m", "demo", "--jsonl"]  # fmt: skip
    begin = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    timer = threading.Timer(seconds if seconds and not at else 600.0, child.kill)
    timer.start()
    done = events = 0
    for line in child.stdout:
        events += 1
        done += line.endswith(b"\n") and json.loads(line).get("event") == "done"
        if events == at:
            time.sleep(moment)
            child.kill()
    child.wait()
    timer.cancel()
    killed = child.returncode == -signal.SIGKILL
    if not killed and child.returncode:
        raise SystemExit(f"a run that was not killed ended with {child.returncode}")
    return Ran(done, events, time.monotonic() - begin, killed)


def turns_of(name: str) -> int:
    """Turns that the saved chat has; none if it is not there."""
    chat = chatlog.named(name)
    return len(chat.turns) if chat else 0


def look(name: str, said: int, counts: Counter[str]) -> None:
    """Count what the chat lacks of the turns that were said to be done."""
    try:
        counts["lost"] += max(0, said - turns_of(name))
    except KvchatError:
        counts["unreadable"] += 1


def whole(path: Path, counts: Counter[str]) -> None:
    """Count a file of the cache: a whole document, a temporary file of ours, or a fault."""
    if path.is_dir():
        return
    if path.name.startswith(MARK) and path.name.endswith(TEMPORARY):
        counts["left_over"] += 1  # the next one to prune takes it away
    elif path.suffix == ".safetensors":
        try:
            Mapped(path).check()
            counts["cached"] += 1
        except (Refused, OSError):
            counts["damaged"] += 1
    elif "kv" in path.parts:
        counts["foreign"] += 1


if __name__ == "__main__":
    sys.exit(main())
