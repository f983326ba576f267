"""An engine over two processes that shows what each of them keeps. Run as a program it is the
second one."""

import os
from functools import partial

import torch

from kvchat.engine.devices import entry
from kvchat.engine.engine import Engine
from kvchat.engine.loading import load_engine
from kvchat.machine import ranks

PROGRAM = ("-m", "tests.support.ranked")


class Shown(Engine):
    """An engine whose caches can be looked at from the first rank."""

    @entry
    def shown(self, cache):
        """Of every layer: entries of each head, their positions, and all tensors by name as far as
        they are alike in shape, all ranks' one after the other."""
        found = []
        for layer in cache.layers:
            for segment in layer.segments:
                whole = {}
                for name, tensor in sorted(segment.tensors().items()):
                    if name.rpartition(".")[2] in ("cu", "reads", "sums"):
                        continue
                    flat = tensor.reshape(-1).view(torch.uint8)
                    whole[name] = self.peers.ragged(flat)[0]
                lengths = torch.tensor(segment.lengths)
                found.append((segment.kind, self.peers.joined(lengths).tolist(), whole))
        return found


load_shown = partial(load_engine, kind=Shown)


if __name__ == "__main__":
    os._exit(ranks.follower(load_shown))
