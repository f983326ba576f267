"""Real checkpoints for the tests marked `model`: a folder that `make test` does not need."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODELS = Path(os.environ.get("KVCHAT_MODELS") or ROOT / "models")


def gguf_file(name: str) -> Path | None:
    """`NAME.gguf`, wherever it is under the folder of models."""
    return next(iter(sorted(MODELS.rglob(f"{name}.gguf"))), None)


def as_folder(source: Path, target: Path) -> Path:
    """What transformers makes of a GGUF file, dequantised, as a checkpoint in bf16."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    place = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(**place), dtype=torch.bfloat16
        )
    # `from_pretrained` would do this too, but only where `accelerate` is installed
    read = load_gguf_checkpoint(
        str(source), return_tensors=True, model_to_load=model, torch_dtype=torch.bfloat16
    )
    model.load_state_dict(read["tensors"], strict=False, assign=True)
    model.tie_weights()
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(**place).save_pretrained(target)
    return target
