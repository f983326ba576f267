"""Write the trained model in the form transformers loads."""

import shutil
import tempfile
from pathlib import Path

import tokenizer
from model import Llama
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from kvchat.eval import world


def export(model: Llama, folder: Path) -> None:
    """Save weights (float32), configuration and tokenizer; files appear whole, one by one."""
    special = {"bos_token_id": world.BOS, "eos_token_id": world.END, "pad_token_id": world.PAD}
    config = LlamaConfig(**model.s.hf_config(), **special, dtype="float32")
    hf = LlamaForCausalLM(config)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    hf.load_state_dict(state, strict=True)
    hf.generation_config = GenerationConfig(do_sample=False, max_new_tokens=64, **special)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        hf.save_pretrained(fresh)
        tokenizer.save(Path(fresh))
        for file in sorted(Path(fresh).iterdir()):
            file.chmod(0o644)
            shutil.move(file, folder / file.name)
