"""kvchat: chat about long documents with a compressed KV cache.

    import kvchat

    with kvchat.open("demo", files=["book.txt"], method="kvzip", budget="25%") as chat:
        print(chat.ask("Who is the captain?").text)

Importing it imports nothing heavy: the first use of `kvchat.open` does.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"
__all__ = ["Answer", "Delta", "Forgotten", "OpenChat", "Source", "Thought", "TurnDone"]
__all__ += ["__version__", "open"]


def __getattr__(name: str) -> Any:
    """The Python API, which imports torch, when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'kvchat' has no attribute {name!r}")
    return getattr(import_module("kvchat.chat.api"), name)
