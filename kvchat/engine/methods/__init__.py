"""Compression methods by name. The table is literal: reading it imports no torch.

A new method is one file and one entry here; `--method`, completion, `kvchat methods`, `/method`,
bench, eval and the matrix tests read this table.
"""

from typing import NamedTuple

from kvchat.engine.sizes import ASKED

NOTHING = "keys and values only"
WINDOW = "the last W queries: a window of the document, or the question"
MASS = "the attention that each entry gets from all queries"
FREE = "next to nothing"
SCORE = "W/T of the attention FLOPs of reading"
NORMS = f"{SCORE}, and its output projection"
SECOND = "half of the attention FLOPs of reading"


class Entry(NamedTuple):
    """Where a method is, its idea in a line, its paper, what it looks at, what that costs.

    `told`: how often the document is told to the model again while it is read. `pools`: its layers
    share one budget.
    `retrieves`: every entry is kept, and the budget is what a written token reads of them.
    """

    path: str
    idea: str
    paper: str
    needs: str = NOTHING
    cost: str = FREE
    told: float = 0.0
    pools: bool = False
    retrieves: bool = False


METHODS = {
    "full": Entry(
        "kvchat.engine.methods.full:Full",
        "keeps every entry of the KV cache",
        "",
    ),
    "streamingllm": Entry(
        "kvchat.engine.methods.streamingllm:StreamingLLM",
        "keeps the first tokens (sinks) and the most recent ones",
        "arXiv 2309.17453",
    ),
    "snapkv": Entry(
        "kvchat.engine.methods.snapkv:SnapKV",
        "keeps what the last queries attend to, evenly over heads",
        "arXiv 2404.14469",
        WINDOW,
        SCORE,
    ),
    "pyramidkv": Entry(
        "kvchat.engine.methods.pyramidkv:PyramidKV",
        "SnapKV's scores; first layers keep more than the last",
        "arXiv 2406.02069",
        WINDOW,
        SCORE,
    ),
    "adakv": Entry(
        "kvchat.engine.methods.adakv:AdaKV",
        "SnapKV's scores; heads of a layer share entries out by need",
        "arXiv 2407.11550",
        WINDOW,
        SCORE,
    ),
    "ada-pyramid": Entry(
        "kvchat.engine.methods.adakv:AdaPyramid",
        "Ada-KV's shares of the heads, PyramidKV's of the layers",
        "arXiv 2407.11550",
        WINDOW,
        SCORE,
    ),
    "criticalkv": Entry(
        "kvchat.engine.methods.criticalkv:Critical",
        "SnapKV, half of it weighed by what a value can change",
        "arXiv 2502.03805",
        WINDOW,
        NORMS,
    ),
    "critical-adakv": Entry(
        "kvchat.engine.methods.criticalkv:CriticalAda",
        "CriticalKV over Ada-KV's shares of the heads",
        "arXiv 2502.03805",
        WINDOW,
        NORMS,
    ),
    "defensivekv": Entry(
        "kvchat.engine.methods.defensivekv:DefensiveKV",
        "keeps what any of the last queries needs, not the average",
        "arXiv 2510.13334",
        WINDOW,
        NORMS,
    ),
    "h2o": Entry(
        "kvchat.engine.methods.h2o:H2O",
        "keeps recent entries and those attended to most by all",
        "arXiv 2306.14048",
        MASS,
        SECOND,
    ),
    "kvmerger": Entry(
        "kvchat.engine.methods.kvmerger:KVMerger",
        "merges neighbouring entries whose keys are similar",
        "arXiv 2407.08454",
        MASS,
        SECOND,
    ),
    "cam": Entry(
        "kvchat.engine.methods.cam:CaM",
        "StreamingLLM; folded turns spill values to later entries",
        "ICML 2024 (CaM)",
        "the attention that entries of the conversation receive",
        "a second pass over the conversation's entries per token",
    ),
    "tova": Entry(
        "kvchat.engine.methods.tova:TOVA",
        "keeps what the last token attends to, alike in all heads",
        "arXiv 2401.06104",
        "the last query",
    ),
    "knorm": Entry(
        "kvchat.engine.methods.knorm:Knorm",
        "keeps the entries whose keys are shortest",
        "arXiv 2406.11430",
    ),
    "expected-attention": Entry(
        "kvchat.engine.methods.expected_attention:ExpectedAttention",
        "keeps what a Gaussian of coming queries would attend to",
        "arXiv 2510.00636",
        "mean and covariance of all queries",
    ),
    "kvzip": Entry(
        "kvchat.engine.methods.kvzip:KVzip",
        "keeps what is needed to tell the document again",
        "arXiv 2505.23416",
        "replays: the document is told to the model a second time",
        "a second reading with three times the attention FLOPs",
        told=1.0,
        pools=True,
    ),
    "kvzip+": Entry(
        "kvchat.engine.methods.kvzip:KVzipPlus",
        "KVzip, weighed by what an entry can change in the output",
        "arXiv 2505.23416",
        "replays: the document is told to the model a second time",
        "a second reading with three times the attention FLOPs",
        told=1.0,
        pools=True,
    ),
    "askall": Entry(
        "kvchat.engine.methods.kvzip:Askall",
        "keeps what the document's sentences, put as questions, need",
        "ours, after arXiv 2505.23416",
        "replays: every sentence is put to the model as a question",
        "1.5 to 2 more readings with twice the attention FLOPs",
        told=ASKED,
        pools=True,
    ),
    "pqcache": Entry(
        "kvchat.engine.methods.pqcache:PQCache",
        "keeps every entry; each written token reads those it needs",
        "arXiv 2407.12820",
        NOTHING,
        "K-means of the keys; no memory is saved, the budget is what is read",
        retrieves=True,
    ),
}

DEFAULT = "kvzip"  # the question is not known yet (docs/results.md)
BY_QUESTION = "adakv"  # where questions choose
