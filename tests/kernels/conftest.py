"""The same kernel tests on a CPU (interpreted) and, with `-m gpu`, on a card."""

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where a kernel runs."""
    if request.param == "cpu":
        import tests.kernels.interpreted  # noqa: F401 - bfloat16 as a card has it
    return torch.device(request.param)
