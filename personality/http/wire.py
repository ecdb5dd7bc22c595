"""One client's byte stream, with bounded buffers both ways, half-close, and word of the client's going at once.

On a Unix socket, the end of input says only that the client writes no more; whether it still reads shows in EPOLLHUP,
which event loops do not report for a socket they have read to the end. HangupWatch does. On TCP there is always TLS,
where close_notify is the half-close, and the end of the stream below it means that the client has gone.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import ssl
from collections.abc import Callable
from typing import cast

from personality.http.callers import printable, user_of
from personality.http.tls import TlsLayer

_INPUT_LIMIT = 256 << 10
_OUTPUT_LIMIT = 256 << 10

# Seconds that a client gets to take the last bytes, and to stop sending, before the connection is cut.
_LINGER_S = 5.0

log = logging.getLogger(__name__)


class HangupWatch:
    """Calls `gone` once when both directions of a socket are shut."""

    def __init__(self, descriptor: int, gone: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._gone = gone
        self._epoll = select.epoll()
        # No events asked for: EPOLLHUP is reported always. An epoll descriptor can itself be watched for reading.
        self._epoll.register(descriptor, 0)
        self._loop.add_reader(self._epoll.fileno(), self._fire)

    def _fire(self) -> None:
        self.stop()
        self._gone()

    def stop(self) -> None:
        """Ends the watch; may be called again."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()


class Wire(asyncio.Protocol):
    """The stream of one accepted connection, plain or TLS. `accepted` is called with it once it stands."""

    def __init__(self, accepted: Callable[[Wire], None], tls: ssl.SSLContext | None = None) -> None:
        self._accepted = accepted
        self._tls = TlsLayer(tls) if tls is not None else None
        self._transport: asyncio.Transport | None = None
        self._watch: HangupWatch | None = None
        self._input = bytearray()
        self._input_paused = False
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed = asyncio.Event()
        self._on_gone: Callable[[], object] | None = None
        self._gone_after_input = False
        self._eof_sent = False
        self.eof = False
        self.gone = False

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not every event loop's transports are subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_OUTPUT_LIMIT)
        sock = transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._accepted(self)

    def data_received(self, data: bytes) -> None:
        if self._tls is not None:
            data = self._decrypt(self._tls, data)
        self._input += data
        self._readable.set()
        if len(self._input) > _INPUT_LIMIT and not self._input_paused and self._transport is not None:
            self._input_paused = True
            self._transport.pause_reading()

    def _decrypt(self, tls: TlsLayer, data: bytes) -> bytes:
        try:
            plaintext = tls.receive(data)
        except ssl.SSLError as error:
            log.info("TLS with a client failed: %s", error)
            self._flush(tls)
            self._dismiss()
            return b""
        self._flush(tls)
        if tls.peer_closed and not self.eof:
            self._end_input()
        return plaintext

    def _flush(self, tls: TlsLayer) -> None:
        pending = tls.data_to_send()
        if pending and self._transport is not None:
            self._transport.write(pending)

    def eof_received(self) -> bool:
        self._end_input()
        if self._tls is not None:
            self._lose()
        elif self._transport is not None and not self._eof_sent:
            self._watch = HangupWatch(self._transport.get_extra_info("socket").fileno(), self._lose)
        return True  # the other direction stays open

    def _end_input(self) -> None:
        self.eof = True
        self._readable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._closed.set()
        self._stop_watch()
        self._lose()

    def _lose(self) -> None:
        self.gone = True
        self._end_input()
        self._writable.set()
        if not (self._gone_after_input and self._input):
            self._tell_gone()

    def _tell_gone(self) -> None:
        callback, self._on_gone = self._on_gone, None
        if callback is not None:
            callback()

    def _dismiss(self) -> None:
        """Closes behind what was written (an alert, say) and takes the client for gone."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
        self._lose()

    def _stop_watch(self) -> None:
        if self._watch is not None:
            self._watch.stop()

    # What the server and endpoints call.

    def caller(self) -> str:
        """Who is at the other end: the name in the certificate, or the user of the process; "" if unknown."""
        if self._tls is not None:
            return printable(self._tls.peer_name)
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        return user_of(sock) if sock is not None and sock.family == socket.AF_UNIX else ""

    def on_gone(self, callback: Callable[[], object] | None, *, after_input: bool = False) -> None:
        """Has `callback` called once when the client has gone; with `after_input`, only when all it sent is read."""
        self._gone_after_input = after_input
        self._on_gone = callback
        if self.gone:
            self._lose()

    async def read(self, limit: int = _INPUT_LIMIT) -> bytes:
        """At least one byte and at most `limit`; b"" when the client half-closed or has gone."""
        while not self._input and not self.eof:
            self._readable.clear()
            await self._readable.wait()
        if self.gone and not self._input:
            self._tell_gone()
        data = bytes(self._input[:limit])
        del self._input[:limit]
        if self._input_paused and len(self._input) <= _INPUT_LIMIT // 2 and self._transport is not None:
            self._input_paused = False
            self._transport.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        """Returns when the client has taken all but a bounded rest. Raises ConnectionResetError when it has gone."""
        if self.gone or self._transport is None:
            raise ConnectionResetError("the client has gone")
        if self._tls is not None:
            self._tls.encrypt(data)
            self._flush(self._tls)
        elif data:
            self._transport.write(data)
        await self._writable.wait()
        if self.gone:
            raise ConnectionResetError("the client has gone")

    def write_eof(self) -> None:
        """Half-close behind what was written."""
        if self._eof_sent or self.gone or self._transport is None:
            return
        self._eof_sent = True
        # With both directions shut, the socket reports EPOLLHUP although the client may still read.
        self._stop_watch()
        if self._tls is not None:
            self._tls.close()
            self._flush(self._tls)
        else:
            self._transport.write_eof()

    async def finish(self) -> None:
        """Closes so that the client gets every byte: half-closes, and throws away what it still sends, for a while.

        Closing with unread input would have the kernel tell the client of a reset instead of the end.
        """
        self.write_eof()
        try:
            async with asyncio.timeout(_LINGER_S):
                while await self.read():
                    pass
                await self.close()
        except TimeoutError:
            self.abort()

    async def close(self) -> None:
        """Closes behind what was written; cuts the connection when the client does not take it."""
        if self._transport is not None:
            self._transport.close()
        try:
            async with asyncio.timeout(_LINGER_S):
                await self._closed.wait()
        except TimeoutError:
            self.abort()

    def abort(self) -> None:
        """Cuts the connection at once."""
        self._stop_watch()
        if self._transport is not None:
            self._transport.abort()
