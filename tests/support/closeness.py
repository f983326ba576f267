"""How close two tensors must be: relative RMS, so that one number fits logits and keys alike."""

import torch
from torch import Tensor


def relative_rms(got: Tensor, want: Tensor) -> float:
    """RMS of the difference over the RMS of `want`; inf for a NaN or an infinity in `got`."""
    got, want = got.double(), want.double()
    if not bool(torch.isfinite(got).all()):
        return float("inf")
    scale = want.square().mean().sqrt().clamp_min(1e-30)
    return float((got - want).square().mean().sqrt() / scale)


def assert_close(name: str, got: Tensor, want: Tensor, tolerance: float = 1e-5) -> None:
    """Fail unless shapes agree and the relative RMS error is at most `tolerance`."""
    assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    if want.numel() == 0:
        return
    error = relative_rms(got, want)
    assert error <= tolerance, f"{name}: relative RMS error {error:.2e} exceeds {tolerance:.0e}"


def assert_lse_close(name: str, got: Tensor, want: Tensor, tolerance: float = 1e-4) -> None:
    """Like `assert_close`, absolute, for log-sum-exps; -inf must stand where it is wanted."""
    assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    empty = want == float("-inf")
    assert torch.equal(got == float("-inf"), empty), f"{name}: -inf stands elsewhere"
    error = (got.double() - want.double())[~empty].abs()
    worst = float(error.max()) if error.numel() else 0.0
    assert worst <= tolerance, f"{name}: off by {worst:.2e}, more than {tolerance:.0e}"


def assert_attention(
    got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor], tolerance: float = 1e-5
) -> None:
    """Outputs and log-sum-exps of two ways of attending agree."""
    assert_close("o", got[0], want[0], tolerance)
    assert_lse_close("lse", got[1], want[1], 1e-5)
