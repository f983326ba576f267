"""The program with an engine that writes what a file says: `python scripted_program.py SCRIPT
ARGUMENTS`. SCRIPT is JSON: `answers` (one after the other, the last one again and again), seconds
per token, seconds per chunk of a reading, and chunks at which memory runs out."""

import json
import sys
import time
from pathlib import Path

from kvchat.app import cli
from kvchat.engine import prefill
from kvchat.engine.engine import Engine
from kvchat.engine.events import drain

SCRIPT = json.loads(Path(sys.argv.pop(1)).read_text())
ANSWERS = SCRIPT.get("answers", ["Yes."])
OUT = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
step, chunks = prefill.step, 0


def scripted_decode(self, cache, logits, sampling):
    answer = ANSWERS.pop(0) if len(ANSWERS) > 1 else ANSWERS[0]
    for token in TOKENIZER.encode([(answer, True)], continues=True):
        time.sleep(SCRIPT.get("token_seconds", 0))
        yield token
        drain(self.extend(cache, [token]))


def slow_step(block, layer, x, *rest):
    global chunks
    if len(x) > 1:
        time.sleep(SCRIPT.get("chunk_seconds", 0))
        chunks += 1
        if chunks in SCRIPT.get("out_of_memory", ()):
            raise RuntimeError(OUT)
    return step(block, layer, x, *rest)


Engine.decode = scripted_decode  # type: ignore[method-assign,assignment]
prefill.step = slow_step

from kvchat.engine.tokenizer import Tokenizer  # noqa: E402

load = Tokenizer.load.__func__  # type: ignore[attr-defined]


def remembered(cls, folder):
    global TOKENIZER
    TOKENIZER = load(cls, folder)
    return TOKENIZER


Tokenizer.load = classmethod(remembered)  # type: ignore[method-assign,assignment]

if __name__ == "__main__":
    cli.main()
