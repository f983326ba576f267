"""What was asked on the command line, in the environment and in config.toml, as plain values.
Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

SAVED_CHAT = "saved chat"  # an origin
INSTRUCTION = "Summarise the document."  # neutral: what it looks at, any question may need


@dataclass(frozen=True)
class Options:
    """Options of `kvchat chat`; None means "not given". `origins` says where a value is from."""

    model: str | None = None
    revision: str | None = None
    offline: bool = False
    tokenizer: str | None = None  # a folder
    chat_template: str | None = None  # a file; empty for the plain form
    mem_limit: int | None = None
    files: list[str] = field(default_factory=list)
    texts: Mapping[str, str] = field(default_factory=dict)  # saved with a chat, in no file
    prompts: list[str] = field(default_factory=list)
    system: str = ""
    encoding: str | None = None
    pages: str | None = None
    loader: str = "auto"
    loaders: Mapping[str, list[str]] = field(default_factory=dict)  # commands by suffix
    clean: bool = False
    overflow: str = "error"
    method: str = ""
    method_options: list[str] = field(default_factory=list)
    budget: str | None = None
    auto_loss: float | None = None  # of held-out tokens, how many may change
    tail_budget: int = 0
    kv_cache: str = "on"  # whether readings are saved and used again
    kv_cache_dir: str | None = None
    keep_full: str = ""  # off, host or disk
    select: str = ""  # document, question or instruction
    ctx_size: int | None = None
    prefill_chunk: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    device: str = "auto"
    dtype: str = "auto"
    weights: str = "auto"
    attention: str = "auto"
    threads: int | None = None
    last: bool = False  # --continue
    resume: str | None = None
    session: str | None = None
    save: bool = True
    history: bool = True
    json: bool = False
    jsonl: bool = False
    quiet: bool = False
    plain: bool = False
    verbose: bool = False
    color: str = "auto"
    yes: bool = False
    stats: str = "short"
    markdown: bool = True
    theme: str = "dark"
    stream: bool = True
    vi: bool = False
    notify: str = "off"
    origins: Mapping[str, str] = field(default_factory=dict)

    def origin(self, name: str) -> str:
        """Where a value is from; `flag` if nothing else is known."""
        return self.origins.get(name, "flag")

    @property
    def foreseen(self) -> list[str]:
        """Questions that are known before the document is read, and choose what is kept of it."""
        if self.select == "instruction":
            return [INSTRUCTION]
        goes_on = self.last or self.resume or self.session
        known = self.select == "question" and self.keep_full in ("", "off") and not goes_on
        return self.prompts if known else []

    @property
    def full_copy(self) -> str:
        """Where all rows of the document stay: off, host or disk; choosing by each question as it
        comes needs it."""
        asked = self.select == "question" and not self.foreseen
        return self.keep_full or ("host" if asked else "off")

    @property
    def by_question(self) -> bool:
        """Whether every question chooses what is kept."""
        return self.full_copy != "off" and self.select not in ("document", "instruction")

    @property
    def machine_readable(self) -> bool:
        """Whether stdout carries JSON."""
        return self.json or self.jsonl
