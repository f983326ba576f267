"""The program that renders a chat template in a process of its own, within limits.

It imports nothing of kvchat: `rendering.py` runs it, writes a request to its stdin and reads what
was rendered from its stdout, both as JSON.
"""

import json
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any


def main() -> None:
    """Render what stdin asks for; `why` is set where a limit ended it."""
    request = json.load(sys.stdin)
    sys.path += request["path"]
    made = environment()
    limit(request["seconds"], request["memory"])
    found: list[list[Any]] = []
    why = ""
    try:
        template = made(request["template"])
        for day in request["days"]:
            at = datetime.fromisoformat(day)
            found.append([one(template, at, request, *each) for each in request["asked"]])
        text = json.dumps({"found": found})
    except MemoryError:
        why = f"it needs more than {request['memory'] >> 20} MiB"
    except Exception as error:  # of its syntax, say
        why = reason(error)
    sys.stdout.write(json.dumps({"why": why}) if why else text)


def one(template: Any, at: datetime, request: Any, messages: Any, told: Any) -> Any:
    """`[text, ""]`, or `[None, why not]`: templates refuse roles in their own words."""
    given = {"tools": None, "documents": None, "add_generation_prompt": True, **told}
    try:
        text = template.render(
            {**request["variables"], **given}, messages=messages, strftime_now=at.strftime
        )
    except MemoryError:
        raise
    except Exception as error:
        return [None, reason(error)]
    if len(text) > request["longest"]:
        return [None, f"it writes more than {request['longest']:,} characters"]
    return [text, ""]


def reason(error: Exception) -> str:
    """The first line of what was raised."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


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


def environment() -> Callable[[str], Any]:
    """What compiles a template, with what templates of models expect beside Jinja itself."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """`{% generation %}`, around what a model writes: nothing but a scope here."""

        tags = {"generation"}  # noqa: RUF012 - as the library has it

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Names(Namespace):
        """No name begins with an underscore: those lead into Python."""

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"{name!r} cannot be set")
            super().__setitem__(name, value)

    def names(**given: Any) -> Names:
        made = Names()
        for name, value in given.items():
            made[name] = value
        return made

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def dictionary(*pairs: Any, **given: Any) -> dict[Any, Any]:
        return dict(*pairs, **given)

    def as_json(value: Any, ensure_ascii: bool = False, **how: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **how)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.globals |= {"raise_exception": refuse, "dict": dictionary, "namespace": names}
    made.filters["tojson"] = as_json
    return made.from_string


if __name__ == "__main__":
    main()
