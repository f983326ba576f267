"""What is planned with an engine that is loaded by now."""

from kvchat.engine.engine import Engine
from kvchat.engine.methods.base import Method
from kvchat.machine import resources as machine
from kvchat.machine.plan import Workload, planned


def left(engine: Engine, limit: int | None) -> int:
    """Bytes that each part of the model may take beyond what it uses now: on a CPU all are in one
    memory."""
    free = machine.left(engine.device, limit)
    return free if engine.device.type == "cuda" else free // engine.peers.count


def workload(
    engine: Engine, method: Method, tokens: int, limit: int, streams: bool = False
) -> Workload:
    """Prefill of `tokens` tokens in a context window of `limit`, part by part if it `streams`."""
    return Workload(
        engine.config,
        engine.dtype.itemsize,
        tokens,
        planned(method),
        limit,
        engine.chunk,
        engine.device.type == "cuda",
        engine.model.weights,
        streams,
        engine.attention,
        engine.peers.count,
    )
