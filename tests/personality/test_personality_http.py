"""The HTTP server: what well-behaved, clumsy and hostile clients get from it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from conftest import HttpClient
from fake_portlayer import FakePortLayer
from fake_state import PATIENCE_S

from personality.backend import Backend
from personality.errors import DockerError
from personality.http.exchange import Timeouts
from personality.http.listeners import listening
from personality.http.messages import Connection, Hijack, Reply, Request, Response, Stream
from personality.http.router import Route, Router
from personality.http.server import Server


class Endpoints:
    """Handlers that show what the server does with their answers."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.received: list[bytes] = []
        self.hijack_ended = asyncio.Event()
        self.sent = 0

    async def wait(self, request: Request, backend: Backend) -> Response:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError

    async def endless(self, request: Request, backend: Backend) -> Response:
        return Stream(self._endless(silent=request.query.flag("silent")))

    async def _endless(self, *, silent: bool) -> AsyncIterator[bytes]:
        try:
            yield b""
            self.started.set()
            while silent:
                await asyncio.Event().wait()
            while True:
                yield b"x" * 65536
                self.sent += 65536
        finally:
            self.cancelled.set()

    async def fails(self, request: Request, backend: Backend) -> Response:
        if request.query.flag("late"):
            return Stream(self._fails(after=request.query.flag("after")))
        raise ValueError("a secret")

    async def _fails(self, *, after: bool) -> AsyncIterator[bytes]:
        if after:
            yield b"a piece"
        raise DockerError(409, "no more")

    async def upload(self, request: Request, backend: Backend) -> Response:
        if request.query.flag("refuse"):
            raise DockerError(403, "not wanted")
        size = 0
        async for chunk in request.chunks():
            size += len(chunk)
        return Reply(body={"size": size})

    async def decode(self, request: Request, backend: Backend) -> Response:
        return Reply(body=await request.decode(dict[str, int]))

    async def raw(self, request: Request, backend: Backend) -> Response:
        await request.read()
        return Hijack(self._raw)

    async def _raw(self, connection: Connection) -> None:
        """Gives everything back at the client's end."""
        try:
            await connection.write(b"hello ")
            while data := await connection.read():
                self.received.append(data)
            await connection.write(b"".join(self.received))
            connection.write_eof()
        finally:
            self.hijack_ended.set()

    async def raw_first_eof(self, request: Request, backend: Backend) -> Response:
        return Hijack(self._raw_first_eof)

    async def _raw_first_eof(self, connection: Connection) -> None:
        await connection.write(b"bye")
        connection.write_eof()
        while data := await connection.read():
            self.received.append(data)
        self.hijack_ended.set()

    async def raw_silent(self, request: Request, backend: Backend) -> Response:
        return Hijack(self._raw_silent)

    async def _raw_silent(self, connection: Connection) -> None:
        while data := await connection.read():
            self.received.append(data)
        try:
            await asyncio.Event().wait()
        finally:
            self.hijack_ended.set()

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/wait", self.wait),
            Route("GET", "/endless", self.endless),
            Route("GET", "/fails", self.fails),
            Route("POST", "/upload", self.upload),
            Route("POST", "/decode", self.decode),
            Route("POST", "/raw", self.raw),
            Route("POST", "/raw-first-eof", self.raw_first_eof),
            Route("POST", "/raw-silent", self.raw_silent),
        ]


@pytest.fixture
async def endpoints() -> Endpoints:
    return Endpoints()


@pytest.fixture
def timeouts() -> Timeouts:
    return Timeouts()


# For tests of a head that never comes to its end; of others nobody knows how long they take here.
impatient = pytest.mark.parametrize("timeouts", [Timeouts(head_s=0.3)], ids=["impatient"])


@pytest.fixture
async def server(endpoints: Endpoints, timeouts: Timeouts, fake: FakePortLayer, sockets: Path) -> AsyncIterator[Server]:
    async with Backend(f"unix://{sockets / 'grpc.sock'}") as backend:
        server = Server(Router(endpoints.routes()), backend, product="test", timeouts=timeouts)
        try:
            yield server
        finally:
            await server.close(grace_s=0.2)


async def _exchange(http: HttpClient, data: bytes, *, eof: bool = True) -> bytes:
    """All that the server sends back for `data`."""
    async with asyncio.timeout(PATIENCE_S), http.raw() as (reader, writer):
        writer.write(data)
        if eof:
            writer.write_eof()
        return await reader.read()


async def _turns() -> None:
    """Many turns of the event loop: what the server would do of itself, it has done by then."""
    for _ in range(1000):
        await asyncio.sleep(0)


def _split(response: bytes) -> tuple[bytes, bytes]:
    head, _, body = response.partition(b"\r\n\r\n")
    return head, body


async def test_unknown_path_and_wrong_method(http: HttpClient) -> None:
    answer = await http.get("/nowhere")
    assert (answer.status, answer.json()) == (404, {"message": "page not found"})
    answer = await http.post("/wait")
    assert answer.status == 405
    assert answer.headers["api-version"] == "1.50"
    assert answer.headers["docker-experimental"] == "false"
    assert answer.headers["ostype"] == "linux"
    assert answer.headers["server"] == "test"


@pytest.mark.parametrize("version", ["1.23", "1.99", "0.1", "2.0"])
async def test_versions_out_of_range(http: HttpClient, version: str) -> None:
    answer = await http.get(f"/v{version}/fails")
    assert answer.status == 400
    word = "too old. Minimum" if version < "1.24" else "too new. Maximum"
    assert answer.json()["message"].startswith(f"client version {version} is {word} supported API version is 1.")


@pytest.mark.parametrize("version", ["1.24", "1.50"])
async def test_versions_in_range(http: HttpClient, version: str) -> None:
    assert (await http.get(f"/v{version}/nowhere")).status == 404


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\nbroken header\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\r\n\r\n",
        b"POST /upload HTTP/1.1\r\nHost: d\r\nContent-Length: many\r\n\r\n",
        b"POST /upload HTTP/1.1\r\nHost: d\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"GET /half HTTP/1.1\r\nHost: d\r\n",
    ],
)
async def test_malformed_requests(http: HttpClient, data: bytes) -> None:
    head, body = _split(await _exchange(http, data))
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["message"].startswith("malformed request: ")


@pytest.mark.parametrize("size", [200_000, 3_000_000])
@pytest.mark.parametrize("whole", [True, False])
async def test_huge_headers(http: HttpClient, whole: bool, size: int) -> None:
    """The client sends far more than the server will read; it must see the answer, not a reset."""
    data = b"GET /wait HTTP/1.1\r\nHost: d\r\nX-Long: " + b"x" * size + (b"\r\n\r\n" if whole else b"")
    head, body = _split(await _exchange(http, data, eof=False))
    assert head.startswith(b"HTTP/1.1 431 ")
    assert "message" in json.loads(body)


@impatient
async def test_slow_headers(http: HttpClient) -> None:
    head, _ = _split(await _exchange(http, b"GET /wait HTTP/1.1\r\nHo", eof=False))
    assert head.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("target", [b"/%ff", b"/a%00b", b"/upload?x=%ff"])
async def test_targets_that_cannot_be_meant(http: HttpClient, target: bytes) -> None:
    head, _ = _split(await _exchange(http, b"GET " + target + b" HTTP/1.1\r\nHost: d\r\n\r\n"))
    assert head.startswith(b"HTTP/1.1 400 ")


async def test_a_half_closed_client_gets_its_answer(http: HttpClient) -> None:
    data = b"POST /upload HTTP/1.1\r\nHost: d\r\nContent-Length: 3\r\n\r\nabc"
    assert (await _exchange(http, data)).endswith(b'{"size":3}\n')


async def test_pipelined_requests_are_answered_in_order(http: HttpClient) -> None:
    one = b"POST /upload HTTP/1.1\r\nHost: d\r\nContent-Length: %d\r\n\r\n%s"
    data = b"".join(one % (size, b"x" * size) for size in (1, 70_000, 3)) + b"GET /nowhere HTTP/1.1\r\nHost: d\r\n\r\n"
    response = await _exchange(http, data)
    positions = [response.find(text) for text in (b'"size":1}', b'"size":70000}', b'"size":3}', b"page not found")]
    assert -1 not in positions
    assert positions == sorted(positions)


async def test_http_1_0(http: HttpClient) -> None:
    head, _ = _split(await _exchange(http, b"GET /nowhere HTTP/1.0\r\n\r\n", eof=False))
    assert b" 404 " in head


async def test_chunked_upload(http: HttpClient) -> None:
    data = b"POST /upload HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    assert (await _exchange(http, data)).endswith(b'{"size":5}\n')


@pytest.mark.parametrize(
    "data",
    [
        b"POST /upload HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"POST /upload HTTP/1.1\r\nHost: d\r\nContent-Length: 10\r\n\r\nabc",
    ],
)
async def test_broken_bodies(http: HttpClient, data: bytes) -> None:
    head, body = _split(await _exchange(http, data))
    assert head.startswith(b"HTTP/1.1 400 ")
    assert "body is broken" in json.loads(body)["message"]


async def test_a_client_that_waits_to_be_asked(http: HttpClient) -> None:
    head = b"POST /upload HTTP/1.1\r\nHost: d\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    async with asyncio.timeout(PATIENCE_S), http.raw() as (reader, writer):
        writer.write(head)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        writer.write(b"data")
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")


async def test_a_client_that_waits_to_be_asked_and_is_refused(http: HttpClient) -> None:
    head = b"POST /upload?refuse=1 HTTP/1.1\r\nHost: d\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    response, _ = _split(await _exchange(http, head, eof=False))
    assert response.startswith(b"HTTP/1.1 403 ")
    assert b"connection: close" in response.lower()


async def test_refused_upload_still_tells_why(http: HttpClient) -> None:
    """The client sends far more than the server will read; it must see the answer, not a reset."""
    answer = await http.request("POST", "/upload", query={"refuse": 1}, data=b"x" * 3_000_000)
    assert (answer.status, answer.json()) == (403, {"message": "not wanted"})


async def test_large_upload(http: HttpClient) -> None:
    answer = await http.request("POST", "/upload", data=bytes(20 << 20))
    assert answer.json() == {"size": 20 << 20}


@pytest.mark.parametrize(
    ("data", "content_type", "message"),
    [
        (b"{", "application/json", "invalid JSON"),
        (b'{"a": "x"}', "application/json", "invalid JSON"),
        (b"[" * 100_000, "application/json", "invalid JSON"),
        (b"{} {}", "application/json", "invalid JSON"),
        (b"\xff", "application/json", "invalid JSON"),
        (b"{}", "text/plain", "unsupported Content-Type header (text/plain): must be 'application/json'"),
        (b"{}", "", "malformed Content-Type header"),
    ],
)
async def test_bad_json(http: HttpClient, data: bytes, content_type: str, message: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    answer = await http.request("POST", "/decode", data=data, headers=headers)
    assert answer.status == 400
    assert answer.json()["message"].startswith(message)


async def test_good_json(http: HttpClient) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert (await http.request("POST", "/decode", data=b'{"a":1}', headers=headers)).json() == {"a": 1}
    assert (await http.request("POST", "/decode")).json() == {}


async def test_json_has_a_limit(http: HttpClient) -> None:
    answer = await http.request("POST", "/decode", data=b" " * (5 << 20), headers={"Content-Type": "application/json"})
    assert answer.status == 413


async def test_faults_do_not_show(http: HttpClient, caplog: pytest.LogCaptureFixture) -> None:
    answer = await http.get("/fails")
    assert answer.status == 500
    assert "secret" not in answer.json()["message"]
    assert "a secret" in caplog.text


async def test_a_stream_that_fails_at_once_is_an_ordinary_error(http: HttpClient) -> None:
    answer = await http.get("/fails", late=1)
    assert (answer.status, answer.json()) == (409, {"message": "no more"})


async def test_a_stream_that_fails_later_is_cut(http: HttpClient) -> None:
    response = await _exchange(http, b"GET /fails?late=1&after=1 HTTP/1.1\r\nHost: d\r\n\r\n")
    assert b"a piece" in response
    assert not response.endswith(b"0\r\n\r\n")


async def test_head_has_no_body(http: HttpClient, endpoints: Endpoints) -> None:
    data = b"HEAD /endless HTTP/1.1\r\nHost: d\r\n\r\nHEAD /nowhere HTTP/1.1\r\nHost: d\r\n\r\n"
    response = await _exchange(http, data)
    assert response.count(b"HTTP/1.1 ") == 2
    assert response.endswith(b"\r\n\r\n")
    assert not endpoints.started.is_set()


async def test_a_client_that_goes_while_a_handler_waits(http: HttpClient, endpoints: Endpoints) -> None:
    async with http.raw() as (_, writer):
        writer.write(b"GET /wait HTTP/1.1\r\nHost: d\r\n\r\n")
        await asyncio.wait_for(endpoints.started.wait(), PATIENCE_S)
    await asyncio.wait_for(endpoints.cancelled.wait(), PATIENCE_S)


async def test_a_client_that_half_closes_and_then_goes(http: HttpClient, endpoints: Endpoints) -> None:
    async with http.raw() as (_, writer):
        writer.write(b"GET /wait HTTP/1.1\r\nHost: d\r\n\r\n")
        writer.write_eof()
        await asyncio.wait_for(endpoints.started.wait(), PATIENCE_S)
        await _turns()
        assert not endpoints.cancelled.is_set()
    await asyncio.wait_for(endpoints.cancelled.wait(), PATIENCE_S)


@pytest.mark.parametrize("silent", [0, 1])
async def test_a_client_that_goes_while_a_stream_runs(http: HttpClient, endpoints: Endpoints, silent: int) -> None:
    async with http.raw() as (reader, writer):
        writer.write(b"GET /endless?silent=%d HTTP/1.1\r\nHost: d\r\n\r\n" % silent)
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        await asyncio.wait_for(endpoints.started.wait(), PATIENCE_S)
    await asyncio.wait_for(endpoints.cancelled.wait(), PATIENCE_S)


async def test_a_slow_reader_slows_the_stream(http: HttpClient, endpoints: Endpoints) -> None:
    _, writer = await asyncio.open_unix_connection(http.path, limit=1024)
    writer.write(b"GET /endless HTTP/1.1\r\nHost: d\r\n\r\n")
    await asyncio.wait_for(endpoints.started.wait(), PATIENCE_S)
    await _turns()
    assert endpoints.sent < 4 << 20
    writer.transport.abort()
    await asyncio.wait_for(endpoints.cancelled.wait(), PATIENCE_S)


@pytest.mark.parametrize("upgrade", [True, False])
async def test_hijack(http: HttpClient, upgrade: bool) -> None:
    """Early bytes are not lost, and after the client's half-close the server still writes."""
    fields = b"Connection: Upgrade\r\nUpgrade: tcp\r\n" if upgrade else b""
    async with asyncio.timeout(PATIENCE_S), http.raw() as (reader, writer):
        writer.write(b"POST /raw HTTP/1.1\r\nHost: d\r\n" + fields + b"Content-Length: 2\r\n\r\n{}early,")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 UPGRADED" if upgrade else b"HTTP/1.1 200 OK")
        assert b"Content-Type: application/vnd.docker.raw-stream\r\n" in head
        assert (b"Upgrade: tcp\r\n" in head) is upgrade
        assert await reader.readexactly(6) == b"hello "
        writer.write(b"late")
        writer.write_eof()
        assert await reader.read() == b"early,late"


async def test_hijack_with_everything_sent_at_once(http: HttpClient) -> None:
    data = b"POST /raw HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n" + b"x" * 1_000_000
    response = await _exchange(http, data)
    assert _split(response)[1] == b"hello " + b"x" * 1_000_000


async def test_hijack_where_the_server_ends_first(http: HttpClient, endpoints: Endpoints) -> None:
    async with asyncio.timeout(PATIENCE_S), http.raw() as (reader, writer):
        writer.write(b"POST /raw-first-eof HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
        assert (await reader.read()).endswith(b"bye")
        writer.write(b"still here")
        writer.write_eof()
        await endpoints.hijack_ended.wait()
    assert b"".join(endpoints.received) == b"still here"


@pytest.mark.parametrize("half_close_first", [True, False])
async def test_hijack_whose_client_goes(http: HttpClient, endpoints: Endpoints, half_close_first: bool) -> None:
    """The endpoint gets all that was sent, and ends although it has nothing to write."""
    async with http.raw() as (reader, writer):
        writer.write(b"POST /raw-silent HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        writer.write(b"last words")
        if half_close_first:
            writer.write_eof()
            await _turns()
            assert not endpoints.hijack_ended.is_set()
    await asyncio.wait_for(endpoints.hijack_ended.wait(), PATIENCE_S)
    assert endpoints.received == [b"last words"]


async def test_close_waits_for_what_ends_soon(fake: FakePortLayer, sockets: Path) -> None:
    release = asyncio.Event()
    started = asyncio.Event()

    async def slow(request: Request, backend: Backend) -> Response:
        started.set()
        await release.wait()
        return Reply(body={"done": True})

    async with Backend(f"unix://{sockets / 'grpc.sock'}") as backend:
        server = Server(Router([Route("GET", "/slow", slow)]), backend, product="test")
        http = HttpClient(sockets / "d.sock")
        async with listening(server, [f"unix://{http.path}"], None):
            request = asyncio.create_task(http.get("/slow"))
            await started.wait()
            async with http.raw() as (reader, _):
                closing = asyncio.create_task(server.close(grace_s=10 * PATIENCE_S))
                assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""  # an idle connection ends at once
            release.set()
            await asyncio.wait_for(closing, PATIENCE_S)
        answer = await request
    assert answer.json() == {"done": True}
    assert answer.headers["connection"] == "close"


async def test_close_cancels_the_rest(http: HttpClient, endpoints: Endpoints, server: Server) -> None:
    async with http.raw() as (reader, writer):
        writer.write(b"GET /wait HTTP/1.1\r\nHost: d\r\n\r\n")
        await asyncio.wait_for(endpoints.started.wait(), PATIENCE_S)
        await asyncio.wait_for(server.close(grace_s=0.05), PATIENCE_S)
        assert endpoints.cancelled.is_set()
        assert await reader.read() == b""


@pytest.mark.parametrize("data", [b"", b"a body"])
async def test_hijack_behind_a_body_without_upgrade(http: HttpClient, data: bytes) -> None:
    """The endpoint has read the body; the client says nothing more, and gets its stream."""
    head = b"POST /raw HTTP/1.1\r\nHost: d\r\nContent-Length: %d\r\n\r\n" % len(data)
    async with asyncio.timeout(PATIENCE_S), http.raw() as (reader, writer):
        writer.write(head + data)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        assert await reader.readexactly(6) == b"hello "
        writer.write(b"more")
        writer.write_eof()
        assert await reader.read() == b"more"


async def test_a_whole_url_as_target(http: HttpClient) -> None:
    response = await _exchange(http, b"POST http://docker:80/upload?refuse=1 HTTP/1.1\r\nHost: d\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert (await _exchange(http, b"GET http://docker HTTP/1.1\r\nHost: d\r\n\r\n")).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    "data",
    [
        b"POST /decode HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
        b"POST /upload HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"POST /upload HTTP/1.1\r\nHost: d\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 70_000,
        b"POST /upload HTTP/1.1\r\nHo",
        b"",
    ],
)
async def test_clients_that_vanish_in_mid_request_leave_nothing(http: HttpClient, server: Server, data: bytes) -> None:
    async with http.raw() as (_, writer):
        writer.write(data)
        await writer.drain()
        await _until(lambda: len(server._tasks) == 1)
    await _until(lambda: not server._tasks)


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.01)


@impatient
async def test_idle_and_slow_connections_are_in_nobodys_way(http: HttpClient, server: Server) -> None:
    """Those that sent half a head are cut off after a while; those that sent nothing may stay."""
    async with contextlib.AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(http.raw()) for _ in range(150)]
        slow = [await stack.enter_async_context(http.raw()) for _ in range(150)]
        for _, writer in slow:
            writer.write(b"GET /wait HTTP/1.1\r\nHost:")
        async with asyncio.timeout(PATIENCE_S):
            assert (await http.get("/nowhere")).status == 404
            for reader, _ in slow:
                assert (await reader.read()).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert len(server._tasks) >= 150
        reader, writer = idle[0]
        writer.write(b"GET /nowhere HTTP/1.1\r\nHost: d\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 404 Not Found\r\n"
    await _until(lambda: not server._tasks)


@pytest.mark.parametrize(
    "chunk",
    [b"-1\r\n", b"ffffffffffffffffffffff\r\nx", b"5;" + b"x" * 100_000, b"0x5\r\nhello\r\n", b"5\r\nhelloworld\r\n"],
)
async def test_chunks_that_are_none(http: HttpClient, chunk: bytes) -> None:
    head = b"POST /upload HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n"
    response = await _exchange(http, head + chunk)
    assert response.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert response.count(b"HTTP/1.1") == 1


async def test_length_and_chunks_at_once(http: HttpClient) -> None:
    """Which of the two counts must not be a matter of opinion: the rest would be somebody's next request."""
    head = b"POST /upload HTTP/1.1\r\nHost: d\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    response = await _exchange(http, head + b"0\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: d\r\n\r\n")
    assert response.count(b"HTTP/1.1") <= 2
    assert b'{"size":3}' not in response
