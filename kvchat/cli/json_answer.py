"""One answer as a JSON object: the schema of `--json`. Times in milliseconds, sizes in bytes."""

from importlib.metadata import version
from typing import Any

from kvchat import __version__
from kvchat.chat.chat import Chat
from kvchat.chat.citing import reported, sources
from kvchat.engine.events import TurnDone
from kvchat.engine.methods.specs import method_options, name_of
from kvchat.machine import resources as machine
from kvchat.settings.options import INSTRUCTION

REASONS = {
    **{reason: reason for reason in ("stop", "length", "cancelled", "repetition")},
    "window": "length",
}


def chosen_by(chat: Chat) -> str:
    """What the kept entries were selected by: the document, a question or an instruction."""
    if chat.in_view == INSTRUCTION:
        return "instruction"
    asked = chat.in_view or chat.session.question_seconds is not None
    return "question" if asked else "document"


def report(chat: Chat, question: str, done: TurnDone, warnings: list[str]) -> dict[str, Any]:
    """The object of one answer to a question."""
    session, timings = chat.session, chat.timings
    document = len(session.document)
    memory, archived = session.memory(), session.cache.archived()
    chosen = session.question_seconds
    kept = session.cache.kept
    entries = document * session.engine.model.config.full_heads  # of this rank
    prefill = 0.0 if chat.restored else timings["prefill"]
    device = session.engine.device
    before = sum(len(turn.ids) for turn in session.turns[:-1])
    return {
        "schema": 1,
        "model": chat.model.name,
        "documents": [file.name for file in chat.book.files],
        "question": question,
        "answer": done.answer,
        "reasoning": done.reasoning or None,
        "sources": reported(sources(chat)) if chat.options.sources else [],
        "finish_reason": REASONS[done.finish_reason],
        "usage": {
            "document_tokens": document,
            "prompt_tokens": document + before + done.prompt_tokens,
            "cached_tokens": before + (document if chat.restored else 0),
            "completion_tokens": done.completion_tokens,
            "reasoning_tokens": done.reasoning_tokens,
        },
        "timings": {
            "load_ms": round(1000 * timings["load"]),
            "tokenize_ms": round(1000 * timings["tokenize"]),
            "prefill_ms": round(1000 * prefill),
            "restore_ms": round(1000 * chat.restored.seconds) if chat.restored else 0,
            "prefill_per_second": round(document / prefill, 1) if prefill and document else 0.0,
            "select_ms": round(1000 * (session.select_seconds if chosen is None else chosen)),
            "ttft_ms": round(1000 * done.ttft),
            "decode_ms": round(1000 * done.decode_seconds),
            "decode_per_second": round(done.tokens_per_second, 1),
        },
        "kv": {
            "method": name_of(chat.method),
            "options": method_options(chat.method),
            "budget": str(chat.method.budget),
            "kept_fraction": round(kept / entries, 6) if entries else 1.0,
            "read_fraction": round(session.cache.read / entries, 6) if entries else 1.0,
            "captured_mass": session.cache.captured,
            "bytes": memory.device,
            "full_bytes": session.full_bytes(),
            "host_bytes": memory.host + archived.host,
            "disk_bytes": memory.disk + archived.disk,
            "select": chosen_by(chat),
            "keep_full": chat.cache.full_copy,
        },
        "memory": {
            "weights": session.engine.weights,
            "weights_bytes": session.engine.weights_bytes,
            "peak_bytes": machine.peak(device),
            "reserved_bytes": machine.reserved(device),
            "device_total_bytes": machine.total(device),
        },
        "truncated": chat.book.cut.report() if chat.book.cut else None,
        "warnings": warnings,
        "seed": chat.options.sampling.seed,
        "versions": {"kvchat": __version__, "torch": version("torch")},
    }
