"""Compression methods by name. Reading the table needs no torch.

A new method is one file and one entry here; `--method`, completion, `kvchat methods`, `/method`,
bench, eval and the matrix tests read this table.
"""

from typing import Any, NamedTuple

from kvchat.engine.methods import options as declared
from kvchat.engine.sizes import ASKED

NOTHING = "keys and values only"
WINDOW = "the last W queries: a window of the document, or the question"
MASS = "the attention that each entry gets from all queries"
REPLAYS = "replays: the document is repeated by the model"
FREE = "next to nothing"
SCORE = "W/T of the attention FLOPs of the prefill"
NORMS = f"{SCORE}, and its output projection"
SECOND = "half of the attention FLOPs of the prefill"
TWICE = "a second prefill with three times the attention FLOPs"


class Entry(NamedTuple):
    """Where a method is, its idea in a line, its paper, what it looks at, what that costs.

    `options` declares its options where that can be read without torch; else its class does.
    `told`: replayed tokens for each token of the document. `pools`: its layers share one budget.
    `retrieves`: every entry is kept, and the budget is what a decoded token reads of them.
    """

    path: str
    idea: str
    paper: str
    needs: str = NOTHING
    cost: str = FREE
    options: type[Any] | None = None
    told: float = 0.0
    pools: bool = False
    retrieves: bool = False


def entry(
    path: str,
    options: type[Any],
    idea: str,
    paper: str,
    needs: str = NOTHING,
    cost: str = FREE,
    **more: Any,
) -> Entry:
    """An entry of this package: `path` within it."""
    return Entry(f"{__name__}.{path}", idea, paper, needs, cost, options, **more)


METHODS = {
    "full": entry("full:Full", declared.Options, "keeps every entry of the KV cache", ""),
    "streamingllm": entry(
        "simple:StreamingLLM",
        declared.EvictionOptions,
        "keeps the first tokens (sinks) and the most recent ones",
        "arXiv 2309.17453",
    ),
    "snapkv": entry(
        "adakv:SnapKV",
        declared.SnapOptions,
        "keeps what the last queries attend to, evenly over heads",
        "arXiv 2404.14469",
        WINDOW,
        SCORE,
    ),
    "pyramidkv": entry(
        "adakv:PyramidKV",
        declared.PyramidOptions,
        "SnapKV's scores; first layers keep more than the last",
        "arXiv 2406.02069",
        WINDOW,
        SCORE,
    ),
    "adakv": entry(
        "adakv:AdaKV",
        declared.AdaptiveOptions,
        "SnapKV's scores; heads of a layer share entries out by need",
        "arXiv 2407.11550",
        WINDOW,
        SCORE,
    ),
    "ada-pyramid": entry(
        "adakv:AdaPyramid",
        declared.AdaPyramidOptions,
        "Ada-KV's shares of the heads, PyramidKV's of the layers",
        "arXiv 2407.11550",
        WINDOW,
        SCORE,
    ),
    "criticalkv": entry(
        "criticalkv:Critical",
        declared.CriticalOptions,
        "SnapKV, half of it weighed by what a value can change",
        "arXiv 2502.03805",
        WINDOW,
        NORMS,
    ),
    "critical-adakv": entry(
        "criticalkv:CriticalAda",
        declared.CriticalAdaOptions,
        "CriticalKV over Ada-KV's shares of the heads",
        "arXiv 2502.03805",
        WINDOW,
        NORMS,
    ),
    "defensivekv": entry(
        "defensivekv:DefensiveKV",
        declared.DefensiveOptions,
        "keeps what any of the last queries needs, not the average",
        "arXiv 2510.13334",
        WINDOW,
        NORMS,
    ),
    "h2o": entry(
        "simple:H2O",
        declared.H2OOptions,
        "keeps recent entries and those attended to most by all",
        "arXiv 2306.14048",
        MASS,
        SECOND,
    ),
    "kvmerger": entry(
        "kvmerger:KVMerger",
        declared.KVMergerOptions,
        "merges neighbouring entries whose keys are similar",
        "arXiv 2407.08454",
        MASS,
        SECOND,
    ),
    "cam": entry(
        "cam:CaM",
        declared.CaMOptions,
        "StreamingLLM; old turns merge values into later entries",
        "ICML 2024 (CaM)",
        "the attention that entries of the conversation receive",
        "a second pass over the conversation's entries per token",
    ),
    "tova": entry(
        "simple:TOVA",
        declared.TOVAOptions,
        "keeps what the last token attends to, alike in all heads",
        "arXiv 2401.06104",
        "the last query",
    ),
    "knorm": entry(
        "simple:Knorm",
        declared.KnormOptions,
        "keeps the entries whose keys are shortest",
        "arXiv 2406.11430",
    ),
    "expected-attention": entry(
        "expected_attention:ExpectedAttention",
        declared.ExpectedOptions,
        "keeps what a Gaussian of coming queries would attend to",
        "arXiv 2510.00636",
        "mean and covariance of all queries",
    ),
    "kvzip": entry(
        "kvzip:KVzip",
        declared.KVzipOptions,
        "keeps what is attended to while the document is repeated",
        "arXiv 2505.23416",
        REPLAYS,
        TWICE,
        told=1.0,
        pools=True,
    ),
    "kvzip+": entry(
        "kvzip:KVzipPlus",
        declared.KVzipPlusOptions,
        "KVzip, weighed by what an entry can change in the output",
        "arXiv 2505.23416",
        REPLAYS,
        TWICE,
        told=1.0,
        pools=True,
    ),
    "askall": entry(
        "kvzip:Askall",
        declared.AskallOptions,
        "keeps what the document's sentences, put as questions, need",
        "ours, after arXiv 2505.23416",
        "replays: every sentence is put to the model as a question",
        "1.5 to 2 more prefills with twice the attention FLOPs",
        told=ASKED,
        pools=True,
    ),
    "pqcache": entry(
        "pqcache:PQCache",
        declared.PQCacheOptions,
        "keeps every entry; each decoded token reads those it needs",
        "arXiv 2407.12820",
        NOTHING,
        "K-means of the keys; no memory is saved, the budget is what is read",
        retrieves=True,
    ),
}

DEFAULT = "kvzip"  # the question is not known yet (docs/results.md)
BY_QUESTION = "adakv"  # where questions choose
