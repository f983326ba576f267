"""What is measured: a checkpoint, or a shape with random weights, and the tokens for it."""

import os
from dataclasses import dataclass, replace
from itertools import chain

import torch

from kvchat import documents
from kvchat.bench.settings import Settings
from kvchat.engine.devices import resolve_device, resolve_dtype
from kvchat.engine.engine import Engine
from kvchat.engine.loading import load_engine
from kvchat.engine.methods.specs import parse_spec
from kvchat.engine.model.read import load_config
from kvchat.engine.weights.checkpoint import random_weights
from kvchat.errors import KvchatError
from kvchat.hub.find import Model, find_model
from kvchat.machine import resources as machine
from kvchat.machine.dummy import dummy
from kvchat.machine.plan import Workload, make_plan, require_memory
from kvchat.settings import config as user_config
from kvchat.terminal.screen import Screen


@dataclass(frozen=True)
class Subject:
    """A loaded model, its name, and the tokens of a document if they are not to be random.

    `busy` is the machine's load, in processes, before we began.
    """

    name: str
    engine: Engine
    document: list[int] | None
    seed: int
    busy: float

    def ids(self, count: int) -> list[int]:
        """The first `count` tokens of the document, or as many random ones."""
        if self.document is not None:
            return self.document[:count]
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(self.engine.config.vocab_size, (count,), generator=generator).tolist()


def load(settings: Settings, screen: Screen) -> Subject:
    """Find, check and load. Raises KvchatError before anything large is loaded if it can."""
    busy, model = os.getloadavg()[0], None
    if settings.dummy is not None:
        name, config = dummy(settings.dummy)
    else:
        given = user_config.settle({"model": settings.model}, user_config.load())
        model = find_model(given.model, given.aliases)
        name, config = model.name, load_config(model.path)
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, config, settings.weights)
    if settings.longest > config.context_limit:
        half = config.context_limit // 2
        raise KvchatError(
            "too_long",
            f"{settings.longest:,} tokens do not fit the context window of {name}: "
            f"{config.context_limit:,}",
            f"-p {half} -d {half}",
        )
    cuda = device.type == "cuda"
    least = make_plan(
        Workload(config, dtype.itemsize, 1, parse_spec("full"), 1, 1, cuda, settings.weights)
    )
    limit = settings.mem_limit
    least = replace(least, base=0)  # the process is here already
    require_memory(least, machine.left(device, limit), machine.place(device, limit), "full")
    document = _document(settings, model)
    if model is None:
        with screen.busy(f"random weights for {name}"):
            weights = random_weights(config, dtype, device, weights=settings.weights)
        engine = Engine(weights, settings.attention, settings.kernels)
    else:
        wanted = settings.dtype, settings.device, settings.weights, settings.attention
        loading = load_engine(model.path, config, *wanted, settings.kernels)
        engine = screen.watch(loading, "loading")
        for tensor in chain(engine.model.parameters(), engine.model.buffers()):
            tensor.flatten()[::1024].sum()  # or the first test would read a mapped file
    engine.chunk = settings.chunk or engine.chunk
    return Subject(name, engine, document, settings.seed, busy)


def _document(settings: Settings, model: Model | None) -> list[int] | None:
    """Ids of the document of `--from-file`. Raises KvchatError."""
    if settings.text is None:
        return None
    if model is None:
        raise KvchatError("usage", "--from-file needs a tokenizer and --dummy has none", "-m DIR")
    # transformers behind it is heavy
    from kvchat.engine.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(model.text_path)
    text = documents.read(settings.text).text
    ids = [*tokenizer.bos, *tokenizer.encode([(text, False)])]
    needed = max([1, *settings.prompts, *settings.depths])
    if len(ids) < needed:
        raise KvchatError(
            "input",
            f"{settings.text} has {len(ids):,} tokens, {needed:,} are asked for",
            f"-p {len(ids)} -d {len(ids)}",
            "a longer file, or random tokens without --from-file",
        )
    return ids
