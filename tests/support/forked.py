"""The program in a process of its own that begins where this one is: everything is imported by now.

A start takes milliseconds in place of seconds. What is decided before the first import (locale,
streams that are closed, places of the Hugging Face cache) needs `program.kvchat` instead.
"""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import traceback
from collections.abc import Callable
from functools import cache
from typing import NoReturn

import pexpect
import ptyprocess
import torch
from prompt_toolkit.application import create_app_session
from prompt_toolkit.output import create_output

from kvchat.cli import main as cli
from kvchat.cli import oneshot
from kvchat.engine.decode.loop import compile_beside
from kvchat.repl import repl
from kvchat.terminal import interrupt
from tests.support import scripted_program

assert oneshot and repl, "imported once"
DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL,
            signal.SIGHUP: signal.SIG_DFL, signal.SIGTSTP: signal.SIG_DFL}  # fmt: skip


@cache
def compiled() -> None:
    """Have what tiny models decode with in this process, or every child would read it by itself."""
    compile_beside(torch.float32).join()


def become(arguments: list[str], environment: dict[str, str], prepare: Callable) -> NoReturn:
    """In a child whose first three files are what they should be: run the command line and end."""
    code = 1
    torch.set_num_threads(1)  # a test may have set more, and those of the parent are not here
    interrupt.AGAIN_SECONDS = 60.0  # on a busy machine two presses are not soon after each other
    try:
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in DEFAULTS.items():
            signal.signal(number, handler)
        sys.argv = ["kvchat", *arguments]
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1)
        prepare()
        # this process may have had a prompt of its own: that one's terminal is not ours
        with create_app_session(output=create_output(sys.stdout)):
            code = cli.run(arguments)
        sys.stdout.flush()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def kvchat(
    *arguments: str,
    stdin: bytes | None = None,
    script: dict | None = None,
    full: tuple[int, ...] = (),
    **environment: str,
):
    """Like `program.kvchat`, sooner; with a `script` the answers are what it says.

    Of standard output (1) and error (2) those in `full` are a device that has no space.
    """

    def prepare() -> None:
        if script is not None:
            scripted_program.play(script)

    compiled()
    given, out, err = os.pipe(), os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        for file in (given[1], out[0], err[0]):  # or standard input would never end
            os.close(file)
        source = given[0] if stdin is not None else os.open(os.devnull, os.O_RDONLY)
        for target, file in enumerate((source, out[1], err[1])):
            os.dup2(os.open("/dev/full", os.O_WRONLY) if target in full else file, target)
        become(list(arguments), dict(os.environ) | environment, prepare)
    for file in (given[0], out[1], err[1]):
        os.close(file)
    found: dict[int, bytes] = {}

    def read(file: int) -> None:
        with open(file, "rb") as stream:
            found[file] = stream.read()

    readers = [threading.Thread(target=read, args=(pipe[0],)) for pipe in (out, err)]
    for reader in readers:
        reader.start()
    with open(given[1], "wb") as stream:
        stream.write(stdin or b"")
    for reader in readers:
        reader.join()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return subprocess.CompletedProcess(arguments, code, found[out[0]], found[err[0]])


def supervise(job: int) -> NoReturn:
    """Do what a shell does with a job in the foreground: when it stops say so, and let it go on
    after Enter; end when it ends."""
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    stopped = 0
    while True:
        _, status = os.waitpid(job, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            os._exit(os.waitstatus_to_exitcode(status) % 256)
        stopped += 1
        modes = termios.tcgetattr(0)
        os.tcsetpgrp(0, os.getpgrp())
        os.write(1, f"\r\njob {stopped} stopped\r\n".encode())
        os.read(0, 1)
        termios.tcsetattr(0, termios.TCSANOW, modes)
        os.tcsetpgrp(0, job)
        os.kill(-job, signal.SIGCONT)


class Child(pexpect.spawn):
    """A child on a pty of its own; `prepare` is called in it before the program begins.

    As a job it has a process group beside that of whoever started it, and can be stopped.
    """

    def __init__(
        self,
        arguments: list[str],
        prepare: Callable = lambda: None,
        is_job: bool = False,
        **options,
    ):
        self._arguments, self._prepare, self._is_job = arguments, prepare, is_job
        super().__init__(sys.executable, **options)

    def _spawnpty(self, args, env=None, dimensions=(24, 80), **_):
        compiled()
        process, terminal = pty.fork()
        if not process:
            size = struct.pack("HHHH", *dimensions, 0, 0)
            fcntl.ioctl(0, termios.TIOCSWINSZ, size)
            if self._is_job:
                job = os.fork()
                os.setpgid(job, job)  # by both of them: whoever comes first
                if job:
                    supervise(job)
                signal.signal(signal.SIGTTOU, signal.SIG_IGN)
                os.tcsetpgrp(0, os.getpid())
                signal.signal(signal.SIGTTOU, signal.SIG_DFL)
            become(self._arguments, env, self._prepare)
        return ptyprocess.PtyProcess(process, terminal)
