"""The command line: parses, calls, and is the only place that exits. Heavy imports happen inside
commands, so that `--help` and `--version` answer at once."""

import os
import sys
from typing import Annotated

import typer

from kvchat import __version__
from kvchat.app import process
from kvchat.app.options import Options
from kvchat.engine.methods import DEFAULT, METHODS
from kvchat.errors import KvchatError

app = typer.Typer(
    help="Chat about long documents with a compressed KV cache. `kvchat FILE` is `kvchat chat`.",
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


Threads = Annotated[
    int | None, typer.Option(min=1, max=4 * (os.cpu_count() or 1), help="CPU threads.")
]


def count(text: str) -> int:
    """A number of tokens: `4096`, `32k` (thousands), `32K` (1,024 each)."""
    unit = {"k": 1000, "K": 1024}.get(text[-1:], 1)
    digits = text[:-1] if unit > 1 else text
    if not (digits.isascii() and digits.isdecimal()):
        raise typer.BadParameter(f"{text!r} is not a number of tokens")
    return int(digits) * unit


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Chat about long documents with a compressed KV cache; `kvchat FILE` is `kvchat chat FILE`."""
    if version:
        print(f"kvchat {__version__}")
        raise typer.Exit


@app.command()
def chat(
    documents: Annotated[list[str] | None, typer.Argument(metavar="[FILE]...")] = None,
    model: Annotated[
        str | None, typer.Option("-m", "--model", help="Folder, or a name under models/.")
    ] = None,
    file: Annotated[
        list[str] | None, typer.Option("-f", "--file", help="Document to read; - is stdin.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("-p", "--prompt", help="Answer on stdout and exit.")
    ] = None,
    system: Annotated[str, typer.Option("-s", "--system", help="System text.")] = "",
    encoding: Annotated[str | None, typer.Option(help="Encoding of the documents.")] = None,
    method: Annotated[
        str, typer.Option(help=f"{', '.join(METHODS)}; options as NAME:key=value,…")
    ] = DEFAULT,
    method_opt: Annotated[
        list[str] | None, typer.Option("-O", "--method-opt", help="key=value of the method.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", "--kv-budget", help="What is KEPT: 25%, 2048 (rows), 1.5GiB."),
    ] = None,
    kv_bits: Annotated[
        int | None, typer.Option("--kv-bits", help="Bits of a kept value: 16 (as it is), 8, 4.")
    ] = None,
    ctx_size: Annotated[int | None, typer.Option("-c", "--ctx-size", help="Window to use.")] = None,
    prefill_chunk: Annotated[
        int | None, typer.Option(min=1, max=2**20, help="Tokens read at once (512; CUDA 2048).")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("-n", "--max-tokens", min=1, max=2**31, help="Tokens (2048)."),
    ] = None,
    temp: Annotated[float | None, typer.Option(help="Temperature; 0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Only the likeliest mass p.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Only above p times the likeliest.")] = None,
    repeat_penalty: Annotated[float | None, typer.Option(help="1 is off.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Of sampling (0).")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends an answer.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, bf16, f16, f32.")] = "auto",
    threads: Threads = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object per answer.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Answers and errors only.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="No live lines.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Progress, tracebacks.")] = False,
) -> int:
    """Read documents once, then answer questions about them."""
    options = Options(
        model=model,
        files=[*(documents or []), *(file or [])],
        prompts=prompt or [],
        system=system,
        encoding=encoding,
        method=method,
        method_options=[*([f"bits={kv_bits}"] if kv_bits else []), *(method_opt or [])],
        budget=budget,
        ctx_size=ctx_size,
        prefill_chunk=prefill_chunk,
        max_tokens=max_tokens,
        temperature=temp,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        seed=seed,
        stop=stop or [],
        device=device,
        dtype=dtype,
        threads=threads,
        json=json_,
        quiet=quiet,
        plain=plain,
        verbose=verbose,
    )
    return _chat(options)


@app.command()
def bench(
    model: Annotated[str | None, typer.Option("-m", "--model", help="Folder or name.")] = None,
    dummy: Annotated[
        str | None, typer.Option(help="A config.json: random weights of its shape.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option("-p", help="Tokens to read (4096).")] = None,
    generate: Annotated[list[str] | None, typer.Option("-n", help="Tokens to write (64).")] = None,
    depth: Annotated[
        list[str] | None, typer.Option("-d", help="Tokens read before writing (4096).")
    ] = None,
    repeat: Annotated[int, typer.Option("-r", min=1, help="Repetitions.")] = 3,
    method: Annotated[
        list[str] | None, typer.Option(help="Methods to compare (full, adakv); repeatable.")
    ] = None,
    budget: Annotated[str | None, typer.Option("--budget", help="What is kept.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random tokens.")] = 0,
    warmup: Annotated[bool, typer.Option(help="One run that is not counted.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, bf16, f16, f32.")] = "auto",
    threads: Threads = None,
    output: Annotated[str, typer.Option("-o", help="md or json.")] = "md",
) -> int:
    """Speed and memory of this machine, by method."""
    from kvchat.app import bench as benchmark

    settings = benchmark.Settings(
        model=model,
        dummy=dummy,
        prompts=benchmark.counts(prompt, [4096]),
        generates=benchmark.counts(generate, [64]),
        depths=benchmark.counts(depth, [4096], least=0),
        repeat=repeat,
        methods=method or ["full", "adakv"],
        budget=budget,
        seed=seed,
        warmup=warmup,
        device=device,
        dtype=dtype,
        threads=threads,
        output=output,
    )
    return benchmark.run(settings)


@app.command("eval")
def evaluate(
    model: Annotated[str | None, typer.Option("-m", "--model", help="Folder or name.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Task (world); repeatable.")] = None,
    length: Annotated[list[str] | None, typer.Option(help="Document tokens (4096).")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Methods (streamingllm, snapkv, adakv); repeatable.")
    ] = None,
    budget: Annotated[list[str] | None, typer.Option(help="Budgets (25%); repeatable.")] = None,
    view: Annotated[
        list[str] | None, typer.Option(help="unseen, seen: the question at compression (both).")
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="Per task and length.")] = 200,
    per_document: Annotated[int, typer.Option(min=1, help="Questions per document.")] = 25,
    seed: Annotated[int, typer.Option(help="Of documents and questions.")] = 1,
    out: Annotated[str, typer.Option(help="Folder of the results; goes on from there.")] = "eval",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, bf16, f16, f32.")] = "auto",
    threads: Threads = None,
) -> int:
    """Quality at a budget: right answers and KL to the full cache, by method."""
    from kvchat.app.bench import counts
    from kvchat.app.eval import run as evaluation

    settings = evaluation.Settings(
        model=model,
        tasks=task or ["world"],
        lengths=counts(length, [4096]),
        methods=method or ["streamingllm", "snapkv", "adakv"],
        budgets=budget or ["25%"],
        views=view or ["unseen", "seen"],
        questions=questions,
        per_document=per_document,
        seed=seed,
        out=out,
        device=device,
        dtype=dtype,
        threads=threads,
    )
    return evaluation.run(settings)


@app.command()
def demo(
    threads: Threads = None,
) -> int:
    """Read the sample with the bundled model, compress it, answer and mark its questions."""
    from kvchat.app import demo as demonstration

    return demonstration.run(threads)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with its options.")] = None,
) -> int:
    """The compression methods, or one of them with its options."""
    from kvchat.app import methods as listing

    for line in listing.table() if name is None else listing.details(name):
        print(line)
    return 0


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""

    def invoke() -> int | None:
        # not command.main(): it turns a closed pipe into exit code 1
        with typer.main.get_command(app).make_context("kvchat", _with_command(arguments)) as made:
            return made.command.invoke(made)

    verbose = "-v" in arguments or "--verbose" in arguments
    return process.run(invoke, verbose, as_json="--json" in arguments)


def _chat(options: Options) -> int:
    from kvchat.app.screen import Screen

    screen = Screen(options.quiet, options.plain, options.verbose)
    if options.prompts:
        from kvchat.app import oneshot

        return oneshot.run(options, screen)
    if not (sys.stdin.isatty() or sys.stdout.isatty()):
        raise KvchatError(
            "usage", "a chat needs a terminal; without one give a prompt", '-p "QUESTION"'
        )
    from kvchat.app import repl

    return repl.run(options, screen)


def _with_command(arguments: list[str]) -> list[str]:
    """`kvchat book.txt` and `kvchat --file book.txt` both mean `kvchat chat …`."""
    names = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    if arguments and arguments[0] in {*names, "--help", "-h", "--version"}:
        return arguments
    return ["chat", *arguments]
