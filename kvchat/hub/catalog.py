"""A short table of models that can be downloaded, and the names of the field that they go by.

Repositories are open to everybody (none is gated). Shapes are those of the config.json; they say
what a model needs here before it is downloaded.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvchat.engine.model import MODELS
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.hugging_face import interpret
from kvchat.hub.places import Found

LLAMA, APACHE = "Llama community", "Apache-2.0"


@dataclass(frozen=True)
class Entry:
    """A model: what is downloaded (`org/repo`, or `org/repo:Q4_K_M`), its bytes and licence.

    `shape`: layers, hidden size, inner size, query heads, KV heads, head size, vocabulary.
    """

    name: str
    source: str
    bytes: int
    licence: str
    family: str
    window: int
    shape: tuple[int, int, int, int, int, int, int]
    tied: bool = False

    @property
    def config(self) -> ModelConfig:
        """Its shapes as a config. Raises KvchatError("model") for a family that is not read."""
        layers, hidden, inner, heads, kv_heads, head, vocabulary = self.shape
        raw = {
            "model_type": self.family,
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head,
            "vocab_size": vocabulary,
            "max_position_embeddings": self.window,
            "sliding_window": None,
            "tie_word_embeddings": self.tied,
            "dtype": "bfloat16",
        }
        return interpret(raw, self.name)

    @property
    def format(self) -> str:
        """How the weights are stored: `Q4_K_M`, `Q8_0`, `bf16`."""
        return self.source.partition(":")[2] or "bf16"

    @property
    def held(self) -> int:
        """Bytes of the weights in memory, estimated."""
        config = self.config
        tables = (1 if self.tied else 2) * config.vocab_size * config.hidden_size
        maps = config.parameters - tables
        if self.format == "bf16":
            return 2 * config.parameters
        if self.format == "Q8_0":
            return round(1.07 * config.parameters)
        # Q4_K_M: half of the value and down projections, and the output's table, have six bits:
        # they are held in 16; a table of four is held in 8
        outer = (each for name, each in config.matrices.items() if name in ("v_proj", "down_proj"))
        wide = config.num_layers * sum(rows * columns for rows, columns in outer) // 2
        held = 2 * tables if self.tied else 3 * tables // 2
        return held + 2 * wide + round(0.63 * (maps - wide))


TABLE = (
    Entry("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", 271_000_000, APACHE,
          "llama", 8192, (30, 576, 1536, 9, 3, 64, 49152), True),
    Entry("qwen3-0.6b", "Qwen/Qwen3-0.6B-GGUF:Q8_0", 639_000_000, APACHE,
          "qwen3", 40960, (28, 1024, 3072, 16, 8, 128, 151936), True),
    Entry("llama-3.2-1b", "bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M", 808_000_000, LLAMA,
          "llama", 131072, (16, 2048, 8192, 32, 8, 64, 128256), True),
    Entry("qwen3-1.7b", "Qwen/Qwen3-1.7B-GGUF:Q8_0", 1_834_000_000, APACHE,
          "qwen3", 40960, (28, 2048, 6144, 16, 8, 128, 151936), True),
    Entry("llama-3.2-3b", "bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M", 2_019_000_000, LLAMA,
          "llama", 131072, (28, 3072, 8192, 24, 8, 128, 128256), True),
    Entry("qwen3-4b", "unsloth/Qwen3-4B-Instruct-2507-GGUF:Q4_K_M", 2_497_000_000, APACHE,
          "qwen3", 262144, (36, 2560, 9728, 32, 8, 128, 151936), True),
    Entry("mistral-7b", "bartowski/Mistral-7B-Instruct-v0.3-GGUF:Q4_K_M", 4_373_000_000, APACHE,
          "mistral", 32768, (32, 4096, 14336, 32, 8, 128, 32768)),
    Entry("llama-3.1-8b", "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF:Q4_K_M", 4_921_000_000, LLAMA,
          "llama", 131072, (32, 4096, 14336, 32, 8, 128, 128256)),
    Entry("qwen3-8b", "Qwen/Qwen3-8B-GGUF:Q4_K_M", 5_028_000_000, APACHE,
          "qwen3", 40960, (36, 4096, 12288, 32, 8, 128, 151936)),
    Entry("qwen3-14b", "Qwen/Qwen3-14B-GGUF:Q4_K_M", 9_002_000_000, APACHE,
          "qwen3", 40960, (40, 5120, 17408, 40, 8, 128, 151936)),
)  # fmt: skip
# Other names of the same models, as ollama and the repositories of their makers write them.
OTHERS = {
    "smollm2": "smollm2-135m",
    "llama3.2-1b": "llama-3.2-1b",
    "llama3.2-3b": "llama-3.2-3b",
    "llama3.1-8b": "llama-3.1-8b",
    "mistral": "mistral-7b",
}


def entries() -> Sequence[Entry]:
    """The table, as far as kvchat reads the families."""
    return [entry for entry in TABLE if entry.family in MODELS]


def entry(name: str) -> Entry | None:
    """The entry of that name, if there is one."""
    wanted = name.lower()
    wanted = OTHERS.get(wanted, wanted)
    return next((each for each in entries() if each.name == wanted), None)


def matching(entry: Entry, here: Iterable[Found]) -> list[Found]:
    """Models of this machine that are the entry's: chat models first, base models not at all.

    `qwen3-4b` is in `Qwen/Qwen3-4B`, `Qwen_Qwen3-4B-Instruct-2507-Q4_K_M` and `ollama:qwen3:4b`,
    and not in `DeepSeek-R1-Qwen3-4B`: the name stands at the beginning, or after an owner's.
    """
    first, *rest = (re.escape(part) for part in entry.name.split("-"))
    parts = "".join(f"[-_:]?{part}" if part[0].isdigit() else f"[-_:]{part}" for part in rest)
    pattern = re.compile(rf"(?:^|[/_:]|meta-){first}{parts}(?![a-z0-9.])", re.IGNORECASE)
    found = [each for each in here if pattern.search(each.name)]
    found = [each for each in found if not re.search(r"[-_:]base\b", each.name, re.IGNORECASE)]
    chat = re.compile(r"instruct|chat|[-_]it\b|^ollama:", re.IGNORECASE)
    return sorted(found, key=lambda each: chat.search(each.name) is None)
