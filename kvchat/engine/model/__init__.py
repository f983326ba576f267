"""Model families by the `model_type` of their config.json. Reading the table imports nothing.

A new family is one file and one entry here.
"""

MODELS = {
    "llama": "kvchat.engine.model.llama:Llama",
    "mistral": "kvchat.engine.model.mistral:Mistral",
}
