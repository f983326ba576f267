"""How long a connection may take to say what it wants, and to take what it is told."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0  # in which the head of a request has to come
TAKE_SECONDS = 60.0  # in which some of an answer has to be taken, once the buffers are full


class Patient(H11Protocol):
    """uvicorn's, which waits for ever for the head of a request and for an answer to be taken:
    whoever opens connections and does neither would keep others out."""

    _due: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(TAKE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taken()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._taken()

    def _taken(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def _watch(self) -> None:
        """The time runs while no request is being answered."""
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy and self._due is not None:
            self._due.cancel()
            self._due = None
        elif not busy and self._due is None:
            self._due = self.loop.call_later(HEAD_SECONDS, self._late)

    def _late(self) -> None:
        self._due = None
        busy = self.cycle is not None and not self.cycle.response_complete
        if not busy and not self.transport.is_closing():
            self.transport.close()
