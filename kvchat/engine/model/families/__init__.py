"""How the model families differ, each in a file of its own. No torch.

A family is a `Family`: what its config.json means, and what its tensors are called.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Raw = Mapping[str, Any]  # the keys of a config.json
Fields = dict[str, Any]  # of `ModelConfig`


@dataclass(frozen=True)
class Family:
    """A model family.

    `fields` gives those of `ModelConfig` that are not as in Llama, from the keys of config.json.
    `defaults` are keys that a config.json may leave out. `names` turns what its tensors are called
    behind `model.layers.N.` into our names, where they differ.
    """

    fields: Callable[[Raw], Fields] = lambda raw: {}
    defaults: Raw = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


def all_biases(raw: Raw) -> Fields:
    """`attention_bias` is meant for the output projection too."""
    bias = bool(raw.get("attention_bias", False))
    return {"qkv_bias": bias, "output_bias": bias, "mlp_bias": bool(raw.get("mlp_bias", False))}
