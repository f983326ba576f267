"""`kvchat bench`: reading and writing speed, KV bytes and peak memory, method by method."""

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, time
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvchat import __version__
from kvchat.app import machine, process
from kvchat.app.models import find_model
from kvchat.app.screen import Screen
from kvchat.app.text import size
from kvchat.engine.budget import Budget
from kvchat.engine.cache.layer import KVCache
from kvchat.engine.engine import Engine, resolve_device, resolve_dtype
from kvchat.engine.events import drain
from kvchat.engine.methods.base import Method
from kvchat.engine.methods.spec import method_options, name_of, parse_method
from kvchat.engine.model.config import ModelConfig, read_json
from kvchat.engine.model.weights import random_weights
from kvchat.engine.prefill import Compression
from kvchat.engine.sampling import Sampling
from kvchat.errors import KvchatError

CAVEATS = (
    "TTFT of a reading, TPOT of writing. One sequence, greedy, end of turn ignored, random "
    "tokens; tokenising excluded. Peak is this process in RAM (on CUDA: allocated by torch), "
    "reset before each test. Speed and memory say nothing about quality."
)


@dataclass(frozen=True)
class Settings:
    """Options of `kvchat bench`."""

    model: str | None
    dummy: str | None
    prompts: list[int]
    generates: list[int]
    depths: list[int]
    repeat: int
    methods: list[str]
    budget: str | None
    seed: int
    warmup: bool
    device: str
    dtype: str
    weights: str
    threads: int | None
    output: str


@dataclass(frozen=True)
class Result:
    """One test of one method: samples in nanoseconds, sizes in bytes."""

    method: str
    options: dict[str, Any]
    budget: str
    test: str
    n_prompt: int
    n_gen: int
    n_depth: int
    samples_ns: list[int]
    kept_fraction: float
    kv_bytes: int
    kv_full_bytes: int
    peak_bytes: int

    @property
    def samples_ts(self) -> list[float]:
        """Tokens per second of each repetition."""
        return [1e9 * (self.n_prompt or self.n_gen) / ns for ns in self.samples_ns]


def counts(given: Sequence[str] | None, default: list[int], least: int = 1) -> list[int]:
    """Numbers of a repeated or comma-separated option. Raises KvchatError("usage")."""
    if not given:
        return default
    texts = [text.strip() for item in given for text in item.split(",")]
    bad = [text for text in texts if not (text.isascii() and text.isdecimal()) or int(text) < least]
    if bad:
        raise KvchatError("usage", f"{bad[0]!r} is not a number of tokens (at least {least})")
    return [int(text) for text in texts]


def run(settings: Settings) -> int:
    """Measure the cross product of methods and tests, print a table or JSON."""
    process.interruptible()
    if settings.output not in ("md", "json"):
        raise KvchatError("usage", f"-o {settings.output!r} is unknown", "-o md", "-o json")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    budget = Budget.parse(settings.budget) if settings.budget else None
    methods = [parse_method(spec, budget) for spec in settings.methods]
    screen = Screen()
    name, engine = _engine(settings, screen)
    longest = max(
        [*settings.prompts, *(d + n for d in settings.depths for n in settings.generates)]
    )
    if longest > engine.config.context_limit and settings.dummy is None:
        raise KvchatError(
            "too_long",
            f"{longest:,} tokens do not fit the window of {name}: {engine.config.context_limit:,}",
            f"-p {engine.config.context_limit // 2} -d {engine.config.context_limit // 2}",
        )
    results = []
    for method in methods:
        for tokens in settings.prompts:
            screen.say(f"{name_of(method)}: reading {tokens:,} tokens")
            results.append(_reading(engine, method, tokens, settings))
        for depth in settings.depths:
            for tokens in settings.generates:
                screen.say(f"{name_of(method)}: writing {tokens:,} tokens after {depth:,}")
                results.append(_writing(engine, method, tokens, depth, settings))
    if settings.output == "json":
        print(json.dumps(_document(name, engine, results, settings), indent=1))
    else:
        _print(name, engine, results)
    return 0


def _engine(settings: Settings, screen: Screen) -> tuple[str, Engine]:
    if settings.dummy:
        path = Path(settings.dummy).expanduser()
        if not path.is_file():
            raise KvchatError("input", f"{path} is not a file", "--dummy FOLDER/config.json")
        config = ModelConfig.from_dict(read_json(path), str(path))
        device = resolve_device(settings.device)
        dtype = resolve_dtype(settings.dtype, config, settings.weights)
        model = random_weights(config, dtype, device, weights=settings.weights)
        return f"random {config.family}", Engine(model)
    found = find_model(settings.model)
    config = ModelConfig.load(found.folder)
    loading = Engine.load(found.folder, config, settings.dtype, settings.device, settings.weights)
    return found.name, screen.watch(loading, "loading")


def _tokens(engine: Engine, count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(engine.config.vocab_size, (count,), generator=generator).tolist()


def _read(engine: Engine, method: Method, ids: list[int]) -> KVCache:
    return drain(engine.prefill(ids, [Compression(method)])).caches[0]


def _reading(engine: Engine, method: Method, tokens: int, settings: Settings) -> Result:
    ids = _tokens(engine, tokens, settings.seed)
    samples = []
    for number in range(settings.repeat + settings.warmup):
        machine.reset_peak(engine.device)
        begin = _clock(engine)
        cache = _read(engine, method, ids)
        if number >= settings.warmup:
            samples.append(_clock(engine) - begin)
    return _result(engine, method, f"pp{tokens}", cache, samples, n_prompt=tokens)


def _writing(engine: Engine, method: Method, tokens: int, depth: int, settings: Settings) -> Result:
    ids = _tokens(engine, max(depth, 1), settings.seed)
    cache = _read(engine, method, ids)
    samples = []
    machine.reset_peak(engine.device)
    for number in range(settings.repeat + settings.warmup):
        first = torch.zeros(engine.config.vocab_size, device=engine.device)
        written = engine.decode(cache, first, Sampling())
        next(written)  # the first token comes without work
        begin = _clock(engine)
        for _ in range(tokens):
            next(written)
        if number >= settings.warmup:
            samples.append(_clock(engine) - begin)
        if number < settings.repeat + settings.warmup - 1:
            cache.truncate(len(ids))
    test = f"tg{tokens} @ d{depth}"
    return _result(engine, method, test, cache, samples, n_gen=tokens, n_depth=depth)


def _result(
    engine: Engine,
    method: Method,
    test: str,
    cache: KVCache,
    samples: list[int],
    n_prompt: int = 0,
    n_gen: int = 0,
    n_depth: int = 0,
) -> Result:
    kept = cache.kept
    config = engine.config
    rows = cache.frozen * config.num_kv_heads * config.num_layers
    return Result(
        method=name_of(method),
        options=method_options(method),
        budget=str(method.budget),
        test=test,
        n_prompt=n_prompt,
        n_gen=n_gen,
        n_depth=n_depth,
        samples_ns=samples,
        kept_fraction=kept / rows,
        kv_bytes=cache.memory().total,
        kv_full_bytes=cache.position * engine.kv_bytes_per_token,
        peak_bytes=machine.peak(engine.device),
    )


def _document(
    name: str, engine: Engine, results: list[Result], settings: Settings
) -> dict[str, Any]:
    """Everything that was measured, with the keys of llama-bench where they exist."""
    tests = []
    for result in results:
        ts = result.samples_ts
        per_token = statistics.mean(result.samples_ns) / (result.n_prompt or result.n_gen)
        tests.append(
            asdict(result)
            | {
                "samples_ts": ts,
                "avg_ns": statistics.mean(result.samples_ns),
                "stddev_ns": statistics.pstdev(result.samples_ns),
                "avg_ts": statistics.mean(ts),
                "stddev_ts": statistics.pstdev(ts),
                "ttft_ns": statistics.mean(result.samples_ns) if result.n_prompt else None,
                "tpot_ns": per_token if result.n_gen else None,
                "select": "document",
            }
        )
    return {
        "schema": 1,
        "test_time": int(time()),
        "versions": {"kvchat": __version__, "torch": torch.__version__},
        "cpu_info": machine.processor(),
        "gpu_info": torch.cuda.get_device_name() if engine.device.type == "cuda" else None,
        "platform": platform.platform(),
        "n_threads": torch.get_num_threads(),
        "model": name,
        "model_type": engine.config.family,
        "model_size": engine.weights_bytes,
        "model_n_params": engine.config.parameters,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "weights": engine.weights,
        "seed": settings.seed,
        "results": tests,
    }


def _print(name: str, engine: Engine, results: list[Result]) -> None:
    console = Console(highlight=False, markup=False)
    where = machine.processor() if engine.device.type == "cpu" else torch.cuda.get_device_name()
    console.print(
        f"{name} · {engine.config.parameters / 1e6:,.1f} M parameters, weights "
        f"{size(engine.weights_bytes)} in {engine.weights} · {where}, "
        f"{torch.get_num_threads()} threads"
    )
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for column in ("method", "test", "t/s", "TTFT, TPOT ms", "KV", "KV full", "peak"):
        justify: Literal["left", "right"] = "left" if column in ("method", "test") else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    for result in results:
        ts = result.samples_ts
        ms = statistics.mean(result.samples_ns) / 1e6
        table.add_row(
            f"{result.method} {result.kept_fraction:.0%}",
            result.test,
            f"{statistics.mean(ts):,.0f} ± {statistics.pstdev(ts):,.0f}",
            f"{ms:,.0f}" if result.n_prompt else f"{ms / result.n_gen:.2f}",
            size(result.kv_bytes),
            size(result.kv_full_bytes),
            size(result.peak_bytes),
        )
    console.print(table)
    console.print(Text(CAVEATS, style="dim"))


def _clock(engine: Engine) -> int:
    """Nanoseconds now, all device work done."""
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
    return int(perf_counter() * 1e9)
