"""The command line of `kvchat eval`."""

from typing import Annotated

import typer

from kvchat.cli import flags
from kvchat.cli.lists import counts, once, pieces, specs

Names = list[str] | None


def evaluate(
    model: flags.Model = None,
    task: Annotated[
        Names,
        typer.Option(
            help="world, needle, multi-key, multi-value, multi-query, key-value, passkey, "
            "variable-tracking, common-words, frequent-words (world); a list."
        ),
    ] = None,
    data: Annotated[
        Names,
        typer.Option(
            help="KIND:FILE, a benchmark's file on disk; kinds: ruler, longbench, leval, niah. "
            "Repeatable."
        ),
    ] = None,
    length: Annotated[
        Names, typer.Option(help="Document tokens (4096): 512,4k or 1k-8k*2.")
    ] = None,
    depth: Annotated[
        Names,
        typer.Option(help="How deep needles and pass keys are, in per cent (0-100+10)."),
    ] = None,
    method: flags.Methods = None,
    budget: Annotated[Names, typer.Option(help="Budgets (25%): 50%,10%.")] = None,
    view: Annotated[
        Names, typer.Option(help="unseen, seen: the question at compression (both).")
    ] = None,
    questions: Annotated[
        int, typer.Option(min=1, help="At least so many per task and length, in whole documents.")
    ] = 200,
    per_document: Annotated[int, typer.Option(min=1, help="Questions per document.")] = 25,
    overflow: Annotated[
        str, typer.Option(help="What is cut from too long documents: error, head, tail, middle.")
    ] = "error",
    seed: Annotated[int, typer.Option(help="Of documents and questions.")] = 1,
    out: Annotated[
        str | None,
        typer.Option(
            help="Folder of the results, to go on from (one per experiment below the user's state)."
        ),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(help="Folder for pictures of the score over the budget (PNG)."),
    ] = None,
    device: flags.Device = None,
    dtype: flags.Dtype = None,
    weights: flags.Weights = None,
    threads: flags.Threads = None,
    output: Annotated[str, typer.Option("-o", help="table (Markdown, also md), json.")] = "table",
) -> int:
    """Quality at a budget: scores of answers and KL to the full cache, by method.

    The demo model answers the task `world` only; the others are for chat models that follow
    instructions. A needle task asks one question per document: --questions 11 is one per depth.
    """
    from kvchat.eval import run as evaluation

    settings = evaluation.Settings(
        model=model,
        tasks=once(pieces(task or ([] if data else ["world"]))),
        data=once(data or []),
        lengths=once(counts("--length", length, [4096])),
        depths=once(counts("--depth", depth, list(evaluation.DEPTHS), least=0)),
        methods=specs(method, ["streamingllm", "snapkv", "adakv"]),
        budgets=pieces(budget or ["25%"]),
        views=once(pieces(view or ["unseen", "seen"])),
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
