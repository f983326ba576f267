"""Where the tensors of a checkpoint go: our names, joined matrices apart, heads in our order."""

import re
from dataclasses import dataclass

from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.hugging_face import family_of

LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
# in front of the text's weights in checkpoints that also see pictures
AROUND = re.compile(r"^(?:model\.language_model|language_model\.model|language_model)\.")
PICTURES = re.compile(r"(?:^|\.)(?:vision_tower|vision_model|multi_modal_projector)\.")


@dataclass(frozen=True)
class Slot:
    """A parameter of our decoder, and which rows of a checkpoint's tensor it is (None: all)."""

    name: str
    rows: tuple[int, int] | None = None


def slots(config: ModelConfig, name: str) -> list[Slot] | None:
    """What a tensor of a Hugging Face checkpoint is to us; None if it is nothing."""
    if PICTURES.search(name) or name.endswith("rotary_emb.inv_freq"):
        return None
    if AROUND.match(name):
        rest = AROUND.sub("", name)
        name = rest if rest.startswith(("lm_head", "model.")) else f"model.{rest}"
    if config.tie_word_embeddings and name == "lm_head.weight":
        return None
    if (found := LAYER.fullmatch(name)) is None:
        return [Slot(name)]
    module, _, leaf = found[2].rpartition(".")
    module = family_of(config.family).names.get(module, module)
    return apart(config, f"model.layers.{found[1]}.{module}.{leaf}")


def apart(config: ModelConfig, name: str) -> list[Slot]:
    """The slots of one of our names; of joined matrices, several."""
    maps = {short: shape[0] for short, shape in config.matrices.items()}
    for joined, parts in (
        ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
        ("gate_up_proj", ("gate_proj", "up_proj")),
    ):
        if f".{joined}." not in name:
            continue
        found, begin = [], 0
        for part in parts:
            end = begin + maps[part]
            found.append(Slot(name.replace(joined, part), (begin, end)))
            begin = end
        return found
    return [Slot(name)]


def rows_of(config: ModelConfig, name: str, count: int) -> list[int] | None:
    """The checkpoint's rows in our order, of a slot with `count` of them; None: as they are."""
    if config.head_order is None or not re.search(r"\.[qk]_(proj|norm)\.", name):
        return None
    dim = config.head_dim
    return [head + place for head in range(0, count, dim) for place in config.head_order]
