"""The command line: parses and calls. Heavy imports happen inside commands, so that `--help` and
`--version` answer at once."""

import os
import re
import sys
from typing import Annotated, Any

import typer

from kvchat import __version__, process
from kvchat.cli import flags, shells
from kvchat.cli import tools as cli_tools
from kvchat.engine.methods import BY_QUESTION, DEFAULT
from kvchat.errors import KvchatError
from kvchat.settings.options import Options
from kvchat.terminal import log

VERBOSE = re.compile(r"-[qvyC]*v[qvyC]*|--verbose")

app = typer.Typer(
    help="Chat about long documents with a compressed KV cache. `kvchat FILE` is `kvchat chat`.",
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cli_tools.add_to(app)


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
    model: flags.Model = None,
    revision: flags.Revision = None,
    tokenizer: flags.TokenizerFolder = None,
    chat_template: flags.Template = None,
    no_chat_template: flags.NoTemplate = False,
    offline: flags.Offline = False,
    file: Annotated[
        list[str] | None, typer.Option("-f", "--file", help="Document to read; - is stdin.")
    ] = None,
    encoding: flags.Encoding = None,
    pages: Annotated[str | None, typer.Option(help="Pages or chapters to read: 1-40,60.")] = None,
    loader: Annotated[str | None, typer.Option(help="auto, text, html, epub, docx, pdf.")] = None,
    clean: flags.Clean = False,
    overflow: Annotated[
        str | None,
        typer.Option(help="Too long: error, or the part to cut: head, tail, middle."),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("-p", "--prompt", help="Answer on stdout and exit.")
    ] = None,
    prompt_file: Annotated[
        str | None, typer.Option(help="Prompts, one per line; - is stdin.")
    ] = None,
    system: Annotated[str | None, typer.Option("-s", "--system", help="System text.")] = None,
    system_file: Annotated[str | None, typer.Option(help="System text from a file.")] = None,
    method: flags.Method = None,
    method_opt: Annotated[
        list[str] | None, typer.Option("-O", "--method-opt", help="key=value of the method.")
    ] = None,
    budget: flags.Budget = None,
    kv_bits: flags.Bits = None,
    tail_budget: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows per KV head for the conversation: older turns are folded (off)."
        ),
    ] = None,
    auto_loss: flags.AutoLoss = None,
    select: flags.Select = None,
    keep_full: flags.KeepFull = None,
    kv_cache: flags.KvCache = None,
    kv_cache_dir: flags.KvCacheDir = None,
    ctx_size: flags.Window = None,
    prefill_chunk: flags.Chunk = None,
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
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    weights: flags.Weights = None,
    attention: flags.Attention = None,
    threads: flags.Threads = None,
    mem_limit: flags.MemoryLimit = None,
    last: Annotated[
        bool, typer.Option("-C", "--continue", help="Go on with the last saved chat.")
    ] = False,
    resume: Annotated[
        str | None, typer.Option("-r", "--resume", help="Go on with a saved chat.")
    ] = None,
    session: Annotated[
        str | None, typer.Option(help="Go on with the chat of that name, or begin it.")
    ] = None,
    save: Annotated[bool | None, typer.Option("--save/--no-save", help="Save the chat.")] = None,
    history: Annotated[
        bool | None, typer.Option("--history/--no-history", help="Remember typed lines.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object per answer.")] = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="JSON events, a line each.")] = False,
    stats: Annotated[
        str | None, typer.Option(help="Numbers after an answer: off, short, long.")
    ] = None,
    markdown: Annotated[
        bool | None, typer.Option("--markdown/--no-markdown", help="Draw answers as Markdown.")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Answers and errors only.")] = False,
    stream: flags.Stream = True,
    log_file: flags.LogFile = None,
    plain: Annotated[bool | None, typer.Option("--plain", help="No live lines.")] = None,
    color: Annotated[str | None, typer.Option(help="auto, always, never.")] = None,
    verbose: Annotated[
        int, typer.Option("-v", "--verbose", count=True, help="Progress, tracebacks.")
    ] = 0,
    yes: flags.Yes = False,
) -> int:
    """Read documents once, then answer questions about them.

    After an answer: tok/s is (n - 1) / (last - first token), "first" is the time from Enter to the
    first token.
    """
    from kvchat.settings import choices as inputs
    from kvchat.settings import config

    if log_file:
        log.open_log(log_file)
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    given: dict[str, Any] = {
        "model": model,
        "tokenizer": tokenizer,
        "chat_template": "" if no_chat_template else chat_template,
        "mem_limit": mem_limit,
        "encoding": encoding,
        "pages": pages,
        "loader": loader,
        "overflow": overflow,
        "system": inputs.system_text(system, system_file),
        "method": method,
        "budget": budget,
        "auto_loss": flags.share("--auto-loss", auto_loss) if auto_loss is not None else None,
        "select": select,
        "keep_full": keep_full,
        "kv_cache": kv_cache,
        "kv_cache_dir": kv_cache_dir,
        "ctx_size": flags.tokens("--ctx-size", ctx_size),
        "prefill_chunk": flags.tokens("--prefill-chunk", prefill_chunk),
        "max_tokens": max_tokens,
        "temperature": temp,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "seed": seed,
        "stop": stop or None,
        "device": device,
        "dtype": dtype,
        "weights": weights,
        "attention": attention,
        "threads": threads,
        "save": save,
        "history": history,
        "stats": stats,
        "markdown": markdown,
        "plain": plain,
        "color": color,
    }
    settings = config.load()
    values, origins = config.settle(given, settings)
    by_queries = values.get("select") in ("question", "instruction")
    usual = BY_QUESTION if by_queries else DEFAULT
    chosen = values.setdefault("method", usual)
    if limit := values.get("mem_limit"):
        values["mem_limit"] = flags.byte_count("--mem-limit", limit)
    inputs.require_choices(values)
    options = Options(
        **values,
        files=[*(documents or []), *(file or [])],
        prompts=[*(prompt or []), *inputs.prompts_of(prompt_file)],
        method_options=[
            *inputs.method_defaults(chosen, settings),
            *([f"bits={kv_bits}"] if kv_bits else []),
            *(method_opt or []),
        ],
        tail_budget=tail_budget or 0,
        revision=revision,
        offline=offline,
        clean=clean,
        loaders=settings.loaders,
        stream=stream,
        last=last,
        resume=resume,
        session=session,
        json=json_,
        jsonl=jsonl,
        quiet=quiet,
        verbose=verbose > 0,
        yes=yes,
        origins=origins,
    )
    return _chat(options)


@app.command()
def demo(
    weights: flags.Weights = None,
    threads: flags.Threads = None,
) -> int:
    """Read the sample with the bundled model, compress it, answer and mark its questions."""
    from kvchat.cli import demo as demonstration

    return demonstration.run(threads, weights or "auto")


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with its options.")] = None,
) -> int:
    """The compression methods, or one of them with its options."""
    from kvchat.cli import methods_view as listing

    for line in listing.table() if name is None else listing.details(name):
        print(line)
    return 0


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""

    def invoke() -> int | None:
        if shells.VARIABLE in os.environ:
            shells.complete(app)
        # not command.main(): it turns a closed pipe into exit code 1
        with typer.main.get_command(app).make_context("kvchat", _with_command(arguments)) as made:
            return made.command.invoke(made)

    verbose = any(VERBOSE.fullmatch(argument) for argument in arguments)
    as_json = bool({"--json", "--jsonl"} & set(arguments))
    return process.run(invoke, verbose, as_json)


def _chat(options: Options) -> int:
    from kvchat.terminal.screen import Screen

    screen = Screen(options.quiet, options.plain, options.verbose, options.color, options.notify)
    if options.prompts:
        from kvchat.cli import oneshot

        return oneshot.run(options, screen)
    if not (sys.stdin.isatty() or sys.stdout.isatty()):
        raise KvchatError(
            "usage",
            "a chat needs a terminal; without one give a prompt",
            '-p "QUESTION"',
            "--prompt-file -  (if the questions are piped in)",
        )
    from kvchat.repl import repl

    return repl.run(options, screen)


def _with_command(arguments: list[str]) -> list[str]:
    """`kvchat book.txt` and `kvchat --file book.txt` both mean `kvchat chat …`."""
    names = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    names |= {str(group.name) for group in app.registered_groups}
    if arguments and arguments[0] in {*names, "--help", "-h", "--version"}:
        return arguments
    return ["chat", *arguments]
