"""/v1/files: documents that clients send. What they are called is a name and no path."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from kvchat.chat.paths import SUFFIXES
from kvchat.documents import decode
from kvchat.engine.methods import AUTO, METHODS
from kvchat.serve.document import FAILED, READY, Served
from kvchat.serve.library import Library
from kvchat.serve.refusals import Refusal
from kvchat.serve.replies import comment, event
from kvchat.serve.requests import sound
from kvchat.serve.wire import BODY_SECONDS, Stream, body_of
from kvchat.terminal.text import clean

ALIVE = 1.0  # seconds between two words about a reading
LONGEST = 200  # characters of a name


class Files:
    """What the routes below /v1/files do. A document has at most `most` bytes."""

    def __init__(self, library: Library, most: int):
        self.library, self.most = library, most
        self.methods, self.suffixes = [AUTO, *METHODS], sorted(SUFFIXES)
        self._extracting = asyncio.Semaphore(1)  # a hostile one delays others of its kind alone
        self._tasks: set[asyncio.Task[None]] = set()

    async def add(self, request: Request) -> Response:
        """Take a document and have it read: OpenAI's form, or the bytes with `?filename=`.

        With `stream` (or where events are accepted) what comes of the reading is told.
        """
        name, data, said = await self._sent(request)
        method, budget = str(said.get("method") or ""), str(said.get("budget") or "")
        if method == AUTO:
            method = ""
        async with self._extracting:
            document = await asyncio.to_thread(decode, name, data)
        served = await self.library.take(document, method, budget)
        self._read(served)
        streams = "text/event-stream" in request.headers.get("accept", "")
        if streams or str(said.get("stream", "")).lower() in ("1", "true"):
            return self._told(served)
        return JSONResponse(self._described(served))

    async def every(self, request: Request) -> Response:
        """All documents."""
        data = [self._described(each) for each in self.library.listed]
        return JSONResponse({"object": "list", "data": data, "has_more": False})

    async def one(self, request: Request) -> Response:
        """One document, and how far it is read."""
        return JSONResponse(self._described(self._named(request)))

    async def content(self, request: Request) -> Response:
        """Its text, as the model sees it."""
        return PlainTextResponse(self._named(request).document.text)

    async def events(self, request: Request) -> Response:
        """What comes of its reading, which begins if it has not."""
        served = self._named(request)
        self._read(served)
        return self._told(served)

    async def remove(self, request: Request) -> Response:
        """Forget it."""
        served = self._named(request)
        await self.library.remove(served)
        return JSONResponse({"id": served.id, "object": "file", "deleted": True})

    def _named(self, request: Request) -> Served:
        name = request.path_params["id"]
        found = self.library.documents.get(name)
        if found is None or not found.listed:
            raise Refusal(404, f"no file {name[:80]!r}", "id", "file_not_found")
        return found

    def _described(self, served: Served) -> dict[str, Any]:
        return served.describe(self.library.engine)

    def _read(self, served: Served) -> None:
        async def work() -> None:
            try:
                await self.library.ready(served)
            except Exception:
                return  # it is with the document, for whoever asks

        if served.cache is None:
            task = asyncio.ensure_future(work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _told(self, served: Served) -> Response:
        return Stream(self._events(served), lambda: None)

    async def _events(self, served: Served) -> AsyncGenerator[bytes, None]:
        changed = asyncio.Event()
        served.watchers.add(changed.set)
        try:
            while True:
                changed.clear()
                yield event(self._described(served))
                if served.state in (READY, FAILED):
                    return
                try:
                    async with asyncio.timeout(ALIVE):
                        await changed.wait()
                    await asyncio.sleep(0.1)  # ten times a second is enough
                except TimeoutError:
                    yield comment("reading")
        finally:
            served.watchers.discard(changed.set)

    async def _sent(self, request: Request) -> tuple[str, bytes, dict[str, Any]]:
        """Name, bytes, and what else is said with them. Raises Refusal."""
        said: dict[str, Any] = dict(request.query_params)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            if kind in ("text/plain", "application/x-www-form-urlencoded") and (
                "origin" in request.headers
            ):  # what any page may send
                raise Refusal(415, "a page must send multipart/form-data")
            return self._title(said.get("filename", "document")), await body_of(request), said
        try:
            async with asyncio.timeout(BODY_SECONDS * 5):
                form = await request.form(max_files=1, max_fields=16)
        except TimeoutError:
            raise Refusal(408, "the document did not come in time") from None
        try:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise Refusal(400, "there is no file in the form", "file")
            said |= {key: value for key, value in form.items() if isinstance(value, str)}
            return self._title(file.filename or "document"), await file.read(), said
        finally:
            await form.close()

    @staticmethod
    def _title(name: str) -> str:
        """The last part of a name, without anything that a terminal would obey."""
        last = clean(sound(name)).replace("\\", "/").rstrip("/").rpartition("/")[2]
        return last[-LONGEST:].strip() or "document"
