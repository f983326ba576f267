"""From a checkpoint to an `Engine`: weights stream in, and what has to be compiled is beside it."""

from collections.abc import Generator
from pathlib import Path

from kvchat.engine.attention.choice import choose
from kvchat.engine.decode.loop import compile_beside
from kvchat.engine.decode.warm_card import Warming
from kvchat.engine.devices import resolve_device, resolve_dtype
from kvchat.engine.engine import Engine
from kvchat.engine.events import Loading
from kvchat.engine.kernels import kernels_on
from kvchat.engine.methods.build import parse_method
from kvchat.engine.model.config import ModelConfig
from kvchat.engine.model.decoder import Decoder
from kvchat.engine.model.shard import Shard
from kvchat.engine.peers import ALONE, Peers
from kvchat.engine.ranks import Lead
from kvchat.engine.weights.checkpoint import load_weights
from kvchat.errors import KvchatError

WARMED = ("full", "kvzip:budget=50%", "adakv:budget=50%", "pqcache:budget=30%")
WAIT = 0.2  # seconds between two looks at what is compiled


def load_engine(
    folder: Path,
    config: ModelConfig,
    dtype: str = "auto",
    device: str = "auto",
    weights: str = "auto",
    attention: str = "auto",
    kernels: str = "auto",
    lead: Lead | None = None,
    peers: Peers = ALONE,
    kind: type[Engine] = Engine,
) -> Generator[Loading, None, Engine]:
    """Stream a checkpoint in; the generator's value is the engine.

    With a `lead`, this is the first of several ranks, and the others load their parts beside;
    those are told the same with their `peers`. Kernels that have to be compiled are, beside it:
    those of a card are waited for. If they cannot run there, and nobody asked for them by name,
    the engine does without and `choice.warnings` say why.
    """
    if lead is not None:
        peers = lead.group
        Shard(peers.rank, peers.count).of(config)  # refused before anybody begins
    where, computed = resolve_device(device, peers), resolve_dtype(dtype, config, weights)
    backend = choose(attention, where, config.attention_cap)  # refused now if it cannot run
    compiled, warming = kernels_on(where.type, kernels), None
    if compiled == "numba":
        compile_beside(computed)
    model = None
    loading = load_weights(folder, config, computed, where, weights, peers)
    begun = next(loading)  # names and shapes are checked by now
    assert not isinstance(begun, Decoder), "load_weights begins with sizes"
    yield Loading(*begun)
    total = begun[1]
    if lead is not None:
        lead.load(folder, config, dtype, device, weights, attention, kernels)
    for item in loading:
        if isinstance(item, Decoder):
            model = item
            break
        if warming is None and compiled == "triton":
            methods = [parse_method(spec) for spec in WARMED]
            warming = Warming(config, computed, where, weights, backend, methods)
        yield Loading(*item)
        total = item[1]
    assert model is not None, "load_weights ends with the model"
    while warming is not None and not warming.ended(WAIT):
        yield Loading(total, total, "compiling kernels for this card: the first time only")
    without = {"triton": warming.problem} if warming is not None and warming.problem else None
    if without and "triton" in (attention, kernels):
        raise KvchatError(
            "device",
            f"the kernels do not run here: {without['triton']}",
            "--attention torch --kernels torch",
            why=without["triton"],
        )
    engine = kind(model, attention, "torch" if without else kernels, without)
    engine.lead, engine.number = lead, lead.loaded if lead is not None else 0
    return engine
