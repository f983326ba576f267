"""`-p`: answers on stdout, one reading for all questions, then the end."""

import json
from contextlib import closing
from importlib.metadata import version
from typing import Any

from kvchat import __version__
from kvchat.app import machine
from kvchat.app.interrupt import Interrupt
from kvchat.app.options import Options
from kvchat.app.screen import Screen
from kvchat.app.start import Chat, open_chat, unicode
from kvchat.engine.events import Delta, TurnDone
from kvchat.engine.methods.spec import method_options, name_of

REASONS = {"stop": "stop", "length": "length", "window": "length", "cancelled": "cancelled"}


def run(options: Options, screen: Screen) -> int:
    """Ask every prompt about the document, independently. Returns the exit code."""
    chat = open_chat(options, screen)
    for prompt in options.prompts:
        chat.session.clear()  # several questions are independent of each other
        with Interrupt() as interrupt:
            done = ask(chat, prompt, screen, interrupt, show=not options.json)
        if options.json:
            screen.write(json.dumps(report(chat, done, screen.warnings), ensure_ascii=False) + "\n")
        if done.finish_reason == "cancelled":
            raise KeyboardInterrupt
        if done.finish_reason in ("length", "window") and not options.json:
            screen.warn(f"the answer was cut: {limit_text(done, chat)}")
    return 0


def ask(chat: Chat, prompt: str, screen: Screen, interrupt: Interrupt, show: bool) -> TurnDone:
    """Stream one answer to stdout (if `show`), ended by a newline."""
    turn = chat.session.ask(
        unicode(prompt), chat.sampling, chat.max_tokens, chat.options.stop, interrupt.asked
    )
    done = None
    with screen.busy("reading the question") as answering, closing(turn):
        for event in turn:
            if isinstance(event, Delta):
                answering()
                if show:
                    screen.write(event.text)
            elif isinstance(event, TurnDone):
                done = event
    assert done is not None, "every turn ends with TurnDone"
    if show:
        screen.write("\n")
    return done


def limit_text(done: TurnDone, chat: Chat) -> str:
    """Which limit an answer met."""
    if done.finish_reason == "window":
        return f"the window of {chat.session.limit:,} tokens is full"
    return f"token limit {chat.max_tokens:,} (--max-tokens)"


def report(chat: Chat, done: TurnDone, warnings: list[str]) -> dict[str, Any]:
    """The `--json` object of one answer; times in milliseconds, sizes in bytes."""
    session, timings = chat.session, chat.timings
    document = len(session.document)
    memory = session.memory()
    kept = sum(sum(s.lengths) for s in session.cache.segments())
    config = session.engine.config
    rows = document * config.num_kv_heads * config.num_layers
    prefill = timings["prefill"]
    device = session.engine.device
    return {
        "schema": 1,
        "model": chat.model.name,
        "answer": done.answer,
        "finish_reason": REASONS[done.finish_reason],
        "usage": {
            "document_tokens": document,
            "prompt_tokens": document + done.prompt_tokens,
            "cached_tokens": 0,
            "completion_tokens": done.completion_tokens,
        },
        "timings": {
            "load_ms": round(1000 * timings["load"]),
            "tokenize_ms": round(1000 * timings["tokenize"]),
            "prefill_ms": round(1000 * prefill),
            "prefill_per_second": round(document / prefill, 1) if prefill and document else 0.0,
            "select_ms": round(1000 * session.select_seconds),
            "ttft_ms": round(1000 * done.ttft),
            "decode_ms": round(1000 * done.decode_seconds),
            "decode_per_second": round(done.tokens_per_second, 1),
        },
        "kv": {
            "method": name_of(chat.method),
            "options": method_options(chat.method),
            "budget": str(chat.method.budget),
            "kept_fraction": round(kept / rows, 6) if rows else 1.0,
            "bytes": memory.device,
            "full_bytes": session.full_bytes(),
            "host_bytes": memory.host,
            "disk_bytes": memory.disk,
            "select": "document",
            "keep_full": "off",
        },
        "memory": {
            "weights_bytes": session.engine.weights_bytes,
            "peak_bytes": machine.peak(device),
            "reserved_bytes": machine.reserved(device),
            "device_total_bytes": machine.total(device),
        },
        "truncated": None,
        "warnings": warnings,
        "seed": chat.sampling.seed,
        "versions": {"kvchat": __version__, "torch": version("torch")},
    }
