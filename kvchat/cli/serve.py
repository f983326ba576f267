"""The command line of `kvchat serve`."""

import os
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from kvchat.cli.flags import takes
from kvchat.errors import KvchatError
from kvchat.machine import ranks
from kvchat.serve.settings import CHAT, Settings
from kvchat.settings import config
from kvchat.settings.option import read_all
from kvchat.terminal import log
from kvchat.terminal.screen import Screen

NEEDED = ("starlette", "uvicorn", "python_multipart")


@takes(Settings)
def serve(
    documents: Annotated[list[str] | None, typer.Argument(metavar="[FILE]...")] = None,
    **given: Any,
) -> int:
    """Answer over HTTP as OpenAI's API does, about documents that are read once.

    Each document is a model of its own; questions about it are answered together. A page to ask
    from is at the address that is said; /v1/chat/completions is for programs.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise KvchatError(
            "usage", f"{', '.join(missing)} is not installed", "pip install 'kvchat[serve]'"
        )
    if given["log_file"]:
        log.open_log(given["log_file"])
    if given["offline"]:
        os.environ["HF_HUB_OFFLINE"] = "1"
    given["files"] = [*(documents or []), *(given["files"] or [])] or None
    settings = read_all(Settings, given)
    settings.require_safe()
    options = config.settle({name: given[name] for name in CHAT}, config.load())
    ranks.refuse(options.devices, "kvchat serve")
    if options.overflow not in ("error", "stream"):  # of the configuration: for chats
        options = options.changed("overflow", "error", "kvchat serve")
    screen = Screen(options.quiet, False, options.verbose)
    from kvchat.serve import run

    return run.run(settings, options, screen)
