"""An HTTP/1.1 connection that does not wait for ever for a slow client.

uvicorn limits the time between two requests of a connection, but neither the time until the first
comes, nor that which headers take, nor that which a client takes to read its answer. The limits
come in the lifespan's state: ``header_seconds`` and ``send_seconds``.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

    from uvicorn.protocols.http.h11_impl import H11Protocol


@functools.cache
def _patient_protocol() -> type[H11Protocol]:
    """Return the class; made when it is first asked for, since uvicorn is optional."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class PatientProtocol(H11Protocol):
        """Closes a connection whose headers, or whose reader, take too long."""

        _waiting: asyncio.TimerHandle | None = None
        _sending: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop("_waiting")
            elif self._waiting is None:
                self._expect_headers()

        def on_response_complete(self) -> None:
            self._stop("_waiting")
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            seconds = self.app_state["send_seconds"]
            self._sending = self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self._stop("_sending")
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop("_waiting")
            self._stop("_sending")
            super().connection_lost(exc)

        def _expect_headers(self) -> None:
            seconds = self.app_state["header_seconds"]
            self._waiting = self.loop.call_later(seconds, self.transport.abort)

        def _stop(self, timer: str) -> None:
            handle = getattr(self, timer)
            if handle is not None:
                handle.cancel()
                setattr(self, timer, None)

    return PatientProtocol


def __getattr__(name: str) -> Any:
    if name == "PatientProtocol":
        return _patient_protocol()
    raise AttributeError(name)
