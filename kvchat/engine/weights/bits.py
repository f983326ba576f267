"""How weights may be stored: names, allowed shapes and bytes. Settings read it without torch."""

from kvchat.engine.gguf.blocks import BYTES, GROUPED
from kvchat.engine.model.config import ModelConfig
from kvchat.errors import KvchatError

# `auto` and `bf16` are plain numbers, in the dtype that is computed in.
WEIGHTS = ("auto", "bf16", "int8", "int4")
SCALE = 2  # bytes of a scale, and of a zero
BLOCK = 32  # of those that come so from a GGUF file
GROUPS = (128, 64, 32)  # values that share a scale in 4 bits; the first that divides a row
# Torch's CPU operators read past the end of rows that are no multiple of this.
INPUTS = {"int8": 16, "int4": GROUPS[-1]}
OUTPUTS = {"int8": 1, "int4": 64}


def group_of(inputs: int) -> int:
    """Values of a row of `inputs` that share a scale in 4 bits."""
    return next(group for group in GROUPS if inputs % group == 0)


def computes_in(dtype: str, weights: str) -> str:
    """The `--dtype` that counts: weights in bf16 are computed with in bf16.

    Raises KvchatError("usage") for a format that does not exist or contradicts the dtype.
    """
    if weights not in WEIGHTS:
        raise KvchatError(
            "usage",
            f"{weights!r} is no format of weights; there are {', '.join(WEIGHTS)}",
            *(f"--weights {name}" for name in WEIGHTS[1:]),
        )
    if weights != "bf16":
        return dtype
    if dtype not in ("auto", "bf16", "bfloat16"):
        raise KvchatError(
            "usage",
            f"--weights bf16 and --dtype {dtype} contradict each other",
            "--weights bf16",
            f"--dtype {dtype}",
        )
    return "bf16"


def format_of(block: str, shape: tuple[int, int], weights: str, table: bool) -> str:
    """How a matrix `[out, in]` is stored: `int4`, `int8`, or `plain`.

    `block` is its format in a GGUF file, or empty; `table`: the embedding or the output projection,
    of which 8 bits are the least. With `auto`, 4 bits by groups and 8 bits stay that small, where
    operators take the shape.
    """
    if weights in INPUTS:
        return weights
    if weights != "auto" or not block:
        return "plain"
    fits = {name: shape[1] % INPUTS[name] == 0 and shape[0] % OUTPUTS[name] == 0 for name in INPUTS}
    if block in GROUPED and not table and fits["int4"]:
        return "int4"
    return "int8" if (block == BYTES or (block in GROUPED and table)) and fits["int8"] else "plain"


def refused(config: ModelConfig, weights: str) -> list[str]:
    """Names and shapes of matrices that no operator takes in this format."""
    if weights not in INPUTS:
        return []
    every, rows = INPUTS[weights], OUTPUTS[weights]
    bad = [
        f"{name} [{outputs}, {inputs}]"
        for name, (outputs, inputs) in config.matrices.items()
        if inputs % every or outputs % rows
    ]
    if config.hidden_size % INPUTS["int8"]:
        bad.append(f"embed_tokens [{config.vocab_size}, {config.hidden_size}]")
    return bad


def require_shapes(config: ModelConfig, weights: str) -> None:
    """Raise KvchatError("model") for matrices that no operator takes in this format."""
    if bad := refused(config, weights):
        every, rows = INPUTS[weights], OUTPUTS[weights]
        wanted = f"[n * {rows}, n * {every}]" if rows > 1 else f"[n, n * {every}]"
        raise KvchatError(
            "model",
            f"{weights} weights: no operator takes {', '.join(bad)}; they must be {wanted}",
            *(["--weights int8"] if weights == "int4" else []),
            "--weights auto",
            shapes=bad,
        )


def weights_bytes(config: ModelConfig, itemsize: int, weights: str) -> int:
    """Bytes of all weights: plain numbers of `itemsize` bytes, or matrices in few bits.

    In few bits the embedding and the output projection take 8 in either format.
    """
    if weights not in INPUTS:
        whole = config.parameters * itemsize
        for block, shape, is_table, count in config.blocks:
            kind = format_of(block, shape, weights, is_table)
            if kind in INPUTS:
                small = _bytes(kind, *shape, group=BLOCK)
                whole += count * (small - shape[0] * shape[1] * itemsize)
        return whole
    whole = config.num_layers * sum(_bytes(weights, *shape) for shape in config.matrices.values())
    for block, shape, is_table, count in config.blocks:
        if weights == "int4" and block in GROUPED and not is_table:  # it keeps its own groups
            whole += count * (_bytes(weights, *shape, group=BLOCK) - _bytes(weights, *shape))
    tables = 1 if config.tie_word_embeddings else 2
    table = _bytes("int8", config.vocab_size, config.hidden_size)
    quantised = sum(outputs * inputs for outputs, inputs in config.matrices.values())
    plain_values = config.parameters - tables * config.vocab_size * config.hidden_size
    plain_values -= config.num_layers * quantised
    return whole + tables * table + plain_values * itemsize


def _bytes(weights: str, outputs: int, inputs: int, group: int = 0) -> int:
    if weights == "int8":
        return outputs * (inputs + SCALE)
    return outputs * inputs // 2 + outputs * (inputs // (group or group_of(inputs))) * 2 * SCALE
