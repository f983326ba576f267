"""How long a connection may take to say what it wants."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0  # in which the head of a request has to come


class Patient(H11Protocol):
    """uvicorn's, which waits for ever for the head of a request: whoever opens connections and says
    nothing would keep others out."""

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

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
