"""Attention backends by name. The table holds import strings: reading it imports nothing."""

from importlib import import_module

BACKENDS = {
    "torch": "kvchat.engine.attention.torch_backend:TorchBackend",
}


def backend(name: str = "torch"):
    """The backend of that name, as a `rows.Backend`."""
    module, cls = BACKENDS[name].split(":")
    return getattr(import_module(module), cls)()
