"""Options of `kvchat eval`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvchat.settings.chat_options import CACHE
from kvchat.settings.kinds import PATH, one_of, whole
from kvchat.settings.lists import METHOD_SPECS, WORDS, counts
from kvchat.settings.option import option, shared
from kvchat.settings.options import Options
from kvchat.settings.program_options import SCREEN

OUTPUTS = ("table", "md", "json")
CASES = "Cases"
MANY = 2**31


@dataclass(frozen=True)
class Settings:
    """Options of `kvchat eval`; depths in per cent."""

    model: str | None = shared(Options, "model")
    tasks: Sequence[str] = option(
        "--task",
        CASES,
        "world, needle, multi-key, multi-value, multi-query, key-value, passkey, "
        "variable-tracking, common-words, frequent-words (world); a list.",
        WORDS,
    )
    data: Sequence[str] = option(
        "--data",
        CASES,
        "KIND:FILE, a benchmark's file on disk; kinds: ruler, longbench, leval, niah, "
        "facts, references. Repeatable.",
        many=True,
        default=(),
    )
    lengths: Sequence[int] = option(
        "--length", CASES, "Document tokens (4096): 512,4k.", counts(), default=(4096,)
    )
    depths: Sequence[int] = option(
        "--depth",
        CASES,
        "How deep needles and pass keys are, in per cent (0-100+10).",
        counts(0, 100),
        default=tuple(range(0, 101, 10)),
    )
    questions: int = option(
        "--questions",
        CASES,
        "At least so many per task and length, in whole documents (200).",
        whole(1, MANY),
        default=200,
    )
    per_document: int = option(
        "--per-document", CASES, "Questions per document (25).", whole(1, MANY), default=25
    )
    overflow: str = shared(Options, "overflow", panel=CASES)
    seed: int = shared(Options, "seed", default=1, help="Seed of the documents (1).", panel=CASES)
    methods: Sequence[str] = option(
        "--method",
        CACHE,
        "Methods; a list.",
        METHOD_SPECS,
        default=("streamingllm", "snapkv", "adakv"),
    )
    budgets: Sequence[str] = option(
        "--budget", CACHE, "Budgets (25%): 50%,10%.", WORDS, default=("25%",)
    )
    views: Sequence[str] = option(
        "--view",
        CACHE,
        "unseen, seen: the question at compression (both).",
        WORDS,
        default=("unseen", "seen"),
    )
    device: str = shared(Options, "device")
    devices: int | None = shared(
        Options, "devices", help="Share the documents out over so many processes (1)."
    )
    dtype: str = shared(Options, "dtype")
    weights: str = shared(Options, "weights")
    threads: int | None = shared(Options, "threads")
    out: str | None = option(
        "--out", SCREEN, "Folder of the results (below the state folder); goes on from there.", PATH
    )
    output: str = option(
        "-o --output",
        SCREEN,
        "Form of the results; the table is Markdown.",
        one_of(*OUTPUTS),
        default="table",
    )
    plot: str | None = option(
        "--plot", SCREEN, "Folder for pictures: score over budget (PNG).", PATH
    )

    def resolved(self) -> "Settings":
        """With the task that is usual where nothing was given; each file once."""
        tasks = self.tasks or ([] if self.data else ["world"])
        return replace(self, tasks=tasks, data=[*dict.fromkeys(self.data)])
