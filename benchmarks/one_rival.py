"""One way of decoding a model, as a process that `decode_rivals.py` starts, asks and ends.

    python benchmarks/one_rival.py kvchat|transformers|llama.cpp PATH WEIGHTS METHOD DEPTH THREADS

Reads DEPTH random tokens and prints what that cost as a line of JSON; for every number N on its
input it writes N tokens and prints their milliseconds; at the end of the input it prints the peak
of its resident memory. llama.cpp's is run by a Python of its own, so nothing is imported here that
one of them does not have.
"""

import json
import random
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

IDS = 1000, 40000  # of random tokens
ROOM = 400  # tokens beyond the depth that may be written

Read, Write = Callable[[list[int]], object], Callable[[int], object]


def kvchat(path: str, weights: str, method: str, depth: int, threads: int) -> tuple[Read, Write]:
    """Our engine, as a chat has it."""
    import torch

    from kvchat.engine.decode.loop import Writer, compile_beside
    from kvchat.engine.events import drain
    from kvchat.engine.loading import load_engine
    from kvchat.engine.methods.build import parse_method
    from kvchat.engine.model.read import load_config
    from kvchat.engine.prefill.prefill import Compression

    torch.set_num_threads(threads)
    folder, found = Path(path), {}
    engine = drain(load_engine(folder, load_config(folder), "auto", "cpu", weights))
    compile_beside(engine.dtype).join()
    assert isinstance(engine.writer, Writer) and engine.writer.compiled

    def read(ids: list[int]) -> object:
        reading = drain(engine.prefill(ids, [Compression(parse_method(method))]))
        found["cache"] = reading.caches[0]
        return reading

    @torch.inference_mode()
    def write(token: int) -> object:
        return engine.writer.after(found["cache"], token).argmax()

    return read, write


def transformers(
    path: str, weights: str, method: str, depth: int, threads: int
) -> tuple[Read, Write]:
    """transformers with its own cache, in the checkpoint's dtype."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", attn_implementation="sdpa")
    model, cache = model.eval(), DynamicCache()

    @torch.inference_mode()
    def fed(ids: list[int]) -> object:
        given = torch.tensor([ids])
        return model(given, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.argmax()

    return fed, lambda token: fed([token])


def llama_cpp(path: str, weights: str, method: str, depth: int, threads: int) -> tuple[Read, Write]:
    """llama.cpp by llama-cpp-python, with flash attention."""
    import llama_cpp

    model = llama_cpp.Llama(
        path,
        n_ctx=depth + ROOM,
        n_threads=threads,
        n_threads_batch=threads,
        n_batch=512,
        flash_attn=True,
        verbose=False,
    )
    return model.eval, lambda token: model.eval([token])


WAYS = {"kvchat": kvchat, "transformers": transformers, "llama.cpp": llama_cpp}


def peak() -> float:
    """The largest resident memory of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says begins with the parent's
        line = next(each for each in status.read_text().splitlines() if each.startswith("VmHWM"))
        return int(line.split()[1]) / 1000
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most / 1000


def say(**figures: float) -> None:
    """One line of JSON."""
    print(json.dumps(figures), flush=True)


def main() -> None:
    """Read, then write as asked."""
    name, path, weights, method, depth, threads = sys.argv[1:]
    read, write = WAYS[name](path, weights, method, int(depth), int(threads))
    drawn = random.Random(0)
    ids = [drawn.randrange(*IDS) for _ in range(int(depth))]
    wall, cpu = perf_counter(), process_time()
    read(ids)
    say(prefill_cpu_s=process_time() - cpu, prefill_s=perf_counter() - wall)
    for line in sys.stdin:
        count = int(line)
        wall, cpu = perf_counter(), process_time()
        for _ in range(count):
            write(drawn.randrange(*IDS))
        spent = process_time() - cpu
        say(cpu_ms=1e3 * spent / count, wall_ms=1e3 * (perf_counter() - wall) / count)
    say(peak_mb=peak())


if __name__ == "__main__":
    main()
