"""The command line of `kvchat bench`."""

from typing import Annotated

import typer

from kvchat.cli import flags
from kvchat.cli.lists import counts, pieces, specs
from kvchat.engine.methods import BY_QUESTION, DEFAULT

Numbers = list[str] | None
METHODS = ["full", BY_QUESTION, DEFAULT]
CURVE = [1024, 2048, 4096, 8192]  # depths of a picture
# tokens to read, to write, depth, repetitions: as usual, and in about ten seconds
USUAL, QUICK = (4096, 64, 4096, 3), (1024, 32, 2048, 3)


def bench(
    model: flags.Model = None,
    dummy: flags.Dummy = None,
    prompt: Annotated[
        Numbers, typer.Option("-p", help=f"Tokens to read ({USUAL[0]}): 512,4k or 1k-8k*2.")
    ] = None,
    generate: Annotated[
        Numbers, typer.Option("-n", help=f"Tokens to write ({USUAL[1]}); 0: none.")
    ] = None,
    depth: Annotated[
        Numbers, typer.Option("-d", help=f"Tokens read before writing ({USUAL[2]}).")
    ] = None,
    repeat: Annotated[
        int | None, typer.Option("-r", min=1, help=f"Repetitions ({USUAL[3]}).")
    ] = None,
    method: flags.Methods = None,
    budget: flags.Budgets = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="About ten seconds with the bundled model.")
    ] = False,
    threads: Annotated[Numbers, typer.Option("-t", "--threads", help="CPU threads: 1,2.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the random tokens.")] = 0,
    from_file: Annotated[
        str | None, typer.Option(help="Read this document's tokens, not random ones.")
    ] = None,
    warmup: Annotated[
        bool, typer.Option("--warmup/--no-warmup", help="One run that is not counted.")
    ] = True,
    delay: Annotated[
        float,
        typer.Option(min=0, max=3600, help="Seconds of rest before each test (0): a cool machine."),
    ] = 0.0,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    weights: flags.Weights = None,
    attention: flags.Attention = None,
    prefill_chunk: flags.Chunk = None,
    mem_limit: flags.MemoryLimit = None,
    output: Annotated[str, typer.Option("-o", "--output", help="md, csv, jsonl.")] = "md",
    output_err: Annotated[
        str | None, typer.Option("-oe", "--output-err", help="The same, on stderr as well.")
    ] = None,
    plot: Annotated[
        str | None, typer.Option(help="Draw speed and KV against context: a PNG file.")
    ] = None,
    list_devices: Annotated[
        bool, typer.Option("--list-devices", help="Say what --device can be, and stop.")
    ] = False,
) -> int:
    """Speed and memory of this machine, by method; options as in llama-bench.

    ppN reads N tokens, tgN @ dM writes N after M others were read; methods:
    full, adakv and kvzip. -p -n -d -t, methods and budgets are lists: a,b or
    the flag again, numbers also 512-8192*2 or 1k-4k+1k. Exit code 6: memory
    was not enough for a test, and the others were run.
    """
    from kvchat.bench import run, settings

    if list_devices:
        return run.list_devices()
    reads, writes, before, times = QUICK if quick else USUAL
    return run.run(
        settings.Settings(
            model=model,
            dummy=dummy,
            prompts=counts("-p", prompt, [reads], least=0),
            generates=counts("-n", generate, [writes], least=0),
            depths=counts("-d", depth, CURVE if plot else [before], least=0),
            repeat=repeat or times,
            methods=specs(method, METHODS),
            budgets=pieces(budget or []),
            threads=flags.thread_counts(counts("--threads", threads, [])),
            chunk=flags.tokens("--prefill-chunk", prefill_chunk),
            seed=seed,
            text=from_file,
            warmup=warmup,
            delay=delay,
            device=device or "auto",
            dtype=dtype or "auto",
            weights=weights or "auto",
            attention=attention or "auto",
            mem_limit=flags.byte_count("--mem-limit", mem_limit) if mem_limit else None,
            output=output,
            errput=output_err,
            plot=plot,
        )
    )
