"""What was asked on the command line, as plain values. Imports no torch."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Options:
    """Options of `kvchat chat`; None means "not given"."""

    model: str | None = None
    files: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    system: str = ""
    encoding: str | None = None
    method: str = ""
    method_options: list[str] = field(default_factory=list)
    budget: str | None = None
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
    json: bool = False
    quiet: bool = False
    plain: bool = False
    verbose: bool = False
