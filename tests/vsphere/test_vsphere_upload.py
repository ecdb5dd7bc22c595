"""Files over HTTPS, with a server that answers whatever a test wants. With vcsim: test_vsphere_datastore."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from vsphere_simulator import HOST, Certificate

from portlayer import main
from portlayer.drivers.vsphere.endpoint import Endpoint
from portlayer.drivers.vsphere.upload import Content, Folder
from portlayer.errors import DriverError, ExhaustedError, NotFoundError

MIB = 1 << 20
DATACENTER, DATASTORE = "A folder/Düsseldorf & Köln", "data+store 1%2f2"
PATH = "vch/images/öne #1?&+%.vmdk"


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Server:
    """Gives the answers it was told, one for each request; each closes its connection."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.requests: list[Request] = []
        self._serving: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
            method, target, _ = lines[0].split(" ")
            headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines[1:])}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.requests.append(Request(method, target, headers, body))
            writer.write(self.answers.pop(0))
            await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def ended(self) -> None:
        """Returns when all connections are closed."""
        while self._serving:
            await asyncio.wait(self._serving)


def reply(status: str, body: bytes = b"", length: int | None = None, *more: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *more]
    return "\r\n".join([*head, "Connection: close", "", ""]).encode() + body


OK, CREATED = "200 OK", "201 Created"


class FakeSession:
    """What an upload asks of a session."""

    def __init__(self, port: int, tls: Any) -> None:
        self.endpoint = Endpoint(HOST, port)
        self.tls = tls
        self.cookie = 'vmware_soap_session="abc"'
        self.delays_s = (0.1, 0.2)
        self.content = SimpleNamespace(rootFolder="the root")
        self.pauses: list[float] = []
        self.reads: list[Any] = []

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def read(self, objects: Any, paths: Any) -> dict[Any, Any]:
        self.reads.append(objects)
        return {}

    def answering(self, what: str) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()


@pytest.fixture
async def server() -> Server:
    return Server()


@pytest.fixture
async def session(server: Server, tmp_path: Path) -> AsyncIterator[FakeSession]:
    certificate = Certificate(tmp_path)
    listening = await asyncio.start_server(server.serve, HOST, 0, ssl=certificate.server_context())
    async with listening:
        yield FakeSession(listening.sockets[0].getsockname()[1], certificate.client_context())
    await server.ended()


@pytest.fixture
async def folder(session: Any) -> AsyncIterator[Folder]:
    folder = Folder(session, DATACENTER, DATASTORE)
    yield folder
    await folder.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(2 * MIB + 5))
    return path


async def test_what_is_sent(server: Server, folder: Folder, source: Path) -> None:
    content = source.read_bytes() + bytes(MIB - 5)
    server.answers = [reply(CREATED), reply(OK, length=3 * MIB)]
    told: list[int] = []
    checksum = await folder.put(PATH, Content(source, 3 * MIB), on_progress=told.append)
    put, head = server.requests
    assert (put.method, head.method) == ("PUT", "HEAD")
    assert put.body == content
    assert checksum == hashlib.sha256(content).hexdigest()
    assert told == [0, MIB, 2 * MIB, 3 * MIB]
    for request in (put, head):
        parts = urlsplit(request.target)
        assert unquote(parts.path) == f"/folder/{PATH}"
        assert parse_qs(parts.query) == {"dcPath": [DATACENTER], "dsName": [DATASTORE]}
        assert request.headers["cookie"] == 'vmware_soap_session="abc"'


async def test_delays_grow_and_the_session_is_renewed(
    server: Server, session: FakeSession, folder: Folder, source: Path
) -> None:
    server.answers = [reply("401 Unauthorized"), reply("503 Busy"), reply(OK), reply(OK, length=MIB)]
    told: list[int] = []
    await folder.put(PATH, Content(source, MIB), on_progress=told.append)
    assert session.pauses == [0.1, 0.2]
    assert session.reads == [["the root"], ["the root"]]
    assert told == [0, MIB] * 3


async def test_the_last_reason_is_told(server: Server, folder: Folder) -> None:
    page = b"<html><h1>vpxd is\n starting</h1>" + b"x" * 100_000
    server.answers = [reply("503 Service Unavailable", page)] * 3
    with pytest.raises(DriverError) as raised:
        await folder.read(PATH, 0, 10)
    assert f"reading {PATH}: HTTP 503 Service Unavailable vpxd is starting xxx" in str(raised.value)
    assert len(str(raised.value)) < 700


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (reply("507 Insufficient Storage"), ExhaustedError, "full"),
        (reply("500 Error", b"Insufficient disk space on datastore"), ExhaustedError, "full"),
        (reply("403 Forbidden"), DriverError, "Datastore.FileManagement"),
        (reply("404 Not Found"), NotFoundError, "no such"),
        (reply("302 Found", b"", None, "Location: https://elsewhere/"), DriverError, "HTTP 302 Found"),
        (reply("400 Bad Request", b"no"), DriverError, "HTTP 400 Bad Request no"),
    ],
)
async def test_refusals_that_stay(
    server: Server,
    session: FakeSession,
    folder: Folder,
    source: Path,
    answer: bytes,
    error: type[Exception],
    words: str,
) -> None:
    server.answers = [answer]
    with pytest.raises(error, match=words):
        await folder.put(PATH, Content(source, 100))
    assert not session.pauses


async def test_read_back_goes_on_where_it_broke_off(server: Server, folder: Folder) -> None:
    content = os.urandom(3 * MIB)
    part = "206 Partial Content"
    server.answers = [
        reply(OK, content[:MIB], len(content)),
        reply(part, content[MIB : 2 * MIB], 2 * MIB),
        reply(part, content[2 * MIB :]),
    ]
    assert await folder.sha256(PATH) == hashlib.sha256(content).hexdigest()
    assert [request.headers.get("range") for request in server.requests] == [
        None,
        f"bytes={MIB}-",
        f"bytes={2 * MIB}-",
    ]


async def test_break_behind_the_last_byte(server: Server, folder: Folder) -> None:
    """All has come, but the end of the answer has not."""
    chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n"
    server.answers = [chunk, reply("416 Range Not Satisfiable")]
    assert await folder.sha256(PATH) == hashlib.sha256(b"12345").hexdigest()


async def test_empty_file(server: Server, folder: Folder) -> None:
    server.answers = [reply("416 Range Not Satisfiable"), reply(OK)]
    assert await folder.read(PATH, 0, 10) == b""
    assert await folder.sha256(PATH) == hashlib.sha256().hexdigest()


async def test_server_without_ranges(server: Server, folder: Folder) -> None:
    server.answers = [reply(OK, b"123", 5), reply(OK, b"12345"), reply(OK, b"12345")]
    with pytest.raises(DriverError, match="parts of files"):
        await folder.sha256(PATH)
    with pytest.raises(DriverError, match="parts of files"):
        await folder.read(PATH, 2, 2)


async def test_parts(server: Server, folder: Folder) -> None:
    server.answers = [
        reply("206 Partial Content", b"23"),
        reply(OK, b"0123456789" * 1000),  # more than was asked for
        reply("416 Range Not Satisfiable"),
    ]
    assert await folder.read(PATH, 2, 2) == b"23"
    assert await folder.read(PATH, 0, 3) == b"012"
    assert await folder.read(PATH, 10, 3) == b""
    assert server.requests[0].headers["range"] == "bytes=2-3"


@pytest.mark.parametrize("length", ["", "Content-Length: -1", "Content-Length: 1e3"])
async def test_sizes_are_checked(server: Server, folder: Folder, length: str) -> None:
    server.answers = [f"HTTP/1.1 200 OK\r\n{length}\r\n\r\n".replace("\r\n\r\n\r\n", "\r\n\r\n").encode()] * 3
    with pytest.raises(DriverError):
        await folder.size(PATH)


async def test_size(server: Server, folder: Folder) -> None:
    server.answers = [reply(OK, length=5 << 40), reply("404 Not Found")]
    assert await folder.size(PATH) == 5 << 40
    assert await folder.size(PATH) is None


async def test_another_certificate_is_not_tried_again(
    server: Server, session: FakeSession, tmp_path: Path, source: Path
) -> None:
    (other := tmp_path / "other").mkdir()
    session.tls = Certificate(other).client_context()
    folder = Folder(session, DATACENTER, DATASTORE)  # type: ignore[arg-type]
    try:
        with pytest.raises(DriverError, match="certificate"):
            await folder.put(PATH, Content(source, 100))
    finally:
        await folder.close()
    assert not session.pauses
    assert not server.requests


async def test_source_that_is_gone(server: Server, folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="No such file"):
        await folder.put(PATH, Content(tmp_path / "gone", 100))


async def test_no_cookie_of_a_session_is_in_a_log(
    server: Server, folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is said of requests by those who make them, `--log-level debug` included."""
    caplog.set_level(logging.DEBUG)
    main.quieten()
    server.answers = [reply(OK, b"", 5, 'Set-Cookie: vmware_soap_session="of the answer"')]
    await folder.size(PATH)
    assert "of the answer" not in caplog.text
    assert "abc" not in caplog.text
