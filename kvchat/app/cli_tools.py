"""The commands beside the chat: bench, eval, plan, models, sessions, config, doctor, completion."""

from typing import Annotated

import typer

from kvchat.app import flags
from kvchat.app.cli_cache import cache

models = typer.Typer(help="Models at hand; `pull` downloads one.", invoke_without_command=True)
sessions = typer.Typer(help="Saved chats.", no_args_is_help=True)
config = typer.Typer(help="The config file.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Register everything here."""
    app.command()(bench)
    app.command("eval")(evaluate)
    app.command()(plan)
    app.command()(doctor)
    app.command()(completion)
    app.add_typer(models, name="models")
    app.add_typer(sessions, name="sessions")
    app.add_typer(cache, name="cache")
    app.add_typer(config, name="config")


def bench(
    model: flags.Model = None,
    dummy: flags.Dummy = None,
    prompt: Annotated[list[str] | None, typer.Option("-p", help="Tokens to read (4096).")] = None,
    generate: Annotated[list[str] | None, typer.Option("-n", help="Tokens to write (64).")] = None,
    depth: Annotated[
        list[str] | None, typer.Option("-d", help="Tokens read before writing (4096).")
    ] = None,
    repeat: Annotated[int, typer.Option("-r", min=1, help="Repetitions.")] = 3,
    method: flags.Methods = None,
    budget: flags.Budget = None,
    seed: Annotated[int, typer.Option(help="Of the random tokens.")] = 0,
    warmup: Annotated[bool, typer.Option(help="One run that is not counted.")] = True,
    delay: Annotated[
        float, typer.Option(min=0, help="Seconds of rest before each test (0): a cool machine.")
    ] = 0.0,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    weights: flags.Weights = None,
    attention: flags.Attention = None,
    threads: flags.Threads = None,
    output: Annotated[str, typer.Option("-o", help="md or json.")] = "md",
) -> int:
    """Speed and memory of this machine, by method (full and adakv)."""
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
        delay=delay,
        device=device or "auto",
        dtype=dtype or "auto",
        weights=weights or "auto",
        attention=attention or "auto",
        threads=threads,
        output=output,
    )
    return benchmark.run(settings)


def evaluate(
    model: flags.Model = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="world, needle, multi-key, multi-value, multi-query, key-value, passkey, "
            "variable-tracking, common-words, frequent-words (world); repeatable."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="KIND:FILE, a benchmark's file on disk; kinds: ruler, longbench, leval, niah. "
            "Repeatable."
        ),
    ] = None,
    length: Annotated[list[str] | None, typer.Option(help="Document tokens (4096).")] = None,
    depth: Annotated[
        list[str] | None,
        typer.Option(help="How deep needles and pass keys are, in per cent (0,10,…,100)."),
    ] = None,
    method: flags.Methods = None,
    budget: Annotated[list[str] | None, typer.Option(help="Budgets (25%); repeatable.")] = None,
    view: Annotated[
        list[str] | None, typer.Option(help="unseen, seen: the question at compression (both).")
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="Per task and length.")] = 200,
    per_document: Annotated[int, typer.Option(min=1, help="Questions per document.")] = 25,
    overflow: Annotated[
        str,
        typer.Option(help="What is cut from too long documents: error, head, tail, middle."),
    ] = "error",
    seed: Annotated[int, typer.Option(help="Of documents and questions.")] = 1,
    out: Annotated[str, typer.Option(help="Folder of the results; goes on from there.")] = "eval",
    plot: Annotated[
        str | None,
        typer.Option(help="Folder for pictures: depth × length, score over budget (PNG)."),
    ] = None,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    weights: flags.Weights = None,
    threads: flags.Threads = None,
    output: Annotated[str, typer.Option("-o", help="table, md or json.")] = "table",
) -> int:
    """Quality at a budget: scores of answers and KL to the full cache, by method.

    The demo model answers the task `world` only; the others are for chat models that follow
    instructions. A needle task asks one question per document: --questions 11 is one per depth.
    """
    from kvchat.app.bench import counts
    from kvchat.app.eval import run as evaluation

    settings = evaluation.Settings(
        model=model,
        tasks=task or ([] if data else ["world"]),
        data=data or [],
        lengths=counts(length, [4096]),
        depths=counts(depth, list(evaluation.DEPTHS), least=0),
        methods=method or ["streamingllm", "snapkv", "adakv"],
        budgets=budget or ["25%"],
        views=view or ["unseen", "seen"],
        questions=questions,
        per_document=per_document,
        overflow=overflow,
        seed=seed,
        out=out,
        plot=plot,
        device=device or "auto",
        dtype=dtype or "auto",
        weights=weights or "auto",
        threads=threads,
        output=output,
    )
    return evaluation.run(settings)


def plan(
    model: flags.Model = None,
    dummy: Annotated[str | None, typer.Option(help="A config.json without weights.")] = None,
    tokens: Annotated[
        list[str] | None, typer.Option(help="Document tokens: 32k,128k (the window's parts).")
    ] = None,
    fit: Annotated[
        str | None, typer.Option(help="Memory to fit into: 24GiB. The longest document then.")
    ] = None,
    method: flags.Methods = None,
    budget: flags.Budget = None,
    ctx_size: flags.Window = None,
    prefill_chunk: flags.Chunk = None,
    dtype: flags.Dtype = None,
    weights: flags.Weights = None,
    device: Annotated[str, typer.Option(help="cpu or cuda: what to plan for.")] = "cpu",
    json_: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> int:
    """What reading needs, by arithmetic from config.json alone: nothing is loaded."""
    from kvchat.app import planning

    return planning.run(
        planning.Wanted(
            model,
            dummy,
            tokens or [],
            fit,
            method or ["full", "adakv"],
            budget,
            flags.tokens("--ctx-size", ctx_size),
            flags.tokens("--prefill-chunk", prefill_chunk),
            dtype or "auto",
            weights or "auto",
            device,
            json_,
        )
    )


def doctor() -> int:
    """What is here and what is missing: versions, device, memory, terminal, config."""
    from kvchat.app import doctor as examination

    return examination.run()


def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh, fish or powershell.")],
) -> int:
    """The completion script of a shell, for its startup file."""
    from kvchat.app import shells

    return shells.run(shell)


@models.callback()
def models_list(context: typer.Context) -> int:
    """Models at hand: bundled, under models/, aliases, in the Hugging Face cache."""
    if context.invoked_subcommand:
        return 0
    from kvchat.app import shelf

    return shelf.show()


@models.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(help="org/repo, or an alias with `repo`.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    yes: flags.Yes = False,
) -> int:
    """Download a model from Hugging Face; goes on where an earlier download ended."""
    from kvchat.app import pull

    return pull.run(name, revision, yes)


@sessions.command("list")
def sessions_list() -> int:
    """Saved chats, the last used first."""
    from kvchat.app import saved_list

    return saved_list.show()


@sessions.command("rm")
def sessions_rm(
    names: Annotated[list[str], typer.Argument(help="Names or beginnings of ids.")],
) -> int:
    """Delete saved chats."""
    from kvchat.app import saved_list

    return saved_list.remove(names)


@config.command("show")
def config_show(
    origin: Annotated[bool, typer.Option("--origin", help="Where each value is from.")] = False,
) -> int:
    """Effective settings without any flags."""
    from kvchat.app import config_view

    return config_view.show(origin)


@config.command("path")
def config_path() -> int:
    """Where the config file is."""
    from kvchat.app.config import config_path as where

    print(where())
    return 0
