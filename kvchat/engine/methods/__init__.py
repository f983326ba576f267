"""Compression methods by name. Reading the table needs no torch.

A new method is one file and one entry here; `--method`, completion, `kvchat methods`, `/method`,
bench, eval and the matrix tests read this table.
"""

from typing import Any, NamedTuple

from kvchat.engine.methods import lookup_options as lookups
from kvchat.engine.methods import options as declared
from kvchat.engine.methods import size_options as sizes
from kvchat.engine.sizes import ASKED

SCORE = "W/T of the attention FLOPs of the prefill"
# What methods look at, and what that costs.
NOTHING = ("keys and values only", "next to nothing")
LAST = ("the last query", "next to nothing")
MOMENTS = ("mean and covariance of all queries", "next to nothing")
WINDOW = ("the last W queries: a window of the document, or the question", SCORE)
NORMS = (WINDOW[0], f"{SCORE}, and its output projection")
MASS = ("the attention that each entry gets from all queries",
        "half of the attention FLOPs of the prefill")  # fmt: skip
REPLAYS = ("replays: the document is repeated by the model",
           "a second prefill; each of its tokens attends to its own part alone")  # fmt: skip
FITTED = ("the attention that each entry gets, and maps fitted to the model", MASS[1])
GATED = ("a gate: a linear map per layer, fitted to the model", "next to nothing")
ASKING = ("replays: every sentence is put to the model as a question",
          "1.5 to 2 more prefills with twice the attention FLOPs")  # fmt: skip
CODES = (NOTHING[0], "K-means of the keys; no memory is saved, the budget is what is read")

CLUSTERS = (WINDOW[0], "K-means of the keys; no memory is saved, the budget is what is read")
KEYS = (NOTHING[0], "every key is read for every token; values may lie elsewhere")


class Entry(NamedTuple):
    """Where a method is, its idea in a line, its paper, what it looks at, what that costs.

    `options` declares its options where that can be read without torch; else its class does.
    `told`: replayed tokens for each token of the document. `pools`: its layers share one budget.
    `retrieves`: every entry is kept, and the budget is what a decoded token reads of them.
    `fitted`: the package whose `exists` tells whether what it wants was fitted to a model.
    """

    path: str
    idea: str
    paper: str
    needs: str = NOTHING[0]
    cost: str = NOTHING[1]
    options: type[Any] | None = None
    told: float = 0.0
    pools: bool = False
    retrieves: bool = False
    fitted: str = ""


def entry(
    path: str, options: type[Any], shown: tuple[str, str], paper: str, idea: str, **more: Any
) -> Entry:
    """An entry of this package: `path` within it; what is `shown` to it, and what that costs."""
    return Entry(f"{__name__}.{path}", idea, paper, *shown, options, **more)


# fmt: off
METHODS = {
    "full": entry("simple:Full", declared.Stored, NOTHING, "",
        "keeps every entry of the KV cache"),
    "streamingllm": entry("simple:StreamingLLM", declared.EvictionOptions, NOTHING,
        "arXiv 2309.17453", "keeps the first tokens (sinks) and the most recent ones"),
    "snapkv": entry("window:SnapKV", declared.SnapOptions, WINDOW, "arXiv 2404.14469",
        "keeps what the last queries attend to, evenly over heads"),
    "pyramidkv": entry("window:PyramidKV", declared.PyramidOptions, WINDOW, "arXiv 2406.02069",
        "SnapKV's scores; first layers keep more than the last"),
    "adakv": entry("window:AdaKV", declared.AdaptiveOptions, WINDOW, "arXiv 2407.11550",
        "SnapKV's scores; heads of a layer share entries out by need"),
    "ada-pyramid": entry("window:AdaPyramid", declared.AdaPyramidOptions, WINDOW,
        "arXiv 2407.11550", "Ada-KV's shares of the heads, PyramidKV's of the layers"),
    "criticalkv": entry("window:Critical", declared.CriticalOptions, NORMS, "arXiv 2502.03805",
        "SnapKV, half of it weighed by what a value can change"),
    "critical-adakv": entry("window:CriticalAda", declared.CriticalAdaOptions, NORMS,
        "arXiv 2502.03805", "CriticalKV over Ada-KV's shares of the heads"),
    "defensivekv": entry("window:DefensiveKV", declared.DefensiveOptions, NORMS,
        "arXiv 2510.13334", "keeps what any of the last queries needs, not the average"),
    "kvcompress": entry("window:KVCompress", declared.KVCompressOptions, WINDOW,
        "arXiv 2410.00161", "squared attention; layers and heads share one budget", pools=True),
    "h2o": entry("simple:H2O", declared.H2OOptions, MASS, "arXiv 2306.14048",
        "keeps recent entries and those attended to most by all"),
    "kvmerger": entry("kvmerger:KVMerger", sizes.KVMergerOptions, MASS, "arXiv 2407.08454",
        "merges neighbouring entries whose keys are similar"),
    "elastic": entry("elastic:Elastic", sizes.ElasticOptions, MASS, "arXiv 2407.18121",
        "every entry joins the nearest of those attended to most"),
    "cam": entry("simple:CaM", declared.CaMOptions, MASS, "ICML 2024 (CaM)",
        "H2O; evicted values are merged into the next that stay"),
    "less": entry("less:Less", sizes.LessOptions, FITTED, "arXiv 2402.09398",
        "H2O's entries, and a small state of all the others", fitted="kvchat.engine.features"),
    "qaq": entry("qaq:QAQ", sizes.QAQOptions, WINDOW, "arXiv 2403.04643",
        "bits of each entry by what an error of it would change"),
    "corm": entry("window:CORM", declared.CORMOptions, WINDOW, "arXiv 2404.15949",
        "keeps what a last query attends to more than evenly"),
    "tova": entry("simple:TOVA", declared.TOVAOptions, LAST, "arXiv 2401.06104",
        "keeps what the last token attends to, alike in all heads"),
    "knorm": entry("simple:Knorm", declared.KnormOptions, NOTHING, "arXiv 2406.11430",
        "keeps the entries whose keys are shortest"),
    "expected-attention": entry("expected_attention:ExpectedAttention", declared.ExpectedOptions,
        MOMENTS, "arXiv 2510.00636", "keeps what a Gaussian of coming queries would attend to"),
    "kvzip": entry("kvzip:KVzip", declared.KVzipOptions, REPLAYS, "arXiv 2505.23416",
        "keeps what is attended to while the document is repeated", told=1.0, pools=True),
    "kvzip+": entry("kvzip:KVzipPlus", declared.KVzipPlusOptions, REPLAYS, "arXiv 2505.23416",
        "KVzip, weighed by what an entry can change in the output", told=1.0, pools=True),
    "kvzap": entry("kvzip:KVzap", declared.KVzapOptions, GATED, "arXiv 2601.07891",
        "keeps what a gate foretells that kvzip would keep", pools=True,
        fitted="kvchat.engine.gates"),
    "askall": entry("kvzip:Askall", declared.AskallOptions, ASKING, "ours, after arXiv 2505.23416",
        "keeps what the document's sentences, put as questions, need", told=ASKED, pools=True),
    "pqcache": entry("pqcache:PQCache", lookups.PQCacheOptions, CODES, "arXiv 2407.12820",
        "keeps every entry; each decoded token reads those it needs", retrieves=True),
    "squeezed": entry("squeezed:Squeezed", lookups.SqueezedOptions, CLUSTERS, "arXiv 2411.09688",
        "keeps every entry; a token reads clusters above a bound", retrieves=True),
    "kcache": entry("kcache:KCache", lookups.KCacheOptions, KEYS, "arXiv 2404.18057",
        "keeps every entry; all keys are read, the best values", retrieves=True),
}
# fmt: on

AUTO = "auto"  # no method: memory decides
UNSEEN = "kvzip"  # the question is not known yet
UNSEEN_AT_ONCE = "kvzap"  # and the model has a gate
BY_QUESTION = "adakv"  # where questions alone choose
