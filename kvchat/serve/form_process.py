"""The program that compiles the form of an answer once, in a process of its own, within limits: for
some take for ever.

It imports nothing of kvchat: `forms.py` runs it, writes a request to its stdin and reads from its
stdout why the form cannot be used, both as JSON.
"""

import json
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


def main() -> None:
    """Compile what stdin asks for."""
    request = json.load(sys.stdin)
    sys.path += request["path"]
    import llguidance

    limit(request["seconds"], request["memory"])
    try:
        why = problem(llguidance.LLMatcher, request)
    except MemoryError:
        why = f"it needs more than {request['memory'] >> 20} MiB"
    except ValueError as error:
        why = str(error)
    sys.stdout.write(json.dumps({"why": why}))


def problem(matcher: Any, request: Any) -> str:
    """What the library says against it."""
    if request["kind"] == "grammar":
        grammar = matcher.grammar_from_lark(request["text"])
    else:
        grammar = matcher.grammar_from_json_schema(request["text"], overrides=request["how"])
    found: str = matcher.validate_grammar(grammar)
    return "" if found.startswith("WARNING") else found


def limit(seconds: int, memory: int) -> None:
    """From here on: so much more processor time, and memory in bytes, and no file of a crash."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    until = seconds + round(spent.ru_utime + spent.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (until, until + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):  # macOS has neither
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        room = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (room, room))


if __name__ == "__main__":
    main()
