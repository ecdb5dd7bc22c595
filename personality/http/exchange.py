"""HTTP/1.1 on one wire: requests in, responses out, one after the other, by h11's state machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from http import HTTPStatus

import h11

from personality.errors import DockerError
from personality.http.wire import Wire

# Request line and headers of one request, in bytes.
HEAD_LIMIT = 64 << 10

# What of an unread body is thrown away to keep a connection; with more to come it is closed.
_DISCARD_BYTES = 256 << 10
_DISCARD_S = 1.0

Headers = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Timeouts:
    """Seconds that a client may take: between requests, and for the head of one."""

    idle_s: float = 300.0
    head_s: float = 60.0


class MalformedRequestError(Exception):
    """The client does not speak HTTP, or its head is too long or too slow; `status` says which. The wire must close."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Exchange:
    """The requests and responses of one connection."""

    def __init__(self, wire: Wire, timeouts: Timeouts) -> None:
        self._wire = wire
        self._timeouts = timeouts
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
        self._within_head = False

    async def next_request(self) -> h11.Request | None:
        """The head of the next request; None when the client closed, or sent nothing for long.

        Raises MalformedRequestError.
        """
        try:
            if not self._h11.trailing_data[0]:
                async with asyncio.timeout(self._timeouts.idle_s):
                    self._h11.receive_data(await self._wire.read(HEAD_LIMIT))
        except TimeoutError:
            return None
        self._within_head = True
        try:
            async with asyncio.timeout(self._timeouts.head_s):
                event = await self._head()
        except TimeoutError:
            raise MalformedRequestError(408, "the request's headers did not arrive in time") from None
        except h11.RemoteProtocolError as error:
            raise MalformedRequestError(error.error_status_hint, f"malformed request: {error}") from error
        self._within_head = False
        return event if isinstance(event, h11.Request) else None

    async def _head(self) -> object:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            # h11 measures incomplete heads alone; a whole one behind the limit must not get in either.
            room = HEAD_LIMIT - len(self._h11.trailing_data[0])
            if room <= 0:
                raise MalformedRequestError(431, f"the request's headers are too large: at most {HEAD_LIMIT} bytes")
            self._h11.receive_data(await self._wire.read(room))
        return event

    async def body(self) -> AsyncIterator[bytes]:
        """The request's body as it arrives; asks for it first when the client waits to be asked. Empty when read again.

        Raises DockerError 400 when it is malformed or ends too early.
        """
        try:
            # Behind the body's end h11 would have more data, which a client that waits for its answer never sends.
            while self._h11.their_state in {h11.SEND_BODY, h11.ERROR}:
                event = self._h11.next_event()
                if event is h11.NEED_DATA:
                    if self._h11.they_are_waiting_for_100_continue:
                        await self._send(h11.InformationalResponse(status_code=100, headers=[]))
                    self._h11.receive_data(await self._wire.read())
                elif isinstance(event, h11.Data):
                    yield bytes(event.data)
        except h11.RemoteProtocolError as error:
            raise DockerError(400, f"the request's body is broken: {error}") from error

    async def send_head(self, status: int, headers: Headers) -> None:
        """Sends status and headers. Without Content-Length, the body goes out in chunks."""
        fields = list(headers)
        if self._h11.they_are_waiting_for_100_continue:
            # It may send the body or not; nobody could tell where the next request begins.
            fields.append(("Connection", "close"))
        await self._send(h11.Response(status_code=status, headers=fields, reason=HTTPStatus(status).phrase))

    async def send_body(self, data: bytes) -> None:
        """Sends a piece of the response's body; returns when the client has taken enough."""
        if data:
            await self._send(h11.Data(data=data))

    async def end(self) -> None:
        """The response is whole."""
        await self._send(h11.EndOfMessage())

    async def _send(self, event: h11.Event) -> None:
        data = self._h11.send(event)
        if data:
            await self._wire.write(data)

    @property
    def can_respond(self) -> bool:
        """No response has begun."""
        return self._h11.our_state in {h11.IDLE, h11.SEND_RESPONSE}

    async def next_cycle(self) -> bool:
        """Makes ready for the next request. False: the connection must be closed, with finish() for the unread rest."""
        if self._h11.our_state is not h11.DONE:
            return False
        if self._h11.their_state is h11.SEND_BODY and not await self._discard_body():
            return False
        if self._h11.their_state is not h11.DONE:
            return False
        self._h11.start_next_cycle()
        return True

    async def _discard_body(self) -> bool:
        discarded = 0
        try:
            async with asyncio.timeout(_DISCARD_S):
                async for chunk in self.body():
                    discarded += len(chunk)
                    if discarded > _DISCARD_BYTES:
                        return False
        except (TimeoutError, DockerError):
            return False
        return True

    @property
    def request_unread(self) -> bool:
        """The client may still be sending its request."""
        return self._within_head or self._h11.their_state in {h11.SEND_BODY, h11.ERROR}

    async def leave(self, status_line: str, headers: Headers) -> bytes:
        """Ends HTTP on this connection with a head of its own; returns what the client sent behind its request."""
        async for _ in self.body():
            pass  # the endpoint has read what it wanted
        lines = [f"HTTP/1.1 {status_line}", *(f"{name}: {value}" for name, value in headers), "", ""]
        await self._wire.write("\r\n".join(lines).encode("latin-1"))
        return self._h11.trailing_data[0]
