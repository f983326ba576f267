"""Model families by the `model_type` of their config.json. Reading the table imports nothing.

A new family is a small file in `families/` and an entry here.
"""

FAMILIES = "kvchat.engine.model.families"
MODELS = {
    "llama": f"{FAMILIES}.llama:FAMILY",
    "mistral": f"{FAMILIES}.mistral:FAMILY",
    "ministral3": f"{FAMILIES}.mistral:MINISTRAL3",
    "qwen2": f"{FAMILIES}.qwen:QWEN2",
    "qwen3": f"{FAMILIES}.qwen:QWEN3",
    "gemma2": f"{FAMILIES}.gemma:GEMMA2",
    "gemma3_text": f"{FAMILIES}.gemma:GEMMA3",
    "phi3": f"{FAMILIES}.phi3:FAMILY",
    "smollm3": f"{FAMILIES}.smollm3:FAMILY",
    "granite": f"{FAMILIES}.granite:FAMILY",
    "olmo2": f"{FAMILIES}.olmo2:FAMILY",
    "glm4": f"{FAMILIES}.glm4:FAMILY",
}
NESTED = ("mistral3", "gemma3")  # pictures and text: the text's config is inside
