"""How attention's work is cut into blocks, by shape and by card."""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton

INTERPRETED = triton.knobs.runtime.interpret
ROOMY = (80, 90, 100, 103)  # compute capabilities with 163 KiB of shared memory or more for a block


class Tiles(NamedTuple):
    """Query entries and key entries of a block, and how the compiler runs it."""

    m: int
    n: int
    warps: int
    stages: int


def tiles(
    queries: int, dim: int, itemsize: int, packed: bool = False, capability: int = 86
) -> Tiles:
    """Blocks for `queries` entries of one head, by compute capability. They fit the 99 KiB of the
    smallest card, or the 163 KiB of those that have them.

    Not measured on a card: chosen by shared memory, registers and instructions per logit alone.
    """
    wide = triton.next_power_of_2(dim)
    if itemsize == 4:  # exact products have no tensor cores to go to
        return Tiles(16, 16, 8 if wide == 256 else 4, 1)
    if queries <= 16:
        warps = 8 if packed and wide == 256 else 4
        return Tiles(16, min(128, max(32, 8192 // wide)), warps, 2)
    if wide == 256:
        return Tiles(32 if packed else 64, 32, 8, 2)
    if packed and wide == 128:  # with 128 queries triton 3.7 spills
        return Tiles(64, 32, 8, 2)
    if queries <= 64:
        return Tiles(64, 64, 4 if wide <= 64 else 8, 2)
    entries = 64 if wide <= 64 or capability in ROOMY else 32
    return Tiles(128, entries, 4 if wide <= 32 else 8, 2)


@lru_cache
def capability(device: torch.device) -> int:
    """Compute capability that kernels are compiled for, 90 for 9.0."""
    if INTERPRETED:
        return 86
    return int(triton.runtime.driver.active.get_current_target().arch)


@lru_cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a card; a few where kernels are interpreted."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count
