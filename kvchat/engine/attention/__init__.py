"""Attention backends by name. The table holds import strings: reading it imports nothing."""

from importlib import import_module

BACKENDS = {
    "flash": "kvchat.engine.attention.flash_backend:FlashBackend",
    "triton": "kvchat.engine.attention.triton_backend:TritonBackend",
    "torch": "kvchat.engine.attention.torch_backend:TorchBackend",
}


def backend(name: str = "torch"):
    """The backend of that name. Raises KvchatError("device") if its package is missing."""
    module, cls = BACKENDS[name].split(":")
    return getattr(import_module(module), cls)()
