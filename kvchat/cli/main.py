"""The command line: parses and calls. What is heavy is imported inside commands, so that `--help`
answers at once and a chat says its first line before torch is there."""

import os
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from typing import Annotated, Any

import typer

from kvchat import __version__, process
from kvchat.chat.paths import require_no_question
from kvchat.chat.prepare import prepare
from kvchat.cli import flags, shells
from kvchat.cli.bench import bench
from kvchat.cli.calibrate import calibrate
from kvchat.cli.chats import sessions
from kvchat.cli.config_view import config_file
from kvchat.cli.demo import demo
from kvchat.cli.doctor import doctor
from kvchat.cli.eval import evaluate
from kvchat.cli.json_events import Reporter
from kvchat.cli.methods_view import methods
from kvchat.cli.models import models
from kvchat.cli.plan import plan
from kvchat.cli.prompt_cache import cache
from kvchat.cli.serve import serve
from kvchat.documents import STDIN, capped
from kvchat.errors import KvchatError
from kvchat.machine import ranks
from kvchat.settings import config, text_files
from kvchat.settings.options import Options
from kvchat.terminal import log
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import clean
from kvchat.terminal.tty import unseen

ABOUT = "Chat about long documents with a compressed KV cache."
VERBOSE = re.compile(r"-[qvyC]*v[qvyC]*|--verbose")
# Flags that may stand before the name of a command.
ANYWHERE = re.compile(r"-[qv]+|--verbose|--quiet")

app = typer.Typer(
    help=ABOUT,
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
@flags.takes(Options, common="Common options of a chat")
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    **given: Any,
) -> None:
    """Chat about long documents with a compressed KV cache.

    `kvchat FILE` is `kvchat chat FILE`, and so are its options; `kvchat chat --help` has them all.
    """
    if version:
        print(f"kvchat {__version__}")
        raise typer.Exit


@app.command()
@flags.takes(Options)
def chat(
    documents: Annotated[list[str] | None, typer.Argument(metavar="[FILE]...")] = None,
    **given: Any,
) -> int:
    """Read documents once, then answer questions about them.

    After an answer: tok/s is (n - 1) / (last - first token), "first" is the time from Enter to the
    first token.
    """
    logged = log.open_log(given["log_file"]) if given["log_file"] else None
    if given["offline"]:
        os.environ["HF_HUB_OFFLINE"] = "1"
    given["files"] = [*(documents or []), *(given["files"] or [])] or None
    options = config.settle(given, config.load())
    options = replace(
        options,
        system=text_files.system_prompt(options),
        prompts=[*options.prompts, *text_files.prompts_of(options.prompt_file)],
    )
    talks = sys.stdin.isatty() or sys.stdout.isatty()
    if not options.prompts and not talks and options.files and STDIN not in options.files:
        for file in options.files:
            require_no_question(file)
        options = replace(options, prompts=piped_question())
    if not options.prompts and (options.json_schema or options.grammar):
        raise KvchatError(
            "usage", "--json-schema and --grammar are for answers to -p", '-p "QUESTION"'
        )
    if options.each and (not options.prompts or options.last or options.resume or options.session):
        raise KvchatError(
            "usage", "--each is for answers to -p, and keeps no chat", '-p "QUESTION"'
        )
    if not all(prompt.strip() for prompt in options.prompts):
        raise KvchatError("usage", "-p has an empty question", '-p "QUESTION"')
    if not options.prompts and not talks:
        raise KvchatError(
            "usage",
            "a chat needs a terminal; without one give a prompt",
            '-p "QUESTION"',
            "--prompt-file -  (if the questions are piped in)",
        )
    screen = Screen(options.quiet, options.plain, options.verbose, options.color, options.notify)
    if logged is not None:
        logged.tell = screen.warn
    if options.jsonl:
        screen.observer = Reporter().see
    with nullcontext() if options.prompts else unseen():
        prepared = prepare(options, screen)
        with screen.busy("loading torch"):
            asks = "kvchat.cli.each" if options.each else "kvchat.cli.oneshot"
            face = import_module(asks if options.prompts else "kvchat.repl.repl")
        code: int = face.run(prepared, screen)
        return code


def piped_question() -> list[str]:
    """What is piped in where documents are named and nobody sits there: the question."""
    text = capped("stdin", sys.stdin.buffer).decode("utf-8", "replace").strip()
    return [text] if text else []


COMMANDS: dict[str, Callable[..., int | None]] = {
    "plan": plan,
    "methods": methods,
    "bench": bench,
    "eval": evaluate,
    "calibrate": calibrate,
    "serve": serve,
    "demo": demo,
    "doctor": doctor,
    "completion": shells.completion,
}
ALONE = ("bench", "calibrate", "serve", "demo")  # commands for one device
GROUPS = {"models": models, "sessions": sessions, "cache": cache, "config": config_file}
for name, command in COMMANDS.items():
    app.command(name)(command)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""

    def invoke() -> int | None:
        if shells.VARIABLE in os.environ:
            shells.complete(app)
        if {"-h", "--help"} & set(arguments):
            flags.readable_help()
        # not command.main(): it turns a closed pipe into exit code 1
        with typer.main.get_command(app).make_context("kvchat", with_command(arguments)) as made:
            code: int | None = made.command.invoke(made)
            return code

    verbose = any(VERBOSE.fullmatch(argument) for argument in arguments)
    as_json = bool({"--json", "--jsonl"} & set(arguments))
    return process.run(invoke, verbose, as_json)


def with_command(arguments: list[str]) -> list[str]:
    """`kvchat book.txt` and `kvchat --file book.txt` both mean `kvchat chat …`.

    A command that only knows its own options has those before its name left out: -v and -q speak
    to the program.
    """
    first = next(
        (i for i, text in enumerate(arguments) if not ANYWHERE.fullmatch(text)), len(arguments)
    )
    if (name := " ".join(arguments[first : first + 1])) in ALONE:
        ranks.refuse(None, f"kvchat {name}")
    if arguments[first : first + 1] and arguments[first] in COMMANDS | GROUPS:
        return arguments[first:]
    if arguments and arguments[0] in {"chat", "--help", "-h", "--version"}:
        return arguments
    if len(arguments) == first + 1:  # `kvchat modles`: a word alone that is no file
        require_no_command(arguments[first])
    if arguments[first : first + 1] == ["chat"]:
        arguments = [*arguments[:first], *arguments[first + 1 :]]
    return ["chat", *arguments]


def require_no_command(word: str) -> None:
    """Raise KvchatError("usage") for a mistyped command; a file of that name is a document."""
    close = get_close_matches(word, [*COMMANDS, *GROUPS], n=2, cutoff=0.75)
    if close and word.isalpha() and not os.path.lexists(word):
        raise KvchatError(
            "usage",
            f"{clean(word)!r} is neither a command nor a file",
            *(f"kvchat {name}" for name in close),
        )
