"""`-p --each`: the same questions about every document by itself, over as many processes as wanted,
each with all of the model. What they print comes in the order of the documents."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO

from kvchat import process
from kvchat.chat.attach import turn_to
from kvchat.chat.chat import Chat
from kvchat.chat.chatlog_writer import ChatLogWriter
from kvchat.chat.open import open_chat
from kvchat.chat.prepare import Prepared
from kvchat.cli.json_events import Reporter
from kvchat.cli.oneshot import answered
from kvchat.documents import Document
from kvchat.engine.devices import resolve_device
from kvchat.engine.peers import Peers
from kvchat.errors import KvchatError
from kvchat.machine import ranks
from kvchat.machine import resources as machine
from kvchat.settings.options import Options
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import clean

ITS_OWN = "input", "too_long", "memory"  # kinds of errors that another document need not have
LINE = "\n"
Said = tuple[int, str, str]  # an exit code, and what goes to standard output and standard error


def run(prepared: Prepared, screen: Screen) -> int:
    """Ask every prompt about every document. Returns the exit code: of several errors the first.

    A document that cannot be asked about is told, and the others are.
    """
    options = prepared.options
    # what others print is seen here: control characters are for files alone
    options = replace(options, raw=options.raw and not sys.stdout.isatty())
    prepared = replace(prepared, options=options)
    with ranks.team(options.devices, beside, prepared) as peers:
        codes = [*asked(prepared, screen, peers)]
    return next(filter(None, codes), 0)


def beside(prepared: Prepared, peers: Peers) -> None:
    """The same in a process beside the first one, which prints for it."""
    process.interruptible()
    options = prepared.options
    screen = Screen(options.quiet, True, options.verbose, options.color)
    screen.steps = options.verbose and not options.quiet
    if options.jsonl:
        screen.observer = Reporter().see
    for _ in asked(prepared, screen, peers):
        pass


def asked(prepared: Prepared, screen: Screen, peers: Peers) -> Iterator[int]:
    """Exit codes of all documents, of which each of the peers asks about its share."""
    options = among(prepared.options, peers)
    with caught(peers.rank > 0, peers.rank > 0):
        empty = replace(prepared, options=options, files=[])
        chat = open_chat(empty, screen)
    known = {notice for file in prepared.files for notice in file.notices}
    common = [each for each in screen.warnings if each not in known]
    titled = len(prepared.files) > 1 and not (options.quiet or options.machine_readable)
    with chat.cache:
        for first in range(0, len(prepared.files), peers.count):
            said: Said = 0, "", ""
            mine = first + peers.rank
            for document in prepared.files[mine : mine + 1]:
                screen.warnings[:] = [*common, *document.notices]
                with caught(peers.count > 1, peers.rank > 0) as (out, err):
                    if titled:
                        print(f"{bool(mine) * LINE}==> {clean(document.name)} <==", flush=True)
                    code = about(chat, screen, document)
                said = code, out.getvalue(), err.getvalue()
            for code, text, notices in peers.exchanged(said):
                if peers.rank == 0:
                    sys.stderr.write(notices)
                    sys.stdout.write(text)
                    sys.stdout.flush()
                yield code


def about(chat: Chat, screen: Screen, document: Document) -> int:
    """Ask every prompt about one document. Returns the exit code."""
    try:
        turn_to(chat, document)
        return answered(chat, ChatLogWriter(screen, None), screen)
    except KvchatError as error:
        if error.code not in ITS_OWN:
            raise
        error.details["document"] = document.name
        return process.failed(error, chat.options.machine_readable)


def among(options: Options, peers: Peers) -> Options:
    """The options of one of several peers: its card, or its share of the memory of a machine."""
    device = resolve_device(options.device, peers)
    if device.type == "cpu" and peers.count > 1:
        free = machine.free(device, options.mem_limit) // peers.count
        options = options.changed("mem_limit", free, "--devices")
    return options.changed("device", str(device), options.origin("device"))


@contextmanager
def caught(output: bool, notices: bool) -> Iterator[tuple[StringIO, StringIO]]:
    """What is printed in here, as far as it is caught: output and notices."""
    out, err = StringIO(), StringIO()
    with (
        redirect_stdout(out if output else sys.stdout),
        redirect_stderr(err if notices else sys.stderr),
    ):
        yield out, err
