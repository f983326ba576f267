"""kvchat: chat about long documents with a compressed KV cache. Importing it imports nothing."""

__version__ = "0.1.0"
