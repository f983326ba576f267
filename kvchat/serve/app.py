"""The HTTP interface: OpenAI's, as far as there is something behind it, and a page."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from kvchat import __version__
from kvchat.errors import KvchatError
from kvchat.machine import resources as machine
from kvchat.serve import requests
from kvchat.serve.answers import Answers, Talk
from kvchat.serve.asker import Ended, Failed, Piece
from kvchat.serve.files import Files
from kvchat.serve.metrics import Metrics
from kvchat.serve.refusals import Refusal
from kvchat.serve.replies import DONE, Reply, comment, event
from kvchat.serve.requests import Asked
from kvchat.serve.wire import Stream, json_of, until_gone

ALIVE = 10.0  # seconds between two signs of life of a stream that waits
PAGE = Path(__file__).with_name("page.html")


class Server:
    """What the routes do."""

    def __init__(self, answers: Answers, files: Files, metrics: Metrics):
        self.answers, self.files, self.metrics = answers, files, metrics
        self.library, self.scheduler = answers.library, answers.scheduler
        self.begun = int(metrics.begun)

    def app(self, lifespan: Any = None) -> Starlette:
        """The application, without its guard."""
        files, one = self.files, "/v1/files/{id}"
        routes: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("GET", "/", self.page),
            ("GET", "/health", self.health),
            ("GET", "/metrics", self.metrics_text),
            ("GET", "/v1/models", self.models),
            ("GET", "/v1/models/{id:path}", self.model),
            ("POST", "/v1/chat/completions", self.chat),
            ("POST", "/v1/completions", self.completion),
            ("POST", "/v1/embeddings", self.embeddings),
            ("POST", "/v1/files", files.add),
            ("GET", "/v1/files", files.every),
            ("GET", one, files.one),
            ("DELETE", one, files.remove),
            ("GET", one + "/content", files.content),
            ("GET", one + "/events", files.events),
            ("GET", "/v1/status", self.status),
        ]
        return Starlette(
            routes=[Route(path, do, methods=[method]) for method, path, do in routes],
            exception_handlers={
                Refusal: refused,
                KvchatError: refused,
                HTTPException: unknown,
                ClientDisconnect: lambda request, error: Response(status_code=499),
            },
            lifespan=lifespan,
        )

    # What is there

    async def page(self, request: Request) -> Response:
        text = PAGE.read_text("utf-8")
        policy = ["default-src 'none'", "connect-src 'self'", "img-src data:", "base-uri 'none'"]
        policy += ["form-action 'none'", "frame-ancestors 'none'"]
        for name in ("script", "style"):
            inside = text.partition(f"<{name}>")[2].partition(f"</{name}>")[0]
            digest = b64encode(sha256(inside.encode()).digest()).decode()
            policy.append(f"{name}-src 'sha256-{digest}'")
        return HTMLResponse(text, headers={"content-security-policy": "; ".join(policy)})

    async def health(self, request: Request) -> Response:
        alive = self.scheduler.is_alive()
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    async def metrics_text(self, request: Request) -> Response:
        text = self.metrics.text(self.scheduler, self.library)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        own = [(self.answers.model, self.begun, None)]
        own += [(each.name, each.created, each) for each in self.library.listed]  # type: ignore[misc]
        return JSONResponse({"object": "list", "data": [self._model(*each) for each in own]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["id"]
        if name == self.answers.model:
            return JSONResponse(self._model(name, self.begun, None))
        if (found := self.library.named(name)) is None or not found.listed:
            raise Refusal(404, f"no model {name[:80]!r}", "model", "model_not_found")
        return JSONResponse(self._model(found.name, found.created, found))

    def _model(self, name: str, created: int, served: Any) -> dict[str, Any]:
        found = {"id": name, "object": "model", "created": created, "owned_by": "kvchat"}
        more: dict[str, Any] = {"context_window": self.answers.chat.session.limit}
        if served is not None:
            more |= {"file": served.id, "status": served.state} | served.about(self.answers.engine)
        return found | {"kvchat": more}

    async def status(self, request: Request) -> Response:
        """What the page shows beside the documents."""
        engine, session = self.answers.engine, self.answers.chat.session
        return JSONResponse(
            {
                "version": __version__,
                "model": self.answers.model,
                "context_window": session.limit,
                "methods": self.files.methods,
                "answering": self.scheduler.busy,
                "waiting": self.scheduler.waiting,
                "documents_kv_bytes": self.library.kv_bytes,
                "memory_bytes": machine.in_use(engine.device),
                "room_bytes": self.scheduler.room(),
                "most_bytes": self.files.most,
                "suffixes": self.files.suffixes,
            }
        )

    async def embeddings(self, request: Request) -> Response:
        raise Refusal(
            400, "this server has a model that writes text, and makes no embeddings", None,
            "unsupported_endpoint",
        )  # fmt: skip

    # Answers

    async def chat(self, request: Request) -> Response:
        return await self._answer(requests.chat(await json_of(request)), request)

    async def completion(self, request: Request) -> Response:
        return await self._answer(requests.completion(await json_of(request)), request)

    async def _answer(self, asked: Asked, request: Request) -> Response:
        talk = self.answers.begin(asked)
        if asked.stream:
            ready = talk.served is None or talk.served.cache is not None
            try:
                if ready:  # what is refused is refused with a status
                    await self.answers.start(talk)
            except BaseException:
                self.answers.leave(talk)
                raise
            return Stream(self._pieces(talk, ready), lambda: self.answers.leave(talk))
        try:
            found: dict[str, Any] = await until_gone(self._whole(talk), request.receive)
            return JSONResponse(found)
        finally:
            self.answers.leave(talk)

    async def _whole(self, talk: Talk) -> dict[str, Any]:
        await self.answers.start(talk)
        reply = Reply(talk, self.answers.chat.session.dialogue.tokenizer)
        while reply.left:
            number, each = await talk.events.get()
            if isinstance(each, Failed):
                raise each.error
            if isinstance(each, Ended):
                reply.end(number, each, await self.answers.sources(talk, each))
            else:
                reply.take(number, each)
        return reply.whole()

    async def _pieces(self, talk: Talk, started: bool) -> AsyncGenerator[bytes, None]:
        reply = Reply(talk, self.answers.chat.session.dialogue.tokenizer)
        try:
            if not started:
                starting = asyncio.ensure_future(self.answers.start(talk))
                try:
                    while not (await asyncio.wait((starting,), timeout=ALIVE / 5))[0]:
                        yield comment(self._waits(talk))
                    starting.result()
                finally:
                    starting.cancel()
            for first in reply.first():
                yield event(first)
            while reply.left:
                try:
                    async with asyncio.timeout(ALIVE):  # wait_for of 3.11 can lose a cancellation
                        number, each = await talk.events.get()
                except TimeoutError:
                    yield comment("waiting")
                    continue
                if isinstance(each, Failed):
                    raise each.error
                if isinstance(each, Piece):
                    yield event(reply.piece(number, each))
                    continue
                reply.end(number, each, await self.answers.sources(talk, each))
                yield event(reply.last(number))
            if talk.asked.include_usage:
                yield event(reply.counted())
            yield DONE
        except Exception as error:
            yield event(Refusal.of(error).body())

    def _waits(self, talk: Talk) -> str:
        if talk.served is None or talk.served.progress is None:
            return "waiting"
        progress = talk.served.progress
        return f"reading the document: {progress.done / max(progress.total, 1):.0%}"


async def refused(request: Request, error: Exception) -> Response:
    """A refusal in OpenAI's form."""
    refusal = Refusal.of(error)
    return JSONResponse(refusal.body(), refusal.status, refusal.headers)


async def unknown(request: Request, error: Exception) -> Response:
    """A path that there is not, or a method that it does not take."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    what = f"{request.method} {path}"
    where = "" if path.startswith("/v1/") else ": OpenAI's API is below /v1"
    where = where if not path.startswith("/api/") else " (this is no ollama): OpenAI's is below /v1"
    known = {404: f"no {what}{where}", 405: f"{what} is not allowed"}
    text = known.get(error.status_code, error.detail)
    refusal = Refusal(error.status_code, text, code="unknown_url")
    return JSONResponse(refusal.body(), error.status_code, dict(error.headers or {}))
