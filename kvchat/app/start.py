"""From options to an open session: find, check and plan before anything large is loaded."""

import os
import stat
import sys
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from kvchat import __version__
from kvchat.app import documents, machine, process
from kvchat.app.models import Model, find_model
from kvchat.app.options import Options
from kvchat.app.plan import make_plan, require_memory
from kvchat.app.screen import Screen
from kvchat.app.text import ratio, seconds, size, sizes
from kvchat.engine.budget import Budget
from kvchat.engine.dialogue import Dialogue
from kvchat.engine.engine import Engine, resolve_device, resolve_dtype
from kvchat.engine.methods import DEFAULT
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.full import Full
from kvchat.engine.methods.spec import name_of, parse_method
from kvchat.engine.model.config import ModelConfig, read_json
from kvchat.engine.model.weights import check_weights
from kvchat.engine.prefill import CHUNKS
from kvchat.engine.sampling import Sampling
from kvchat.engine.session import MAX_TOKENS, Session, require_fit
from kvchat.engine.tokenizer import Tokenizer
from kvchat.errors import KvchatError

PROBE = 16  # characters per token of the window that are tokenised before the rest is


@dataclass
class Chat:
    """A session with what the program knows around it."""

    options: Options
    model: Model
    session: Session
    method: Method
    sampling: Sampling
    files: list[documents.Document]
    timings: dict[str, float]

    @property
    def max_tokens(self) -> int:
        """Tokens of an answer at most."""
        return self.options.max_tokens or MAX_TOKENS

    @property
    def title(self) -> str:
        """What the conversation is about."""
        return ", ".join(file.name for file in self.files)


def open_chat(options: Options, screen: Screen) -> Chat:
    """Find, check, plan, load, read. Raises KvchatError before the weights load if it can."""
    if options.threads:
        torch.set_num_threads(options.threads)
    method = chosen_method(options)
    model = find_model(options.model)
    if options.model is None:
        screen.warn(
            "no model given or configured: using the bundled demo model "
            "(small; -m NAME picks another)"
        )
    config = ModelConfig.load(model.folder)
    check_weights(model.folder, config)
    device, dtype = resolve_device(options.device), resolve_dtype(options.dtype, config)
    sampling, ends = generation_settings(model, options)
    files = read_documents(options)
    for file in files:
        for notice in file.notices:
            screen.warn(notice)

    begin = perf_counter()
    limit = context_limit(config, options)
    with screen.busy("tokenising"):
        tokenizer = Tokenizer.load(model.folder)
        dialogue = Dialogue(tokenizer, has_document=bool(files or options.system))
        ids = document_ids(dialogue, files, unicode(options.system), limit)
    if not dialogue.form.is_template:
        screen.warn(f"{model.name} has no usable chat template: plain Question / Answer form")
    if ids and max(ids) >= config.vocab_size:
        raise KvchatError(
            "model",
            f"the tokenizer of {model.folder} makes token {max(ids):,}; the model has "
            f"{config.vocab_size:,}",
        )
    tokenize = perf_counter() - begin
    chunk = options.prefill_chunk or CHUNKS[device.type]

    plan = make_plan(config, dtype.itemsize, len(ids), method.budget, limit, chunk)
    free = machine.free(device)
    screen.say(
        f"kvchat {__version__} · {model.name} ({config.family}, {config.parameters / 1e6:,.1f} M "
        f"parameters, {str(dtype).removeprefix('torch.')}) · {device}"
        + (f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""),
        "bold",
    )
    for file in files:
        screen.say(f"{file.name} · {size(file.size)}, {file.encoding}")
    if files:
        screen.say(
            f"{len(ids):,} tokens · {len(ids) / limit:.0%} of the {limit:,} window, "
            f"{limit - len(ids):,} left for questions and answers"
        )
        screen.say(
            f"plan: KV {size(plan.kv_full)} in full → {size(plan.kv_kept)} with "
            f"{name_of(method)} · est. {size(plan.reading)} while reading, {size(plan.chatting)} "
            f"with the window full, {size(free)} free"
        )
    require_memory(plan, free, str(device), name_of(method))

    process.interruptible()
    begin = perf_counter()
    loading = Engine.load(model.folder, config, options.dtype, options.device)
    engine = screen.watch(loading, "loading")
    engine.chunk = chunk
    load = perf_counter() - begin
    session = Session(engine, dialogue, ends, limit)
    if not files:
        method = Full()  # a system text alone is not worth a choice
    chat = Chat(options, model, session, method, sampling, files, {})
    begin = perf_counter()
    screen.watch(session.open(ids, method), "reading", len(ids))
    prefill = perf_counter() - begin
    chat.timings = {"load": load, "tokenize": tokenize, "prefill": prefill}
    if files:
        screen.say(reading_line(chat))
    return chat


def reading_line(chat: Chat) -> str:
    """`read 27,913 tokens in 6.6 s (4,230 tok/s) · kept 25 % of KV: 0.86 of 3.41 GiB`."""
    session, took = chat.session, chat.timings["prefill"]
    tokens = len(session.document)
    held = sum(segment.memory().total for segment in session.cache.segments())
    full = tokens * session.engine.kv_bytes_per_token
    return (
        f"read {tokens:,} tokens in {seconds(took)} ({tokens / max(took, 1e-6):,.0f} tok/s) · "
        f"{name_of(chat.method)} keeps {sizes(held, full)} of KV: {ratio(held, full)}"
    )


def document_ids(
    dialogue: Dialogue, files: list[documents.Document], system: str, limit: int
) -> list[int]:
    """Ids up to the end of the documents. Raises KvchatError("too_long").

    A text that is far too long is refused from its beginning: tokenising a library takes minutes
    and gigabytes.
    """
    text = documents.joined(files) if files else ""
    title = ", ".join(file.name for file in files) or "the system text"
    beginning = text[: PROBE * limit]
    if len(beginning) < len(text):
        tokens = len(dialogue.document(beginning, system))
        if tokens > limit:
            require_fit(tokens * len(text) // len(beginning), limit, f"{title} (estimated)")
    ids = dialogue.document(text, system)
    require_fit(len(ids), limit, title)
    return ids


def unicode(text: str) -> str:
    """Text of the command line or of a terminal; bytes that were not UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def chosen_method(options: Options) -> Method:
    """The method of `--method`, `-O` and `--budget`. Raises KvchatError("usage")."""
    budget = Budget.parse(options.budget) if options.budget else None
    method = parse_method(options.method or DEFAULT, budget, options.method_options)
    if budget is not None and isinstance(method, Full):
        raise KvchatError(
            "usage",
            "full keeps everything and takes no budget",
            f"--method adakv --budget {budget}",
        )
    return method


def context_limit(config: ModelConfig, options: Options) -> int:
    """The model's window, or the smaller one of `--ctx-size`."""
    if options.ctx_size is None:
        return config.context_limit
    if not 1 <= options.ctx_size <= config.context_limit:
        raise KvchatError(
            "usage",
            f"--ctx-size {options.ctx_size:,} is outside 1–{config.context_limit:,}, "
            "the model's window",
            f"--ctx-size {config.context_limit}",
        )
    return options.ctx_size


def generation_settings(model: Model, options: Options) -> tuple[Sampling, list[int]]:
    """Sampling from flags over generation_config.json, and the end tokens that file names."""
    path = model.folder / "generation_config.json"
    raw: dict[str, Any] = read_json(path) if path.exists() else {}
    sampled = raw if raw.get("do_sample") else {}
    flags = {
        "temperature": (options.temperature, sampled.get("temperature"), 1.0 if sampled else 0.0),
        "top_k": (options.top_k, sampled.get("top_k"), 0),
        "top_p": (options.top_p, sampled.get("top_p"), 1.0),
        "min_p": (options.min_p, sampled.get("min_p"), 0.0),
        "repeat_penalty": (options.repeat_penalty, raw.get("repetition_penalty"), 1.0),
        "seed": (options.seed, None, 0),
    }
    values: dict[str, Any] = {}
    for name, (flag, named, default) in flags.items():
        values[name] = next(value for value in (flag, named, default) if value is not None)
        if flag is None and not isinstance(values[name], int | float):
            raise KvchatError("model", f"{path}: {name} is {values[name]!r}, not a number")
    ends = raw.get("eos_token_id")
    named_ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return Sampling(**values), [int(end) for end in named_ends]


def read_documents(options: Options) -> list[documents.Document]:
    """The named files, or what is piped in, or nothing. Raises KvchatError("input").

    An empty pipe is an error, for whatever should have filled it has failed; /dev/null is not.
    """
    if options.files:
        return [documents.read(unicode(path), options.encoding) for path in options.files]
    if stat.S_ISCHR(os.fstat(sys.stdin.fileno()).st_mode):
        return []
    return [documents.read(documents.STDIN, options.encoding)]
