"""The options that a chat is made of, declared once, by the panels of the help: model, documents,
questions, KV cache, sampling, machine."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from kvchat.documents import FORMATS
from kvchat.engine.attention import BACKENDS
from kvchat.engine.kernels import KERNELS
from kvchat.engine.methods import AUTO, METHODS
from kvchat.engine.model.geometries import GEOMETRIES
from kvchat.engine.sizes import MAX_TOKENS
from kvchat.engine.weights.bits import WEIGHTS
from kvchat.settings.kinds import (
    PATH,
    SIZE,
    SWITCH,
    TAIL,
    TEXTS,
    Kind,
    number,
    one_of,
    tokens,
    whole,
)
from kvchat.settings.option import option

MOST_THREADS = 4 * (os.cpu_count() or 1)
# Panels of the help.
MODEL, DOCUMENT, ASK, CACHE = "Model", "Documents", "Questions", "KV cache"
DRAW, MACHINE = "Sampling", "Machine"
FILE = "defaults"  # a table of config.toml

DUMMY = (
    f"No checkpoint, only a shape: {', '.join(GEOMETRIES)}, a config.json or a GGUF file."  # help
)
TEMPLATE = Kind("a file, or none", lambda text: "" if text == "none" else text, "FILE|none")


@dataclass(frozen=True)
class ChatOptions:
    """What a chat is made of; None means "not given"."""

    model: str | None = option(
        "-m --model",
        MODEL,
        "Folder, GGUF file, name of `kvchat models`, ollama:NAME, org/repo[:Q4_K_M].",
        table=FILE,
        common=True,
    )
    revision: str | None = option(
        "--revision", MODEL, "Branch, tag or commit of a model in the cache."
    )
    tokenizer: str | None = option(
        "--tokenizer", MODEL, "Folder or GGUF file of another tokenizer.", PATH, FILE
    )
    chat_template: str | None = option(
        "--chat-template",
        MODEL,
        "A Jinja file in place of the model's; none: plain Question / Answer form.",
        TEMPLATE,
        FILE,
    )
    offline: bool = option("--offline", MODEL, "Works offline.", SWITCH)

    files: Sequence[str] = option(
        "-f --file",
        DOCUMENT,
        "Document to chat about; repeatable; - is stdin.",
        PATH,
        many=True,
        common=True,
    )
    pages: str | None = option("--pages", DOCUMENT, "Pages or chapters: 1-40,60.")
    overflow: str = option(
        "--overflow",
        DOCUMENT,
        "If the document exceeds the context window: an error, stream (read it part by part), or "
        "what to truncate.",
        one_of("error", "stream", "head", "tail", "middle"),
        FILE,
        default="error",
    )
    loader: str = option(
        "--loader",
        DOCUMENT,
        "Kind of the documents, where their names do not tell.",
        one_of("auto", *FORMATS),
        default="auto",
    )
    encoding: str | None = option("--encoding", DOCUMENT, "Encoding of the documents.", table=FILE)
    clean: bool = option(
        "--clean", DOCUMENT, "Drop headers that pages repeat, join hyphenated words.", SWITCH
    )

    prompts: Sequence[str] = option(
        "-p --prompt",
        ASK,
        "Question: answer on stdout and exit; repeatable.",
        many=True,
        common=True,
    )
    prompt_file: str | None = option(
        "--prompt-file", ASK, "Questions, one per line; - is stdin.", PATH
    )
    each: bool = option(
        "--each",
        ASK,
        "With -p: ask about every document by itself; --devices shares them out.",
        kind=SWITCH,
        default=False,
    )
    system: str = option("-s --system", ASK, "System prompt.", table=FILE, default="")
    system_file: str | None = option("--system-file", ASK, "System prompt from a file.", PATH)
    max_tokens: int | None = option(
        "-n --max-tokens",
        ASK,
        f"Most tokens of an answer ({MAX_TOKENS}).",
        whole(1, 2**31),
        FILE,
        live=True,
    )
    think: str | None = option(
        "--think",
        ASK,
        "Thoughts of a model that thinks: shown while they come (default), hidden, or none.",
        one_of("show", "hide", "off"),
        FILE,
        live=True,
    )
    stop: tuple[str, ...] = option(
        "--stop", ASK, "Text that ends an answer; repeatable.", TEXTS, many=True, live=True
    )

    json_schema: str | None = option(
        "--json-schema", ASK, "With -p: answers are JSON by the schema in a file.", PATH
    )
    grammar: str | None = option(
        "--grammar", ASK, "With -p: answers that a grammar (Lark) in a file makes.", PATH
    )

    method: str = option(
        "--method",
        CACHE,
        f"{AUTO} (by memory), {', '.join(METHODS)}; options as NAME:key=value,…",
        table=FILE,
        default=AUTO,
        common=True,
    )
    budget: str | None = option(
        "--budget",
        CACHE,
        "Cache budget: share of entries kept (25%), entries per KV head (2048), bytes (1.5GiB).",
        table=FILE,
        common=True,
    )
    method_options: Sequence[str] = option(
        "-O --method-opt", CACHE, "key=value of the method; repeatable.", many=True
    )
    kv_bits: str | None = option(
        "--kv-bits", CACHE, "Bits of a kept value; 16: as it is.", one_of("16", "8", "4", "2")
    )
    select: str = option(
        "--select",
        CACHE,
        "What chooses the kept entries.",
        one_of("document", "question", "instruction"),
        FILE,
        default="",
    )
    keep_full: str = option(
        "--keep-full",
        CACHE,
        "Where a full copy of the KV is kept, to choose from for each question.",
        one_of("off", "host", "disk"),
        FILE,
        default="",
    )
    tail_budget: int = option(
        "--tail-budget",
        CACHE,
        "Entries per KV head for the conversation: older turns are compressed (off).",
        whole(1, 2**31),
        default=0,
    )
    tail: str = option(
        "--tail",
        CACHE,
        "A conversation without end: levels of entries per KV head, each sees twice as far (off).",
        TAIL,
        FILE,
        default="off",
    )
    ctx_size: int | None = option(
        "-c --ctx-size",
        CACHE,
        "Context window to use: 8192, 32k, 32K (the model's).",
        tokens(),
        FILE,
    )
    prefill_chunk: int | None = option(
        "--prefill-chunk", CACHE, "Tokens of a prefill step (512; CUDA 2048).", tokens(), FILE
    )
    prompt_cache: str = option(
        "--prompt-cache",
        CACHE,
        "Reuse saved compressed documents.",
        one_of("on", "off", "readonly"),
        FILE,
        default="on",
    )
    prompt_cache_dir: str | None = option(
        "--prompt-cache-dir", CACHE, "Folder of the prompt cache.", PATH, FILE
    )

    temperature: float | None = option(
        "--temp", DRAW, "Temperature; 0 is greedy.", number(0), FILE, live=True
    )
    top_k: int | None = option(
        "--top-k",
        DRAW,
        "Sample from the k likeliest tokens; 0 is off.",
        whole(0, 2**31),
        FILE,
        live=True,
    )
    top_p: float | None = option(
        "--top-p",
        DRAW,
        "Nucleus sampling threshold; 1 is off.",
        number(0, 1, above=True),
        FILE,
        live=True,
    )
    min_p: float | None = option(
        "--min-p",
        DRAW,
        "Least probability, relative to the likeliest; 0 is off.",
        number(0, 1),
        FILE,
        live=True,
    )
    repeat_penalty: float | None = option(
        "--repeat-penalty",
        DRAW,
        "Penalty of repeated tokens; 1 is off.",
        number(0, above=True),
        FILE,
        live=True,
    )
    seed: int | None = option(
        "--seed", DRAW, "Sampling seed (0).", whole(0, 2**63 - 1), FILE, live=True
    )

    device: str = option(
        "--device", MACHINE, "auto, cpu, cuda, cuda:N.", table=FILE, default="auto", common=True
    )
    devices: int | None = option(
        "--devices",
        MACHINE,
        "Share the model out over so many devices: processes on a CPU, cards with CUDA (1).",
        whole(1, 64),
        FILE,
    )
    dtype: str = option("--dtype", MACHINE, "auto, bf16, f16, f32.", table=FILE, default="auto")
    weights: str = option(
        "--weights",
        MACHINE,
        "Weight quantization; auto: as in the checkpoint.",
        one_of(*WEIGHTS),
        FILE,
        default="auto",
    )
    attention: str = option(
        "--attention",
        MACHINE,
        f"auto, {', '.join(BACKENDS)} (flash: prefill only).",
        table=FILE,
        default="auto",
    )
    kernels: str = option(
        "--kernels",
        MACHINE,
        "auto: numba on a CPU, triton on a card.",
        one_of(*KERNELS),
        FILE,
        default="auto",
    )
    threads: int | None = option("--threads", MACHINE, "CPU threads.", whole(1, MOST_THREADS), FILE)
    mem_limit: int | None = option(
        "--mem-limit", MACHINE, "Memory that kvchat may plan with: 20GiB.", SIZE, FILE
    )
