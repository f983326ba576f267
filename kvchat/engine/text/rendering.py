"""Chat templates are programs that came with a model: rendered in a process, within limits."""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SECONDS, MEMORY = 2, 256 * 2**20  # processor time and bytes of a template
PATIENCE = 60  # seconds, on a machine that has no time for it
LONGEST = 2**20  # characters of a conversation without its texts
PROGRAM = Path(__file__).with_name("template_process.py")
KEPT = 64  # renderings that are remembered

Messages = Sequence[Mapping[str, str]]
Asked = tuple[Messages, Mapping[str, Any]]  # a conversation, and variables of the template


@dataclass(frozen=True)
class Rendered:
    """What a template made of each conversation: its text, or None and the reason."""

    texts: tuple[str | None, ...]
    reasons: tuple[str, ...]


_known: dict[tuple[str, str, date], Rendered] = {}


def render(
    template: str, variables: Mapping[str, str], asked: Sequence[Asked], days: Sequence[date]
) -> list[Rendered]:
    """Every conversation on every day, in one process; what was rendered before is remembered.

    Nothing is raised for what a template does: it has reasons instead of texts then.
    """
    what = json.dumps([dict(variables), asked])
    known = ((day, _known.get((template, what, day))) for day in dict.fromkeys(days))
    found = {day: each for day, each in known if each is not None}
    if missing := [day for day in dict.fromkeys(days) if day not in found]:
        new = dict(zip(missing, _run(template, variables, asked, missing), strict=True))
        if len(_known) + len(missing) > KEPT:
            _known.clear()
        _known.update({(template, what, day): each for day, each in new.items()})
        found |= new
    return [found[day] for day in days]


def _run(
    template: str, variables: Mapping[str, str], asked: Sequence[Asked], days: Sequence[date]
) -> list[Rendered]:
    request = {
        "path": _packages(),
        "template": template,
        "variables": dict(variables),
        "asked": asked,
        "days": [datetime.combine(day, time()).isoformat() for day in days],
        "seconds": SECONDS,
        "memory": MEMORY,
        "longest": LONGEST,
    }
    why = ""
    try:
        done = subprocess.run(
            # no environment and no packages but those that are named: it starts in 0.1 s
            [sys.executable, "-IS", str(PROGRAM)],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=PATIENCE,
        )
        result = json.loads(done.stdout) if done.returncode == 0 else {}
        why = result.get("why", "")
        if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            why = f"it takes more than {SECONDS} s"
        elif done.returncode:
            why = f"the process that renders it ended with {done.returncode}"
    except subprocess.TimeoutExpired:
        why = f"it takes more than {PATIENCE} s"
    except (OSError, ValueError) as error:
        why = f"the process that renders it failed: {error}"
    if why:
        return [Rendered((None,) * len(asked), (why,) * len(asked))] * len(days)
    return [
        Rendered(tuple(text for text, _ in each), tuple(why for _, why in each))
        for each in result["found"]
    ]


def _packages() -> list[str]:
    """The folders that jinja2 and what it needs are imported from."""
    found = [find_spec(name) for name in ("jinja2", "markupsafe")]
    return sorted({str(Path(each.origin).parents[1]) for each in found if each and each.origin})
