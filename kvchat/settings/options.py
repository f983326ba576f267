"""Every option of `kvchat chat`, declared once, and the values that it has in a chat."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from kvchat.documents import FORMATS
from kvchat.engine.attention import BACKENDS
from kvchat.engine.decode.sampling import Sampling
from kvchat.engine.kernels import KERNELS
from kvchat.engine.methods import AUTO, METHODS
from kvchat.engine.model.geometries import GEOMETRIES
from kvchat.engine.sizes import MAX_TOKENS
from kvchat.engine.weights.bits import WEIGHTS
from kvchat.errors import KvchatError
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
from kvchat.settings.option import Option, option, options_of

SAVED_CHAT = "saved chat"  # an origin
INSTRUCTION = "Summarise the document."  # neutral: what it looks at, any question may need
MOST_THREADS = 4 * (os.cpu_count() or 1)
# Panels of the help.
MODEL, DOCUMENT, ASK, CACHE = "Model", "Documents", "Questions", "KV cache"
DRAW, MACHINE, CHATS, SCREEN = "Sampling", "Machine", "Chats", "Output"
FILE, UI = "defaults", "ui"  # tables of config.toml

DUMMY = (
    f"No checkpoint, only a shape: {', '.join(GEOMETRIES)}, a config.json or a GGUF file."  # help
)
TEMPLATE = Kind("a file, or none", lambda text: "" if text == "none" else text, "FILE|none")


@dataclass(frozen=True)
class Options:
    """Options of `kvchat chat`; None means "not given". `origins` says where a value is from."""

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
    offline: bool = option("--offline", MODEL, "Works offline.", kind=SWITCH, default=False)

    files: Sequence[str] = option(
        "-f --file",
        DOCUMENT,
        "Document to chat about; repeatable; - is stdin.",
        PATH,
        default=(),
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
        "--clean",
        DOCUMENT,
        "Drop headers that pages repeat, join hyphenated words.",
        kind=SWITCH,
        default=False,
    )

    prompts: Sequence[str] = option(
        "-p --prompt",
        ASK,
        "Question: answer on stdout and exit; repeatable.",
        default=(),
        many=True,
        common=True,
    )
    prompt_file: str | None = option(
        "--prompt-file", ASK, "Questions, one per line; - is stdin.", PATH
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
        "--stop",
        ASK,
        "Text that ends an answer; repeatable.",
        TEXTS,
        default=(),
        many=True,
        live=True,
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
        "-O --method-opt", CACHE, "key=value of the method; repeatable.", default=(), many=True
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

    last: bool = option(
        "-C --continue", CHATS, "Go on with the last saved chat.", kind=SWITCH, default=False
    )
    resume: str | None = option("-r --resume", CHATS, "Go on with the saved chat NAME.")
    session: str | None = option("--session", CHATS, "Go on with the chat NAME, or begin it.")
    save: bool = option("--save/--no-save", CHATS, "Save the chat.", SWITCH, UI, default=True)
    history: bool = option(
        "--history/--no-history", CHATS, "Remember typed lines.", SWITCH, UI, default=True
    )

    json: bool = option("--json", SCREEN, "One JSON object per answer.", kind=SWITCH, default=False)
    jsonl: bool = option("--jsonl", SCREEN, "JSON events, a line each.", kind=SWITCH, default=False)
    stream: bool = option(
        "--stream/--no-stream", SCREEN, "Show an answer while it is decoded.", SWITCH, default=True
    )
    raw: bool = option(
        "--raw",
        SCREEN,
        "Into a pipe or a file: answers with their control characters.",
        kind=SWITCH,
        default=False,
    )
    stats: str = option(
        "--stats",
        SCREEN,
        "Statistics after an answer.",
        one_of("off", "short", "long"),
        UI,
        default="short",
        live=True,
    )
    sources: bool = option(
        "--sources/--no-sources",
        SCREEN,
        "Say where in the documents an answer is from.",
        SWITCH,
        UI,
        default=True,
        live=True,
    )
    markdown: bool = option(
        "--markdown/--no-markdown", SCREEN, "Render Markdown.", SWITCH, UI, default=True, live=True
    )
    color: str = option(
        "--color", SCREEN, "Colours.", one_of("auto", "always", "never"), UI, default="auto"
    )
    plain: bool = option("--plain", SCREEN, "No live lines.", SWITCH, UI, default=False)
    vi: bool = option("--vi", SCREEN, "vi keys.", SWITCH, UI, default=False)
    notify: str = option(
        "--notify",
        SCREEN,
        "Tell when a long prefill has ended.",
        one_of("off", "bell", "osc9"),
        UI,
        default="off",
    )
    quiet: bool = option(
        "-q --quiet", SCREEN, "Answers and errors only.", kind=SWITCH, default=False
    )
    verbose: bool = option(
        "-v --verbose", SCREEN, "Progress, tracebacks.", kind=SWITCH, default=False
    )
    log_file: str | None = option(
        "--log-file", SCREEN, "Append notices, errors and statistics to a file.", PATH
    )
    yes: bool = option("-y --yes", SCREEN, "Do not ask.", kind=SWITCH, default=False)

    # From config.toml and saved chats alone.
    loaders: Mapping[str, list[str]] = field(default_factory=dict)  # commands by suffix
    aliases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of models
    method_defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by method
    texts: Mapping[str, str] = field(default_factory=dict)  # saved with a chat, in no file
    origins: Mapping[str, str] = field(default_factory=dict)

    def origin(self, name: str) -> str:
        """Where a value is from; `flag` if nothing else is known."""
        return self.origins.get(name, "flag")

    def usual_of(self, spec: str) -> list[str]:
        """`key=value` of `[methods.NAME]` for the method of a spec."""
        name = spec.partition(":")[0].partition("@")[0]
        return [f"{key}={value}" for key, value in self.method_defaults.get(name, {}).items()]

    @property
    def method_pairs(self) -> list[str]:
        """`key=value` of the method from config.toml, a saved chat and flags; later ones win."""
        bits = [f"bits={self.kv_bits}"] if self.kv_bits else []
        return [*self.usual_of(self.method), *self.method_options, *bits]

    def changed(self, name: str, value: Any, origin: str) -> "Options":
        """The same with one other value, that is read like a flag's. Raises KvchatError."""
        chosen = OPTIONS[name].kind.read(f"{name}:", value) if isinstance(value, str) else value
        return replace(self, **{name: chosen}, origins={**self.origins, name: origin})

    @property
    def cascade(self) -> tuple[int, int] | None:
        """Levels and their entries, if the conversation is not to end."""
        if self.tail == "off":
            return None
        levels, _, size = self.tail.removeprefix("cascade:").partition("x")
        return int(levels), int(size)

    @property
    def folds(self) -> bool:
        """Whether old turns are compressed."""
        return bool(self.tail_budget or self.cascade)

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn; what nobody gave is the engine's default."""
        values = {name: getattr(self, name) for name in SAMPLING}
        return Sampling(**{name: value for name, value in values.items() if value is not None})

    @property
    def longest(self) -> int:
        """Most tokens of an answer."""
        return self.max_tokens or MAX_TOKENS

    @property
    def thinks(self) -> bool | None:
        """Whether the model is told to think before it answers; None: as its template has it."""
        return None if self.think is None else self.think != "off"

    @property
    def foreseen(self) -> Sequence[str]:
        """Questions that are known before the prefill, and choose what is kept of the document."""
        if self.select == "instruction":
            return [INSTRUCTION]
        goes_on = self.last or self.resume or self.session
        known = self.select == "question" and self.keep_full in ("", "off") and not goes_on
        return self.prompts if known else []

    @property
    def full_copy(self) -> str:
        """Where all entries of the document stay: off, host or disk; choosing by each question as
        it comes needs it."""
        asked = self.select == "question" and not self.foreseen
        return self.keep_full or ("host" if asked else "off")

    @property
    def by_question(self) -> bool:
        """Whether every question chooses what is kept."""
        return self.full_copy != "off" and self.select not in ("document", "instruction")

    @property
    def streams(self) -> bool:
        """Whether a document that exceeds the context window is read part by part."""
        return self.overflow == "stream"

    @property
    def machine_readable(self) -> bool:
        """Whether stdout carries JSON."""
        return self.json or self.jsonl

    def live_values(self) -> dict[str, Any]:
        """What `/set` can change, as it is in effect."""
        drawn = vars(self.sampling) | {"max_tokens": self.longest, "think": self.think or "show"}
        return {name: drawn.get(name, getattr(self, name)) for name in LIVE}


OPTIONS: Mapping[str, Option] = options_of(Options)
LIVE = {name: each for name, each in OPTIONS.items() if each.live}
SAMPLING = tuple(Sampling.__dataclass_fields__)
assert {"model", "stop", *SAMPLING} <= OPTIONS.keys()


def live_option(name: str) -> Option:
    """The option that `/set name` means: a name or the beginning of one. Raises KvchatError."""
    found = [key for key in LIVE if key == name] or [key for key in LIVE if key.startswith(name)]
    if len(found) == 1:
        return LIVE[found[0]]
    close = found or get_close_matches(name, LIVE, n=1)
    hint = f"; did you mean {', '.join(close)}?" if close else f"; there are {', '.join(LIVE)}"
    raise KvchatError("usage", f"no setting {name!r}{hint}", *(f"/set {key}" for key in close))
