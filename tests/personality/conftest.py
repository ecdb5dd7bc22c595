"""A personality in this process, served on a Unix socket, in front of a fake port layer.

Fixtures: `fake` (the port layer), `docker_socket` (path), `http` (an asynchronous client), `docker_client` (docker-py,
for code that runs in a thread by asyncio.to_thread).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import docker
import h11
import pytest
from fake_portlayer import FakePortLayer
from fake_state import PATIENCE_S

from personality.api.routes import PRODUCT, build_router
from personality.backend import Backend
from personality.http import wire
from personality.http.listeners import listening
from personality.http.server import Server


@dataclass
class Answer:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


@dataclass
class Hijacked:
    """A connection that has left HTTP."""

    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def frame(self) -> tuple[int, bytes]:
        """The next of Docker's frames: stream and data."""
        header = await self.reader.readexactly(8)
        return header[0], await self.reader.readexactly(int.from_bytes(header[4:], "big"))

    async def rest(self) -> bytes:
        """Everything to the end."""
        return await self.reader.read()


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """All of Docker's frames in `data`: stream and data of each."""
    found = []
    while data:
        stream, zeros, size = data[0], data[1:4], int.from_bytes(data[4:8], "big")
        assert zeros == bytes(3)
        assert len(data) >= 8 + size
        found.append((stream, data[8 : 8 + size]))
        data = data[8 + size :]
    return found


class HttpClient:
    """One request per connection, by h11; `raw` gives the connection itself."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.asynccontextmanager
    async def raw(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_unix_connection(self.path)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        body: object = None,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Sends `body` as JSON or `data` as it is; `filters` in the query is encoded as JSON."""
        fields = {"Host": "docker", **(headers or {})}
        if body is not None:
            data = json.dumps(body).encode()
            fields.setdefault("Content-Type", "application/json")
        if data is not None:
            fields.setdefault("Content-Length", str(len(data)))
        target = path
        if query:
            values = {key: json.dumps(value) if key == "filters" else value for key, value in query.items()}
            target += "?" + urlencode(values, doseq=True)
        connection = h11.Connection(h11.CLIENT)
        async with asyncio.timeout(PATIENCE_S), self.raw() as (reader, writer):
            writer.write(
                connection.send(h11.Request(method=method, target=target, headers=list(fields.items()))) or b""
            )
            if data:
                writer.write(connection.send(h11.Data(data=data)) or b"")
            writer.write(connection.send(h11.EndOfMessage()) or b"")
            return await _response(connection, reader)

    @contextlib.asynccontextmanager
    async def hijacked(self, target: str, *, body: object = None, upgrade: bool = True) -> AsyncIterator[Hijacked]:
        """A POST whose connection leaves HTTP."""
        data = b"" if body is None else json.dumps(body).encode()
        fields = [f"POST {target} HTTP/1.1", "Host: docker", f"Content-Length: {len(data)}"]
        if data:
            fields.append("Content-Type: application/json")
        if upgrade:
            fields += ["Connection: Upgrade", "Upgrade: tcp"]
        async with asyncio.timeout(PATIENCE_S), self.raw() as (reader, writer):
            writer.write("\r\n".join([*fields, "", ""]).encode() + data)
            status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            yield Hijacked(int(status_line.split()[1]), headers, reader, writer)

    async def get(self, path: str, **query: Any) -> Answer:
        return await self.request("GET", path, query=query)

    async def post(self, path: str, body: object = None, **query: Any) -> Answer:
        return await self.request("POST", path, query=query, body=body)

    async def delete(self, path: str, **query: Any) -> Answer:
        return await self.request("DELETE", path, query=query)


async def _response(connection: h11.Connection, reader: asyncio.StreamReader) -> Answer:
    answer = Answer(0, {}, b"")
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Response):
            answer.status = event.status_code
            answer.headers = {name.decode(): value.decode() for name, value in event.headers}
        elif isinstance(event, h11.Data):
            answer.body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return answer


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="vch-p-") as directory:
        yield Path(directory)


@pytest.fixture
async def fake(sockets: Path) -> AsyncIterator[FakePortLayer]:
    async with FakePortLayer.serving(sockets / "grpc.sock") as portlayer:
        yield portlayer


@pytest.fixture
async def server(fake: FakePortLayer, sockets: Path) -> AsyncIterator[Server]:
    async with Backend(f"unix://{sockets / 'grpc.sock'}") as backend:
        server = Server(build_router(), backend, product=PRODUCT)
        try:
            yield server
        finally:
            await server.close(grace_s=1)


@pytest.fixture
async def docker_socket(server: Server, sockets: Path) -> AsyncIterator[Path]:
    path = sockets / "docker.sock"
    async with listening(server, [f"unix://{path}"], None):
        yield path


@pytest.fixture(autouse=True)
def _patient_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long clients take for the last bytes, or to send what nobody reads, they are not cut off meanwhile."""
    monkeypatch.setattr(wire, "_LINGER_S", PATIENCE_S)


@pytest.fixture
def http(docker_socket: Path) -> HttpClient:
    return HttpClient(docker_socket)


@pytest.fixture
async def docker_client(docker_socket: Path) -> AsyncIterator[docker.DockerClient]:
    client = await asyncio.to_thread(docker.DockerClient, base_url=f"unix://{docker_socket}", version="auto")
    try:
        yield client
    finally:
        await asyncio.to_thread(client.close)
