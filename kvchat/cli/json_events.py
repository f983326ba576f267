"""`--jsonl`: what happens while kvchat works, a line each."""

import json
import sys
from time import perf_counter
from typing import Any

from kvchat.engine.events import Loading, Progress, Restored, Smaller
from kvchat.terminal.screen import Work
from kvchat.terminal.text import escaped

LOAD_SECONDS = 0.1  # between two events of loading


def emit(event: dict[str, Any]) -> None:
    """A JSON object on a line of its own."""
    # a terminal may have no font or encoding for what is not ASCII
    print(escaped(json.dumps(event, ensure_ascii=sys.stdout.isatty())), flush=True)


class Reporter:
    """`--jsonl`: what happens while kvchat works, a line each."""

    def __init__(self) -> None:
        self._begin = perf_counter()
        self._reading = False
        self._told = 0.0  # when loading was told of last

    def see(self, event: Work | Restored | str) -> None:
        """Write down an event; a prefill starts with one at 0 %."""
        if isinstance(event, str):
            emit({"event": "warning", "message": event})
        elif isinstance(event, Smaller):
            emit({"event": "warning", "message": "out of memory", "chunk": event.chunk})
        elif isinstance(event, Loading):
            if event.done == event.total or perf_counter() - self._told > LOAD_SECONDS:
                self._told = perf_counter()
                emit({"event": "load", "done": event.done, "total": event.total})
        elif isinstance(event, Restored):
            whole = event.tokens * event.layers
            self._begin = perf_counter() - event.seconds
            all_done = Progress(event.layers - 1, event.layers, whole, whole, event.kv_bytes)
            self._prefill(all_done, whole, event.kv_bytes, cached=event.tokens)
        else:
            if not self._reading:
                self._reading, self._begin = True, perf_counter()
                self._prefill(event, 0, 0)
            self._prefill(event, event.done, event.kv_bytes)
            self._reading = event.done < event.total

    def _prefill(self, event: Progress, done: int, kv_bytes: int, cached: int = 0) -> None:
        emit(
            {
                "event": "prefill",
                "total": event.total // event.layers,
                "cache": cached,
                "processed": done // event.layers,
                "time_ms": round(1000 * (perf_counter() - self._begin)),
                "layer": event.layer,
                "layers": event.layers,
                "kv_bytes": kv_bytes,
            }
        )
