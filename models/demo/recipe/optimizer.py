"""Muon (Jordan et al. 2024) for the matrices of the layers, AdamW for embedding and norms."""

import torch
from torch import Tensor, nn


def orthogonalize(g: Tensor) -> Tensor:
    """Matrices [n, a, b] moved near to orthogonal by five Newton-Schulz steps."""
    x = g.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).bfloat16()
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized; equal shapes are handled in one batch."""

    def __init__(self, params: list[nn.Parameter], base: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": base, "base": base, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix; the scale gives the root mean square of an Adam step."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                shapes.setdefault(p.shape, []).append(p)
            for shape, params in shapes.items():
                updates = []
                for p in params:
                    state = self.state[p]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(p)
                    buffer = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(buffer, group["momentum"]))
                scale = group["lr"] * 0.2 * max(shape) ** 0.5
                for p, update in zip(params, orthogonalize(torch.stack(updates)), strict=True):
                    p.add_(update, alpha=-scale)


def make_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Optimizers over all parameters; "base" in a group is its rate before the schedule."""
    matrices = [p for name, p in model.named_parameters() if name.endswith("_proj.weight")]
    rest = [p for name, p in model.named_parameters() if not name.endswith("_proj.weight")]
    group = {"params": rest, "base": 3e-3}
    adam = torch.optim.AdamW([group], lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(matrices, base=6e-3), adam]
