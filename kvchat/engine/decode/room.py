"""Memory that a few tokens, one of each asker, need on their way through the layers, for all of
them."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kvchat.engine.cache import GROUP
from kvchat.engine.decode.maps import INTEGERS
from kvchat.engine.model.config import ModelConfig
from kvchat.kernels.cpu.attention import BLOCK, padded, together

Arrays = tuple[np.ndarray, ...]


class Lane:
    """One token's vectors: a row of each of a room's arrays."""

    def __init__(self, room: "Room", row: int):
        self.x, self.h, self.y = room.x[row], room.h[row], room.y[row]
        self.qkv, self.both, self.inner = room.qkv[row], room.both[row], room.inner[row]
        width = room.out.shape[1]
        self.queries = self.qkv[:width].reshape(-1, room.dim)
        self.o, self.lse = room.out[row].reshape(-1, room.dim), room.lse[row]
        # the same memory for who wants tensors
        self.seen_q = torch.from_numpy(self.queries)[None]
        self.seen_lse = torch.from_numpy(self.lse)[None]


class Rows(NamedTuple):
    """The first so many rows of a room's arrays."""

    lanes: list[Lane]
    x: np.ndarray
    h: np.ndarray
    y: np.ndarray
    qkv: np.ndarray
    out: np.ndarray
    both: np.ndarray
    inner: np.ndarray


class Room:
    """Vectors of up to `rows` tokens, and what one after the other they need beside: sums of
    attention, room of products and choices."""

    def __init__(self, config: ModelConfig, threads: int, rows: int = 1):
        self.dim, self.splits = config.head_dim, -(-threads // config.num_kv_heads)
        self.workers = min(threads, config.num_kv_heads)
        heads, group = config.num_kv_heads, config.num_heads // config.num_kv_heads
        width = config.num_heads * config.head_dim
        self.x, self.h, self.y = np.empty((3, rows, config.hidden_size), np.float32)
        self.qkv = np.empty((rows, width + 2 * heads * self.dim), np.float32)
        self.out = np.empty((rows, width), np.float32)
        self.lse = np.empty((rows, config.num_heads), np.float32)
        self.both = np.empty((rows, 2 * config.intermediate_size), np.float32)
        self.inner = np.empty((rows, config.intermediate_size), np.float32)
        self.lanes = [Lane(self, row) for row in range(rows)]
        self.width, self.wide = together(group), padded(group)
        tasks = heads * self.splits
        self.logits = np.empty((tasks, self.wide, BLOCK), np.float32)
        self.asked, self._sums = np.empty((2, tasks, self.wide, self.dim), np.float32)
        self._tops, self._totals = np.empty((2, tasks, self.wide), np.float32)
        self._heads = heads
        self._rounded: dict[tuple[int, int], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._first: dict[int, Rows] = {}
        self._packed: Arrays | None = None
        self._choice: Arrays = ()
        self._gathered = torch.empty(2, 0, 0)

    def first(self, count: int) -> Rows:
        """The first `count` rows."""
        if count not in self._first:
            arrays = self.x, self.h, self.y, self.qkv, self.out, self.both, self.inner
            self._first[count] = Rows(self.lanes[:count], *(each[:count] for each in arrays))
        return self._first[count]

    def rounded(self, count: int, inputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What 4-bit products need of `count` inputs; products of one size share it."""
        if (count, inputs) not in self._rounded:
            self._rounded[count, inputs] = INTEGERS.room(count, inputs)
        return self._rounded[count, inputs]

    def state(self, splits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums, largest logits and weights of heads in so many pieces."""
        tasks = self._heads * splits
        return self._sums[:tasks], self._tops[:tasks], self._totals[:tasks]

    @property
    def packed(self) -> Arrays:
        """What attention over entries in few bits needs; see `kernels/cpu/packed.py`."""
        if self._packed is None:
            tasks, dim = self._heads * self.splits, self.dim
            codes = np.empty((tasks, GROUP, dim), np.uint8)
            # a value's groups of channels are at most as many as its channels
            scales = np.empty((tasks, 2, GROUP * dim), np.float32)
            self._packed = codes, np.empty((tasks, 7, dim), np.float32), scales
        return self._packed

    def choice(self, parts: int, size: int, items: int, workers: int) -> Arrays:
        """What `workers` need to judge so many items; see `kernels/cpu/choice.py`."""
        known = self._choice
        if not known or known[0].shape[1:] != (parts, size) or known[1].shape[1] < items:
            each = self.workers, items + items // 8
            numbers, marks = np.empty((4, *each), np.float32), np.empty((2, *each), np.int32)
            known = self._choice = np.empty((each[0], parts, size), np.float32), *numbers, *marks
        if workers == len(known[0]):
            return known
        return tuple(array[:workers] for array in known)

    def gathered(self, entries: int, dim: int, dtype: torch.dtype) -> Tensor:
        """Keys and values `[2, entries, dim]` of one layer, copied side by side."""
        _, room, wide = self._gathered.shape
        if room < entries or wide != dim or self._gathered.dtype != dtype:
            self._gathered = torch.empty(2, entries, dim, dtype=dtype)
        return self._gathered[:, :entries]
