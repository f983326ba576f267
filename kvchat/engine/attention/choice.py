"""Which backend answers: the first of a list that does not refuse. Reasons are kept."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kvchat.engine.attention import BACKENDS, backend, installed
from kvchat.engine.attention.entries import Backend, Call, Entries, JointBackend
from kvchat.engine.attention.torch_backend import TorchBackend
from kvchat.errors import KvchatError
from kvchat.kernels import toolchain


def choose(
    name: str, device: torch.device, cap: float = 0.0, without: Mapping[str, str] | None = None
) -> Backend:
    """The attention of a device by name: `auto` or one of `BACKENDS`.

    Logits capped at `cap` (not 0) are torch's alone.

    `flash` only prefills, so whoever `auto` would ask does the rest. What is installed and does not
    load is passed over, unless it was asked for by name, and so are backends `without` which it is
    to go, for reasons that are known; `Choice.broken` has the reasons. Raises KvchatError("usage")
    for an unknown name, KvchatError("device") for what cannot run here.
    """
    if name != "auto" and name not in BACKENDS:
        tries = (f"--attention {known}" for known in ("auto", *BACKENDS))
        raise KvchatError("usage", f"{name!r} is not an attention backend", *tries)
    if cap and name not in ("auto", "torch"):
        raise KvchatError(
            "usage",
            f"--attention {name} does not cap logits, which this model needs",
            "--attention auto",
        )
    if cap:
        return TorchBackend(cap)
    names = installed() if name in ("auto", "flash") else [name]
    if device.type != "cuda" and name == "auto":
        names = ["torch"]
    if name == "flash":
        names = ["flash", *(other for other in names if other != "flash")]
    backends: list[Backend] = []
    broken: dict[str, str] = {}
    known = dict(without or {})
    if device.type == "cuda" and (lacking := toolchain.lacking()):
        known.setdefault("triton", lacking)
    for each in names:
        try:
            if each in known:
                raise KvchatError(
                    "device",
                    f"--attention {each} does not run: {known[each]}",
                    "--attention torch --kernels torch",
                    why=known[each],
                )
            backends.append(backend(each))
        except KvchatError as error:
            if each == name:
                raise
            broken[each] = str(error.details.get("why", error.message))
    if names == ["torch"] and device.type != "cuda":
        return backends[0]
    return Choice(backends, broken)


class Choice(JointBackend):
    """Asks its backends in turn; what they answer to a shape is remembered."""

    def __init__(self, backends: Sequence[Any], broken: Mapping[str, str] | None = None):
        self.backends = backends
        self.broken = dict(broken or {})  # what is installed and does not load, and why
        self.refused: dict[Call, dict[str, str]] = {}
        self._chosen: dict[Call, Any] = {}

    @property
    def name(self) -> str:
        """The backends in the order in which they are asked."""
        return ", ".join(each.name for each in self.backends)

    def attend(self, q: Tensor, entries: Entries, scale: float) -> tuple[Tensor, Tensor]:
        """See `Backend.attend`. Raises KvchatError("device") if all refuse."""
        return self._able(Call.of("entries", q, [entries])).attend(q, entries, scale)

    def causal(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """See `Backend.causal`. Raises KvchatError("device") if all refuse."""
        tokens, query_heads, dim = q.shape
        group = query_heads // len(k)
        call = Call("square", q.device.type, q.dtype, tokens, len(k), group, dim)
        return self._able(call).causal(q, k, v, scale)

    def joint(
        self,
        q: Tensor,
        parts: Sequence[Entries],
        scale: float,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor] | None:
        chosen: JointBackend | None = self._ask(Call.of("joint", q, parts))
        return None if chosen is None else chosen.joint(q, parts, scale, dtype)

    def report(self) -> list[str]:
        """A line for every backend that does not load, and for every shape that one refused."""
        broken = [f"{name} does not run: {why}" for name, why in self.broken.items()]
        return broken + [f"{call}: {_reasons(reasons)}" for call, reasons in self.refused.items()]

    def _able(self, call: Call) -> Backend:
        chosen: Backend | None = self._ask(call)
        if chosen is None:
            raise KvchatError(
                "device",
                f"no attention backend takes {call}; {_reasons(self.refused[call])}",
                "--attention auto",
                "--device cpu",
                refused=self.refused[call],
            )
        return chosen

    def _ask(self, call: Call) -> Any:
        if call not in self._chosen:
            reasons: dict[str, str] = {}
            self._chosen[call] = None
            for each in self.backends:
                if (reason := each.can(call)) is None:
                    self._chosen[call] = each
                    break
                reasons[each.name] = reason
            if reasons:
                self.refused[call] = reasons
        return self._chosen[call]


def warnings(backend: Backend) -> list[str]:
    """What should run here and does not, and what that costs."""
    broken = backend.broken if isinstance(backend, Choice) else {}
    slower = {"flash": "documents are read by our own kernels", "triton": "torch is slower"}
    return [f"{name} does not run: {why} ({slower[name]})" for name, why in broken.items()]


def _reasons(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
