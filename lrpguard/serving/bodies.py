"""ASGI middleware: how large a request's body may be, and how long it may take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from lrpguard.serving.refusal import RefusedError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class BodyLimits:
    """Lets the application read a body within limits; beyond them its read raises.

    Args:
        app: The application.
        max_bytes: Largest body.
        seconds: Longest time from the headers to the end of the body.
    """

    def __init__(self, app: App, *, max_bytes: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle one connection's scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        until = time.monotonic() + self._seconds
        announced = self._announced(scope)
        received, whole = 0, False

        async def limited() -> Message:
            nonlocal received, whole
            if whole:
                return await receive()
            if announced > self._max_bytes:
                raise self._too_large()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, until - time.monotonic()))
            except TimeoutError:
                raise RefusedError(
                    408, "slow", f"the body did not arrive within {self._seconds:g} s."
                ) from None
            received += len(message.get("body", b""))
            whole = message["type"] != "http.request" or not message.get("more_body", False)
            if received > self._max_bytes:
                raise self._too_large()
            return message

        await self._app(scope, limited, send)

    @staticmethod
    def _announced(scope: MutableMapping[str, Any]) -> int:
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        return int(lengths[0]) if lengths and lengths[0].isdigit() else 0

    def _too_large(self) -> RefusedError:
        return RefusedError(
            413, "too_large", f"the body is larger than the limit of {self._max_bytes} bytes."
        )
