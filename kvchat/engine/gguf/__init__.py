"""GGUF, the checkpoint format of llama.cpp: one file (or a split one) with weights, shapes,
tokenizer and chat template."""
