"""HTTP on both sides of the front: one client's connection, and the connection that carries its requests on."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import BinaryIO, Protocol

import h11
from vsphere_simulator import HOST
from vsphere_soap import Reply
from vsphere_vsan import spool

_CHUNK = 1 << 16
# Stands for an answer that is passed on as it comes.
PASSED = Reply(200)
# What one connection says of itself alone.
_OWN_HEADERS = {b"connection", b"accept-encoding", b"expect", b"keep-alive"}


class CutError(Exception):
    """The connection breaks here, without an answer."""


class Front(Protocol):
    """What a connection asks of the front."""

    async def soap(self, body: bytes, cookie: str, upstream: Upstream, request: h11.Request) -> Reply: ...

    async def file(self, method: str, target: str, cookie: str, carry: Callable[[], Awaitable[Reply]]) -> Reply: ...

    async def disk(self, target: str, sent: Path, carry: Callable[[], Awaitable[Reply]]) -> Reply: ...


class Upstream:
    """The connection to the simulator on behalf of one client's; made when wanted, and again when it has broken."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._port = port
        self._context = context
        self._protocol: h11.Connection | None = None

    async def soap(self, request: h11.Request, body: bytes) -> Reply:
        """The whole answer to a request with this body."""
        answer, content = await self.begin(request, _once(body), len(body))
        whole = b"".join([part async for part in content])
        kept = tuple((name, value) for name, value in answer.headers if name in (b"content-type", b"set-cookie"))
        return Reply(answer.status_code, whole, kept)

    async def begin(
        self, request: h11.Request, body: AsyncIterator[bytes], length: int | None = None
    ) -> tuple[h11.Response, AsyncIterator[bytes]]:
        """The head of the answer, and what follows it."""
        try:
            protocol = await self._ready()
            await self._send(protocol, _passed_on(request, length))
            async for part in body:
                await self._send(protocol, h11.Data(data=part))
            await self._send(protocol, h11.EndOfMessage())
            while not isinstance(answer := await self._next(protocol), h11.Response):
                pass
        except BaseException:
            self.close()
            raise
        return answer, self._rest(protocol)

    def close(self) -> None:
        if self._protocol is not None:
            self._writer.transport.abort()
            self._protocol = None

    async def _ready(self) -> h11.Connection:
        if self._protocol is not None and self._protocol.our_state is h11.DONE:
            self._protocol.start_next_cycle()
            return self._protocol
        self.close()
        self._reader, self._writer = await asyncio.open_connection(HOST, self._port, ssl=self._context)
        self._protocol = h11.Connection(h11.CLIENT)
        return self._protocol

    async def _rest(self, protocol: h11.Connection) -> AsyncIterator[bytes]:
        try:
            while isinstance(event := await self._next(protocol), h11.Data):
                yield bytes(event.data)
        except BaseException:
            self.close()
            raise
        if protocol.our_state is not h11.DONE or protocol.their_state is not h11.DONE:
            self.close()

    async def _send(self, protocol: h11.Connection, event: h11.Event) -> None:
        if data := protocol.send(event):
            self._writer.write(data)
            await self._writer.drain()

    async def _next(self, protocol: h11.Connection) -> h11.Event:
        while (event := protocol.next_event()) is h11.NEED_DATA:
            protocol.receive_data(await self._reader.read(_CHUNK))
        if not isinstance(event, h11.Event) or isinstance(event, h11.ConnectionClosed):
            raise ConnectionError("the simulator closed the connection")
        return event


class ClientConnection:
    """Serves one client's connection until either side ends it."""

    def __init__(
        self, front: Front, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: Upstream
    ) -> None:
        self._front = front
        self._reader, self._writer = reader, writer
        self._upstream = upstream
        self._protocol = h11.Connection(h11.SERVER)

    async def serve(self) -> None:
        try:
            with contextlib.suppress(CutError, OSError, h11.ProtocolError, EOFError):
                while isinstance(request := await self._next(), h11.Request):
                    await self._answer(request)
                    if self._protocol.our_state is not h11.DONE or self._protocol.their_state is not h11.DONE:
                        break
                    self._protocol.start_next_cycle()
        finally:
            self._upstream.close()
            self._writer.transport.abort()

    async def _answer(self, request: h11.Request) -> None:
        cookie = next((value.decode() for name, value in request.headers if name == b"cookie"), "")
        target = request.target.decode()
        if target.startswith("/sdk") and request.method == b"POST":
            body = b"".join([part async for part in self._body()])
            return await self._reply(await self._front.soap(body, cookie, self._upstream, request))
        if target.startswith("/folder"):
            method = request.method.decode()
            reads = method in ("GET", "HEAD")
            reply = await self._front.file(method, target, cookie, _pass if reads else lambda: self._carried(request))
            if reply is not PASSED:
                return await self._reply(reply)
        if target.startswith("/nfc/"):
            sent = spool()
            try:
                with sent.open("wb") as copy:
                    return await self._reply(await self._front.disk(target, sent, lambda: self._carried(request, copy)))
            finally:
                sent.unlink()
        await self._stream(request)

    async def _carried(self, request: h11.Request, copy: BinaryIO | None = None) -> Reply:
        """The answer, read to its end, to a request of which the body is passed on as it comes."""
        body = self._body() if copy is None else _copied(self._body(), copy)
        head, content = await self._upstream.begin(request, body)
        return Reply(head.status_code, b"".join([part async for part in content]), ())

    async def _stream(self, request: h11.Request) -> None:
        head, content = await self._upstream.begin(request, self._body())
        await self._send(h11.Response(status_code=head.status_code, headers=_without_own(head.headers)))
        async for part in content:
            await self._send(h11.Data(data=part))
        await self._send(h11.EndOfMessage())

    async def _body(self) -> AsyncIterator[bytes]:
        if self._protocol.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        while isinstance(event := await self._next(), h11.Data):
            yield bytes(event.data)

    async def _reply(self, reply: Reply) -> None:
        headers = [*reply.headers, (b"content-length", str(len(reply.body)).encode())]
        await self._send(h11.Response(status_code=reply.status, headers=headers))
        if self._protocol.our_state is h11.SEND_BODY and reply.body:
            await self._send(h11.Data(data=reply.body))
        await self._send(h11.EndOfMessage())

    async def _send(self, event: h11.Event) -> None:
        if data := self._protocol.send(event):
            self._writer.write(data)
            await self._writer.drain()

    async def _next(self) -> h11.Event:
        while (event := self._protocol.next_event()) is h11.NEED_DATA:
            self._protocol.receive_data(await self._reader.read(_CHUNK))
        if not isinstance(event, h11.Event):
            raise CutError
        return event


def _passed_on(request: h11.Request, length: int | None) -> h11.Request:
    headers = [(name, value) for name, value in request.headers if name not in _OWN_HEADERS]
    if length is not None:
        framing = (b"content-length", b"transfer-encoding")
        headers = [(name, value) for name, value in headers if name not in framing]
        headers.append((b"content-length", str(length).encode()))
    return h11.Request(method=request.method, target=request.target, headers=headers)


def _without_own(headers: h11._headers.Headers) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name not in _OWN_HEADERS]


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _copied(body: AsyncIterator[bytes], copy: BinaryIO) -> AsyncIterator[bytes]:
    async for part in body:
        copy.write(part)
        yield part
    copy.flush()


async def _pass() -> Reply:
    return PASSED
