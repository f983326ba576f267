"""Attention backends by name. The table holds import strings: importing this imports no torch.

A new backend is one file and one entry here; `auto` asks them in this order.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from kvchat.errors import KvchatError

BACKENDS = {
    "flash": "kvchat.engine.attention.flash_backend:FlashBackend",
    "triton": "kvchat.engine.attention.triton_backend:TritonBackend",
    "torch": "kvchat.engine.attention.torch_backend:TorchBackend",
}

PACKAGES = {"flash": ("flash_attn", "kvchat[flash]"), "triton": ("triton", "triton")}
"""What a backend imports that may be missing, and what pip calls it; `auto` passes over it then."""


def backend(name: str = "torch") -> Any:
    """The backend of that name.

    Raises KvchatError("device") if its package is missing, or is there and does not load.
    """
    if name not in installed():
        package, pip = PACKAGES[name]
        raise KvchatError(
            "device",
            f"--attention {name} needs {package.replace('_', '-')}, which is not installed",
            f"pip install '{pip}'",
            "--attention auto",
        )
    module, cls = BACKENDS[name].split(":")
    try:
        return getattr(import_module(module), cls)()
    except Exception as error:  # compiled for another torch, it fails in ways of its own
        why = str(error).partition("\n")[0] or type(error).__name__
        raise KvchatError(
            "device",
            f"--attention {name} does not load: {why}",
            "--attention triton" if name == "flash" else "--attention torch",
            why=why,
        ) from error


def installed() -> list[str]:
    """The backends whose packages are here."""
    return [name for name in BACKENDS if name not in PACKAGES or find_spec(PACKAGES[name][0])]
