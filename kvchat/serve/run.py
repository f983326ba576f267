"""`kvchat serve`: a model is loaded, documents are read, and whoever asks is answered."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from platformdirs import user_state_path
from starlette.types import ASGIApp

from kvchat.chat.chat import Chat
from kvchat.chat.open import open_chat
from kvchat.chat.prepare import prepare
from kvchat.documents import Document
from kvchat.errors import KvchatError
from kvchat.hub.tokenizer import load_tokenizer
from kvchat.serve.answers import Answers
from kvchat.serve.app import Server
from kvchat.serve.document import Served
from kvchat.serve.files import Files
from kvchat.serve.guard import LOCAL, Guard
from kvchat.serve.library import Library
from kvchat.serve.metrics import Metrics
from kvchat.serve.patience import Patient
from kvchat.serve.scheduler import Scheduler
from kvchat.serve.settings import Settings
from kvchat.settings.options import Options
from kvchat.terminal.screen import Screen
from kvchat.terminal.text import seconds, size

LOG = logging.getLogger("kvchat.serve")
CONNECTIONS = 512  # that are open at once
IDLE = 30  # seconds that one stays open between two requests
HEADERS = 64 * 2**10  # bytes of a request's head


def run(settings: Settings, options: Options, screen: Screen) -> int:
    """Serve until a signal ends it. Returns the exit code. Raises KvchatError."""
    settings.require_safe()
    listening = listen(settings)
    try:
        prepared = prepare(options, screen, piped=False)
        chat = open_chat(replace(prepared, files=[], options=replace(options, files=())), screen)
        with chat.cache:
            app = application(chat, settings, prepared.files, screen)
            port = listening.getsockname()[1]
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            screen.tell(f"listening on http://{host}:{port}/ · OpenAI's API at /v1")
            server(app).run(sockets=[listening])
    finally:
        listening.close()
    return 0


def listen(settings: Settings) -> socket.socket:
    """A socket at the address. Raises KvchatError("usage") if that cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((settings.host.strip("[]"), settings.port))
        found.listen(CONNECTIONS)  # who comes before all is ready waits
    except OSError as error:
        found.close()
        raise KvchatError(
            "usage",
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}",
            "--port 0  (a free one)",
        ) from None
    return found


def server(app: ASGIApp) -> uvicorn.Server:
    """What speaks HTTP, with bounds for clients that are slow or many."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Patient,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=IDLE,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=HEADERS,
        )
    )


def application(chat: Chat, settings: Settings, files: list[Document], screen: Screen) -> ASGIApp:
    """The application over a chat without a document; `files` are read when it starts."""
    engine, options = chat.session.engine, chat.options
    scheduler = Scheduler(engine, settings.askers, settings.queue, options.mem_limit)
    folder = None
    if options.prompt_cache == "on":
        given = settings.served
        folder = Path(given).expanduser() if given else user_state_path("kvchat") / "served"
    library = Library(chat, scheduler, folder)
    tokenizer = load_tokenizer(chat.model)
    answers = Answers(chat, library, scheduler, tokenizer, settings.long_message)
    metrics = Metrics()
    routes = Server(answers, Files(library, settings.max_upload), metrics)

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        scheduler.start()
        named = [library.add(file) for file in files]
        if count := library.recall():
            screen.say(f"{count} documents of earlier runs (DELETE /v1/files/ID forgets one)")
        reading = asyncio.ensure_future(read_all(library, named, screen))
        try:
            yield
        finally:
            reading.cancel()
            scheduler.stop()
            await asyncio.to_thread(scheduler.join)
            library.texts.shutdown(wait=False, cancel_futures=True)
            answers.forms.close()

    hosts = (*LOCAL, settings.host.lower()) if not settings.key else ()
    guarded, most = routes.app(lifespan), settings.max_upload
    return Guard(guarded, settings.key, hosts, most, metrics, settings.origins)


async def read_all(library: Library, named: list[Served], screen: Screen) -> None:
    """Read the documents of the start, one after the other; one that fails is told."""
    for served in named:
        try:
            await library.ready(served)
        except Exception as error:
            reason = error.message if isinstance(error, KvchatError) else repr(error)
            screen.warn(f"{served.document.title}: {reason}")
            continue
        about = served.about(library.engine)
        how = "loaded from cache" if served.restored else "read"
        kept, full = about["kv_bytes"], about["full_bytes"]
        of = f" of {size(full)}" if kept < full else ""
        screen.tell(
            f"{served.name}: {served.tokens:,} tokens {how} in {seconds(served.seconds)} · "
            f"{about['method']} keeps {size(kept)}{of}"
        )
        library.chat.cache.tell()
