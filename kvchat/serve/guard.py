"""What every request passes first: who may ask, how much may be sent, how long it may take."""

import hmac
import json
import logging
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from time import perf_counter
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvchat.serve.metrics import Metrics
from kvchat.serve.refusals import Refusal

LOG = logging.getLogger("kvchat.serve")
OPEN = ("/", "/health", "/favicon.ico")  # that need no key: nothing in them is anybody's
LOCAL = ("localhost", "127.0.0.1", "[::1]")
BODY = 8 * 2**20  # bytes of a body that is no document
SECURITY = {
    b"x-content-type-options": b"nosniff",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}


class Guard:
    """An application around the application.

    A page of another site can make a browser ask a server on the same machine. So a request that
    says it comes from elsewhere is refused, and so is one for another host than ours, as a name
    that has been pointed at this machine would be. `hosts`: names that we go by; empty: any, for a
    key protects us. Pages of the `origins` may ask: their browsers are told so.
    """

    def __init__(
        self,
        app: ASGIApp,
        key: str,
        hosts: tuple[str, ...],
        most: int,
        metrics: Metrics,
        origins: Collection[str] = (),
    ):
        self.app, self.key, self.hosts, self.most = app, key.encode(), hosts, most
        self.metrics, self.origins = metrics, {origin.encode() for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            else:
                await self.app(scope, receive, send)
            return
        # programs put addresses together from parts that begin or end with a slash
        path = "/" + "/".join(filter(None, scope["path"].split("/")))
        scope = {**scope, "path": path, "raw_path": path.encode()}
        begin, status = perf_counter(), 0
        headers = {name.lower(): value for name, value in scope["headers"]}
        origin = headers.get(b"origin", b"")
        friend = origin if origin in self.origins else b""

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                there = {name.lower() for name, _ in message.get("headers", ())}
                more = [pair for pair in SECURITY.items() if pair[0] not in there]
                if friend:
                    more += [(b"access-control-allow-origin", friend), (b"vary", b"origin")]
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        try:
            if friend and scope["method"] == "OPTIONS":
                await allow(answered, headers.get(b"access-control-request-headers", b""))
                return
            self._require(path, headers, friend)
            await self.app(scope, self._counted(scope, receive), answered)
        except Refusal as refusal:
            if not status:
                await refuse(answered, refusal)
        except Exception as error:
            LOG.error("%s %s: %s", scope["method"], path, error, exc_info=error)
            if not status:
                await refuse(answered, Refusal.of(error))
        finally:
            self.metrics.request(scope, status or 499, perf_counter() - begin)

    def _require(self, path: str, headers: Mapping[bytes, bytes], friend: bytes) -> None:
        host = _host(headers.get(b"host", b""))
        if self.hosts and host not in self.hosts:
            raise Refusal(403, "this server goes by another name", code="wrong_host")
        origin = headers.get(b"origin", b"")
        other = origin and origin != b"null" and self._host_of(origin) != headers.get(b"host", b"")
        elsewhere = headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none")
        if not friend and (other or ((elsewhere or origin == b"null") and path != "/")):
            named = origin.decode("latin-1")[:80] if other else "ORIGIN"
            raise Refusal(
                403,
                f"pages of other sites may not ask (kvchat serve --allow-origin {named})",
                code="cross_origin",
            )
        if self.key and path not in OPEN and not self._knows(headers):
            raise Refusal(401, "the API key is missing or wrong", code="invalid_api_key")

    @staticmethod
    def _host_of(origin: bytes) -> bytes:
        return origin.partition(b"://")[2]

    def _knows(self, headers: Mapping[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            given = headers.get(b"x-api-key", b"")
        return hmac.compare_digest(given.strip(), self.key)

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        """The body, as long as it is not too large. Raises Refusal."""
        most = self.most if scope["path"] == "/v1/files" else BODY
        lengths = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
        declared = int(lengths[0]) if lengths and lengths[0].isdigit() else 0
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            if declared > most:
                raise _too_large(declared, most)
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise _too_large(seen, most)
            return message

        return counted


async def allow(send: Callable[[Message], Awaitable[Any]], named: bytes) -> None:
    """Tell a browser that a page may send what it asks to send, headers that are `named` too."""
    plain = re.fullmatch(rb"[A-Za-z0-9, -]{0,2000}", named)
    raw = [
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-allow-headers", named if plain else b"authorization, content-type"),
        (b"access-control-allow-private-network", b"true"),
        (b"access-control-max-age", b"600"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": raw})
    await send({"type": "http.response.body", "body": b""})


def _host(value: bytes) -> str:
    """The name of a Host header, without its port."""
    text = value.decode("latin-1").lower()
    return text.partition("]")[0] + "]" if text.startswith("[") else text.partition(":")[0]


def _too_large(count: int, most: int) -> Refusal:
    return Refusal(413, f"the body has {count:,} bytes or more; at most {most:,} are taken")


async def refuse(send: Callable[[Message], Awaitable[Any]], refusal: Refusal) -> None:
    """Send a refusal."""
    body = json.dumps(refusal.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    headers |= refusal.headers
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
