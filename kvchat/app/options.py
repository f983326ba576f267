"""What was asked on the command line, in the environment and in config.toml, as plain values.
Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Options:
    """Options of `kvchat chat`; None means "not given". `origins` says where a value is from."""

    model: str | None = None
    revision: str | None = None
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
    tail_budget: int = 0
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

    @property
    def machine_readable(self) -> bool:
        """Whether stdout carries JSON."""
        return self.json or self.jsonl
