"""What is planned with an engine that is loaded by now."""

from kvchat.engine.engine import Engine
from kvchat.engine.methods.base import Method
from kvchat.machine.plan import Workload, planned


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
