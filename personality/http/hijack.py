"""A connection that has left HTTP: the raw stream both ways, each direction closed by itself."""

from __future__ import annotations

from personality.http.wire import Wire


class HijackedConnection:
    """messages.Connection on a Wire; `early` is what the client sent behind its request."""

    def __init__(self, wire: Wire, early: bytes) -> None:
        self._wire = wire
        self._early = early

    async def read(self) -> bytes:
        if self._early:
            early, self._early = self._early, b""
            return early
        return await self._wire.read()

    async def write(self, data: bytes) -> None:
        await self._wire.write(data)

    def write_eof(self) -> None:
        self._wire.write_eof()
