"""Model families by the `model_type` of their config.json. Reading the table imports nothing.

A new family is a class and an entry here.
"""

MODELS = {
    "llama": "kvchat.engine.model.families:Llama",
    "mistral": "kvchat.engine.model.families:Mistral",
}
