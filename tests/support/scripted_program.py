"""An engine that writes what a script says, in place of the one that is there. A script is a
dictionary: `answers` (one after the other, the last one again and again), seconds per token,
seconds per chunk of a reading, and chunks at which memory runs out."""

import time

from kvchat.engine.engine import Engine
from kvchat.engine.events import drain
from kvchat.engine.prefill import walk
from kvchat.engine.text.tokenizer import Tokenizer

OUT = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"


def play(script: dict) -> None:
    """Replace the engine of this process."""
    answers = list(script.get("answers", ["Yes."]))
    step, load = walk.step, Tokenizer.load.__func__  # type: ignore[attr-defined]
    chunks, tokenizers = 0, []

    def scripted_decode(self, cache, logits, sampling, drawn=(), constraint=None):
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        for token in tokenizers[-1].encode([(answer, True)], continues=True):
            time.sleep(script.get("token_seconds", 0))
            yield token
            drain(self.extend(cache, [token]))

    def slow_step(block, layer, x, *rest):
        nonlocal chunks
        if len(x) > 1:
            time.sleep(script.get("chunk_seconds", 0))
            chunks += 1
            if chunks in script.get("out_of_memory", ()):
                raise RuntimeError(OUT)
        return step(block, layer, x, *rest)

    def remembered(cls, folder):
        tokenizers.append(load(cls, folder))
        return tokenizers[-1]

    Engine.decode = scripted_decode  # type: ignore[method-assign,assignment]
    walk.step = slow_step
    Tokenizer.load = classmethod(remembered)  # type: ignore[method-assign,assignment]
