"""Forms of answers that clients send: tried in a process of their own, then compiled beside all
else, so that one that takes for ever harms its own request alone."""

import asyncio
import json
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kvchat.engine.decode.sampler import Constraint
from kvchat.engine.text.grammar import COMPACT, LARGEST, Forms, first
from kvchat.serve.refusals import Refusal
from kvchat.serve.requests import Asked

PROGRAM = Path(__file__).with_name("form_process.py")
SECONDS, MEMORY = 3, 512 * 2**20  # processor time and bytes that compiling may take
PATIENCE = 30.0  # seconds, on a machine that has no time for it
TRIED = 256  # forms that are remembered


class FormRoom:
    """Makes the forms of answers. `make` gives what compiles them, when the first is asked for."""

    def __init__(self, make: Callable[[], Forms]):
        self._make = make
        self._forms: Forms | None = None
        self._trying = asyncio.Semaphore(2)
        self._thread = ThreadPoolExecutor(1, "kvchat-forms")
        self._tried: OrderedDict[tuple[str, str], str] = OrderedDict()  # and why not

    async def made(self, asked: Asked) -> list[Constraint | None]:
        """The form of each choice. Raises Refusal or KvchatError for one that cannot be used."""
        if asked.form is None and asked.grammar is None:
            return [None] * asked.n
        kind = "grammar" if asked.form is None else "schema"
        text = json.dumps(asked.form) if asked.form is not None else asked.grammar or ""
        if len(text) > LARGEST:
            raise unusable(f"{len(text):,} characters are more than {LARGEST:,}")
        if (kind, text) not in self._tried:
            async with self._trying:
                self._tried[kind, text] = await self._problem(kind, text)
            if len(self._tried) > TRIED:
                self._tried.popitem(last=False)
        if why := self._tried[kind, text]:
            raise unusable(why)
        work = partial(self._compiled, asked)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Let go of the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _compiled(self, asked: Asked) -> list[Constraint | None]:
        if self._forms is None:
            self._forms = self._make()
        if asked.form is not None:
            return [self._forms.of_schema(asked.form) for _ in range(asked.n)]
        return [self._forms.of_grammar(asked.grammar or "") for _ in range(asked.n)]

    async def _problem(self, kind: str, text: str) -> str:
        """Why a form cannot be used, or an empty string."""
        found = find_spec("llguidance")
        if found is None or found.origin is None:
            return ""  # which is told when it is compiled
        request = {
            "path": [str(Path(found.origin).parents[1])],
            "kind": kind,
            "text": text,
            "how": COMPACT,
            "seconds": SECONDS,
            "memory": MEMORY,
        }
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-IS", str(PROGRAM), stdin=pipe, stdout=pipe,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            async with asyncio.timeout(PATIENCE):
                said, _ = await process.communicate(json.dumps(request).encode())
        except TimeoutError:  # not by itself: that would have ended it sooner
            raise Refusal(503, "there is no time to compile the form", after=5) from None
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            return f"compiling it takes more than {SECONDS} s"
        if process.returncode:
            return f"compiling it needs more than {MEMORY >> 20} MiB, or fails"
        result: dict[str, Any] = json.loads(said)
        return first(result["why"]) if result["why"] else ""


def unusable(why: str) -> Refusal:
    """The refusal of a form."""
    return Refusal(400, f"the form of the answer cannot be used: {why}", "response_format")
