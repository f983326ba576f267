"""The command line of `kvchat eval`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvchat.cli.flags import takes
from kvchat.settings.kinds import PATH, whole
from kvchat.settings.lists import METHOD_SPECS, WORDS, counts
from kvchat.settings.option import option, read_all, shared
from kvchat.settings.options import CACHE, SCREEN, Options

CASES = "Cases"
MANY = 2**31


@dataclass(frozen=True)
class EvalOptions:
    """Options of `kvchat eval`; depths in per cent."""

    model: str | None = shared(Options, "model")
    task: Sequence[str] | None = option(
        "--task",
        CASES,
        "world, needle, multi-key, multi-value, multi-query, key-value, passkey, "
        "variable-tracking, common-words, frequent-words (world); a list.",
        WORDS,
        many=True,
    )
    data: Sequence[str] = option(
        "--data",
        CASES,
        "KIND:FILE, a benchmark's file on disk; kinds: ruler, longbench, leval, niah. Repeatable.",
        many=True,
        default=(),
    )
    length: Sequence[int] = option(
        "--length", CASES, "Document tokens (4096): 512,4k.", counts(), many=True, default=(4096,)
    )
    depth: Sequence[int] = option(
        "--depth",
        CASES,
        "How deep needles and pass keys are, in per cent (0-100+10).",
        counts(0),
        many=True,
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
    method: Sequence[str] = option(
        "--method",
        CACHE,
        "Methods; a list.",
        METHOD_SPECS,
        many=True,
        default=("streamingllm", "snapkv", "adakv"),
    )
    budget: Sequence[str] = option(
        "--budget", CACHE, "Budgets (25%): 50%,10%.", WORDS, many=True, default=("25%",)
    )
    view: Sequence[str] = option(
        "--view",
        CACHE,
        "unseen, seen: the question at compression (both).",
        WORDS,
        many=True,
        default=("unseen", "seen"),
    )
    device: str = shared(Options, "device")
    dtype: str = shared(Options, "dtype")
    weights: str = shared(Options, "weights")
    threads: int | None = shared(Options, "threads")
    out: str = option(
        "--out", SCREEN, "Folder of the results; goes on from there.", PATH, default="eval"
    )
    output: str = option("-o --output", SCREEN, "table, md or json.", default="table")
    plot: str | None = option(
        "--plot", SCREEN, "Folder for pictures: depth × length, score over budget (PNG).", PATH
    )


@takes(EvalOptions)
def evaluate(**given: Any) -> int:
    """Quality at a budget: scores of answers and KL to the full cache, by method.

    The demo model answers the task `world` only; the others are for chat models that follow
    instructions. A needle task asks one question per document: --questions 11 is one per depth.
    """
    from kvchat.eval import run as evaluation

    asked = read_all(EvalOptions, given)
    tasks = asked.task if asked.task is not None else [] if asked.data else ["world"]
    return evaluation.run(
        evaluation.Settings(
            model=asked.model,
            tasks=[*tasks],
            data=[*dict.fromkeys(asked.data)],
            lengths=[*asked.length],
            depths=[*asked.depth],
            methods=[*asked.method],
            budgets=[*asked.budget],
            views=[*asked.view],
            questions=asked.questions,
            per_document=asked.per_document,
            overflow=asked.overflow,
            seed=asked.seed,
            out=asked.out,
            plot=asked.plot,
            device=asked.device,
            dtype=asked.dtype,
            weights=asked.weights,
            threads=asked.threads,
            output=asked.output,
        )
    )
