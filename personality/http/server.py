"""The server: takes connections, finds the endpoint for each request, and carries its answer out.

What it promises endpoints: a handler, and the stream or hijack that it answers with, is cancelled as soon as the client
has gone. What it promises clients: each request gets an answer in Docker's form, or its connection is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from urllib.parse import unquote

import grpc.aio
import h11
import msgspec

from personality.backend import Backend
from personality.errors import DockerError, from_rpc
from personality.http.exchange import Exchange, MalformedRequestError, Timeouts
from personality.http.hijack import HijackedConnection
from personality.http.messages import Hijack, Query, Reply, Request, Response, Stream
from personality.http.router import Router
from personality.http.wire import Wire

MAX_VERSION = (1, 50)
MIN_VERSION = (1, 24)

# Statuses whose answers have no body.
_BODILESS = frozenset({204, 304})

_VERSIONED = re.compile(r"/v(\d{1,4})\.(\d{1,4})(?=/|$)", re.ASCII)

# A request may name the whole URL, as to a proxy.
_ABSOLUTE = re.compile(r"^https?://[^/?]*(?=[/?])", re.IGNORECASE)

log = logging.getLogger(__name__)


class Server:
    """Serves `router`'s endpoints on the connections that `protocol` takes, until close()."""

    def __init__(self, router: Router, backend: Backend, *, product: str, timeouts: Timeouts | None = None) -> None:
        self._router = router
        self._backend = backend
        self._timeouts = timeouts or Timeouts()
        self._common_headers = [
            ("Api-Version", version_text(MAX_VERSION)),
            ("Docker-Experimental", "false"),
            ("Ostype", "linux"),
            ("Server", product),
        ]
        self._tasks: set[asyncio.Task[None]] = set()
        # Those within a request that may end by itself soon.
        self._busy: set[asyncio.Task[None]] = set()
        self._closing = False

    def protocol(self, tls: ssl.SSLContext | None = None) -> Wire:
        """A new connection's protocol, for the event loop's listeners."""
        return Wire(self._accepted, tls)

    def _accepted(self, wire: Wire) -> None:
        if self._closing:
            wire.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(wire))
        wire.on_gone(task.cancel)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._busy.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a connection ended by a fault of this server", exc_info=error)

    async def close(self, grace_s: float = 3.0) -> None:
        """Lets requests in flight end within `grace_s` seconds, then cancels them; idle connections close at once."""
        self._closing = True
        for task in self._tasks - self._busy:
            task.cancel()
        if self._busy:
            await asyncio.wait(set(self._busy), timeout=grace_s)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    # One connection.

    async def _serve(self, wire: Wire) -> None:
        exchange = Exchange(wire, self._timeouts)
        try:
            while await self._serve_one(wire, exchange):
                pass
            # From here on the client's going is what is waited for.
            wire.on_gone(None)
            await (wire.finish() if exchange.request_unread else wire.close())
        except ConnectionError:
            log.debug("a client went away")
        finally:
            wire.abort()

    async def _serve_one(self, wire: Wire, exchange: Exchange) -> bool:
        """One request and its answer. False: the connection is to be closed."""
        try:
            head = await exchange.next_request()
        except MalformedRequestError as error:
            log.info("refused: %s", error)
            if exchange.can_respond:
                await self._send_reply(exchange, error_reply(DockerError(error.status, str(error))), close=True)
            return False
        if head is None:
            return False
        task = asyncio.current_task()
        assert task is not None
        self._busy.add(task)
        try:
            return await self._respond(wire, exchange, head)
        finally:
            self._busy.discard(task)

    async def _respond(self, wire: Wire, exchange: Exchange, head: h11.Request) -> bool:
        started = time.monotonic()
        response = await self._answer(head, exchange.body(), wire.caller)
        head_only = head.method == b"HEAD"
        if isinstance(response, Stream):
            response = await self._send_stream(exchange, response, head_only=head_only) or response
        elif isinstance(response, Hijack):
            await self._hijack(wire, exchange, response, upgrade=_has_header(head, b"upgrade"))
            return False
        if isinstance(response, Reply):
            await self._send_reply(exchange, response, head_only=head_only)
        log.debug(
            "%s %s: %d in %.1f ms",
            head.method.decode("ascii"),
            head.target.decode("latin-1"),
            response.status,
            (time.monotonic() - started) * 1000,
        )
        return await exchange.next_cycle() and not self._closing

    async def _answer(self, head: h11.Request, body: AsyncIterator[bytes], caller: Callable[[], str]) -> Response:
        """The endpoint's answer, or the error's."""
        try:
            request = _request(head, body, caller)
            route, request.params = self._router.find(request.method, request.path)
            return await route.handler(request, self._backend)
        except Exception as error:
            return _error_answer(error, head)

    # Answers.

    async def _send_reply(
        self, exchange: Exchange, reply: Reply, *, head_only: bool = False, close: bool = False
    ) -> None:
        body = reply.raw
        if body is None:
            body = b"" if reply.body is None else msgspec.json.encode(reply.body) + b"\n"
        headers = self._headers(reply.headers, close=close)
        if reply.status not in _BODILESS:
            headers.append(("Content-Length", str(len(body))))
            if body:
                headers.append(("Content-Type", reply.content_type))
        await exchange.send_head(reply.status, headers)
        if not head_only and reply.status not in _BODILESS:
            await exchange.send_body(body)
        await exchange.end()

    async def _send_stream(self, exchange: Exchange, stream: Stream, *, head_only: bool) -> Reply | None:
        """Sends it all; or returns the error's answer, when it fails before its first piece."""
        async with _closing(stream.chunks):
            try:
                first = b"" if head_only else await anext(stream.chunks, b"")
            except Exception as error:
                return _error_answer(error, None)
            headers = self._headers(stream.headers)
            headers.append(("Content-Type", stream.content_type))
            await exchange.send_head(stream.status, headers)
            try:
                await exchange.send_body(first)
                if not head_only:
                    async for chunk in stream.chunks:
                        await exchange.send_body(chunk)
            except (DockerError, grpc.aio.AioRpcError) as error:
                # Too late for a status: the missing end tells the client that this is not all.
                log.warning("an answer was cut: %s", error)
                raise ConnectionAbortedError("the answer cannot be finished") from error
            await exchange.end()
        return None

    async def _hijack(self, wire: Wire, exchange: Exchange, hijack: Hijack, *, upgrade: bool) -> None:
        headers = self._headers({"Content-Type": hijack.content_type})
        if upgrade:
            headers += [("Connection", "Upgrade"), ("Upgrade", "tcp")]
        try:
            early = await exchange.leave("101 UPGRADED" if upgrade else "200 OK", headers)
        except DockerError as error:
            raise ConnectionAbortedError("the request's body is broken") from error
        task = asyncio.current_task()
        assert task is not None
        # A stream that lasts as long as its container is no reason to put off the end of the server.
        self._busy.discard(task)
        if self._closing:
            return
        wire.on_gone(task.cancel, after_input=True)
        try:
            await hijack.run(HijackedConnection(wire, early))
        except (DockerError, grpc.aio.AioRpcError) as error:
            log.warning("a raw stream ended early: %s", error)
        wire.on_gone(None)
        await wire.finish()

    def _headers(self, extra: dict[str, str], *, close: bool = False) -> list[tuple[str, str]]:
        headers = [*self._common_headers, ("Date", formatdate(usegmt=True)), *extra.items()]
        if close or self._closing:
            headers.append(("Connection", "close"))
        return headers


def _request(head: h11.Request, body: AsyncIterator[bytes], caller: Callable[[], str]) -> Request:
    """Raises DockerError 400 for a path, query or version that cannot be served."""
    try:
        target = _ABSOLUTE.sub("", head.target.decode("ascii"))
        path, _, query = target.partition("?")
        path = unquote(path, errors="strict")
    except UnicodeDecodeError:
        raise DockerError(400, "the request's path is not UTF-8") from None
    if "\0" in path:
        raise DockerError(400, "the request's path holds a zero byte")
    version = MAX_VERSION
    if match := _VERSIONED.match(path):
        version = (int(match[1]), int(match[2]))
        path = path[match.end() :] or "/"
        _check_version(version)
    headers: dict[str, str] = {}
    for raw_name, raw_value in head.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Request(
        method=head.method.decode("ascii"),
        path=path,
        query=Query(query),
        headers=headers,
        api_version=version,
        caller=caller,
        body=body,
    )


def _check_version(version: tuple[int, int]) -> None:
    if version < MIN_VERSION:
        raise DockerError(
            400,
            f"client version {version_text(version)} is too old. Minimum supported API version is "
            f"{version_text(MIN_VERSION)}, please upgrade your client to a newer version",
        )
    if version > MAX_VERSION:
        raise DockerError(
            400,
            f"client version {version_text(version)} is too new. Maximum supported API version is "
            f"{version_text(MAX_VERSION)}",
        )


def version_text(version: tuple[int, int]) -> str:
    """(1, 50) as "1.50"."""
    return f"{version[0]}.{version[1]}"


def error_reply(error: DockerError) -> Reply:
    """An error in Docker's form."""
    return Reply(status=error.status, body={"message": error.message})


def _error_answer(error: Exception, head: h11.Request | None) -> Reply:
    """What a failed handler answers; a fault of ours is logged, and its text kept from the client."""
    if isinstance(error, grpc.aio.AioRpcError):
        error = from_rpc(error)
    if isinstance(error, DockerError):
        return error_reply(error)
    if isinstance(error, ConnectionError):
        raise error
    log.error("%s failed", head.target.decode("latin-1") if head else "a stream", exc_info=error)
    return error_reply(DockerError(500, f"internal error: {type(error).__name__}; the log of the personality has it"))


def _has_header(head: h11.Request, name: bytes) -> bool:
    return any(field == name for field, _ in head.headers)


@contextlib.asynccontextmanager
async def _closing(chunks: AsyncIterator[bytes]) -> AsyncIterator[None]:
    """Closes an iterator at the end, when it is one that can be closed."""
    try:
        yield
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
