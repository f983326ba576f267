"""How the process begins and ends: streams, signals, exit codes."""

import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from threading import Timer

import typer

from kvchat.errors import KvchatError, is_out_of_memory
from kvchat.terminal import streams, tty
from kvchat.terminal.live import away
from kvchat.terminal.log import LOG
from kvchat.terminal.screen import Screen

CLOSED_PIPE, CTRL_C = 141, 130
MOMENT = 0.01  # seconds


def run(invoke: Callable[[], int | None], verbose: bool, as_json: bool) -> int:
    """Call `invoke` and turn whatever happens into an exit code; no traceback unless `verbose`."""
    prepare()
    try:
        return _run(invoke, verbose, as_json)
    except BrokenPipeError:  # whoever read our output is gone
        streams.silence(sys.stdout, sys.stderr)
        return CLOSED_PIPE
    finally:
        # all is saved and said: a press now ends what libraries do at their end, without a word
        signal.signal(signal.SIGINT, _leave_at_once)


def prepare() -> None:
    """Streams that never fail for lack of UTF-8 or of a terminal, and signals that end us."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows ?, not an error
    streams.guard()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    signal.signal(signal.SIGTSTP, _suspend)
    # While libraries are imported a KeyboardInterrupt can be swallowed or abort in C++; there is
    # nothing to save yet. `interruptible` brings the exception back.
    signal.signal(signal.SIGINT, _leave_at_once)


def show_cursor() -> None:
    """Give a terminal its cursor back: whatever was rendered may have hidden it."""
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\x1b[?25h")


def _leave_at_once(*_: object) -> None:
    show_cursor()
    tty.restore()
    os._exit(CTRL_C)


def _suspend(*_: object) -> None:
    """Ctrl-Z: stop as by default, with a cursor, and be ready for the next time.

    In the midst of a write, which another one would break, it is put off for a moment.
    """
    try:
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None:  # closed by whoever started us
                stream.buffer.write(b"")
    except RuntimeError:
        Timer(MOMENT, os.kill, (os.getpid(), signal.SIGTSTP)).start()
        return
    with away():
        show_cursor()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, _suspend)


def interruptible() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt: imports are done, work begins.

    Whoever else listens goes on: the chat, or a program that has kvchat as a library.
    """
    if signal.getsignal(signal.SIGINT) is _leave_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def failed(error: KvchatError, as_json: bool) -> int:
    """Report an error, as JSON on stdout or as text on stderr. Returns its exit code."""
    try:
        if as_json:
            report = {"code": error.code, "message": error.message, "tries": list(error.tries)}
            print(json.dumps({"error": report | error.details}))
        else:
            Screen().error(error)
        sys.stdout.flush()
    except KvchatError as problem:  # of standard output, which takes nothing any more
        streams.silence(sys.stdout)
        for each in dict.fromkeys((error.message, problem.message) if as_json else ()):
            Screen().error(KvchatError(error.code, each))
    return error.exit_code


def unexpected(error: Exception) -> KvchatError:
    """An error that is our fault, or memory that ran out in spite of the plan."""
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    LOG.error(text, exc_info=error)
    if is_out_of_memory(error):
        return KvchatError("memory", text, "--budget 10%", "a smaller --prefill-chunk")
    return KvchatError("unexpected", text, "the same with -v shows where; please report it")


def _run(invoke: Callable[[], int | None], verbose: bool, as_json: bool) -> int:
    try:
        try:
            code = invoke() or 0
        except typer.Exit as stop:
            code = stop.exit_code
        sys.stdout.flush()
        return code
    except SystemExit as stop:
        if stop.code == 1:  # rich says so when a pipe is closed; nobody else exits with 1
            raise BrokenPipeError from None
        raise
    except typer.TyperException as error:  # usage errors of the command line's own
        place = getattr(getattr(error, "ctx", None), "command_path", "") or "kvchat"
        return failed(KvchatError("usage", error.format_message(), f"{place} --help"), as_json)
    except (KeyboardInterrupt, typer.Abort):
        return CTRL_C
    except BrokenPipeError:
        raise
    except Exception as error:
        if verbose:
            traceback.print_exc()
        known = error if isinstance(error, KvchatError) else unexpected(error)
        return failed(known, as_json)
