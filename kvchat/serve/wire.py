"""Bodies that come and streams that go: within their time, and no longer than their client."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kvchat.serve.refusals import Refusal
from kvchat.serve.requests import read_json

R = TypeVar("R")
BODY_SECONDS = 60.0  # in which a body has to come
EVENTS = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}


class Stream(Response):
    """Server-sent events; when the client goes they end at once. `leave` is called at the end."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], leave: Callable[[], None]):
        super().__init__()
        self.raw_headers = [(name.encode(), value.encode()) for name, value in EVENTS.items()]
        self._pieces, self._leave = pieces, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def speak() -> None:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            async with aclosing(self._pieces) as pieces:
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        try:
            with suppress(ClientDisconnect):
                await until_gone(speak(), receive)
        finally:
            self._leave()


async def until_gone(work: Coroutine[Any, Any, R], receive: Receive) -> R:
    """The value of `work`; it is cancelled when the client goes. Raises ClientDisconnect then."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientDisconnect
    finally:
        for task in (doing, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def body_of(request: Request) -> bytes:
    """The body of a request that comes in time. Raises Refusal."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.body()
    except TimeoutError:
        raise Refusal(408, f"the body did not come within {BODY_SECONDS:.0f} s") from None


async def json_of(request: Request) -> dict[str, Any]:
    """The JSON object of a body. Raises Refusal."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if kind.lower() != "application/json":
        raise Refusal(415, f"the body must be application/json, not {kind[:80]!r}")
    return read_json(await body_of(request))
