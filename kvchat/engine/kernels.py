"""Kernels that compute what torch computes slowly: names, and where they run. No torch."""

from importlib.util import find_spec

from kvchat.errors import KvchatError
from kvchat.kernels.toolchain import lacking

KERNELS = ("auto", "torch", "numba", "triton")
# The device that each is for, and what pip calls it.
PLACES = {"numba": "cpu", "triton": "cuda"}


def kernels_on(device: str, name: str = "auto") -> str:
    """The kernels that run on a `cpu` or `cuda`: `numba`, `triton` or `torch`, which has none.

    Raises KvchatError("usage") for a name that is none, KvchatError("device") where those that were
    asked for cannot run.
    """
    if name not in KERNELS:
        raise KvchatError(
            "usage", f"{name!r} are no kernels", *(f"--kernels {known}" for known in KERNELS)
        )
    if name == "auto":
        usual = next(kernels for kernels, place in PLACES.items() if place == device)
        if usual == "triton" and lacking():
            return "torch"
        return usual if find_spec(usual) else "torch"
    if name == "torch":
        return name
    if PLACES[name] != device:
        raise KvchatError(
            "device",
            f"--kernels {name} are for {PLACES[name]}, the model is on {device}",
            "--kernels auto",
        )
    if find_spec(name) is None:
        raise KvchatError(
            "device",
            f"--kernels {name}: the package is not installed",
            f"pip install {name}",
            "--kernels torch",
        )
    if name == "triton" and (why := lacking()):
        raise KvchatError("device", f"--kernels triton: {why}", "--kernels torch", why=why)
    return name
