"""Where the server listens: Unix sockets, TCP with mutual TLS, and the program around them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
import socket
import ssl
import stat
import sys
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import trustme
from conftest import HttpClient
from fake_portlayer import FakePortLayer
from fake_state import PATIENCE_S

from personality.backend import Backend
from personality.http.callers import printable, user_of
from personality.http.listeners import ListenError, listening
from personality.http.messages import Connection, Hijack, Reply, Request, Response
from personality.http.router import Route, Router
from personality.http.server import Server
from personality.http.tls import server_context


async def hello(request: Request, backend: Backend) -> Response:
    return Reply(body={"hello": "x" * request.query.integer("size")})


async def whoami(request: Request, backend: Backend) -> Response:
    return Reply(body={"caller": request.caller()})


async def raw(request: Request, backend: Backend) -> Response:
    async def run(connection: Connection) -> None:
        received = b""
        while data := await connection.read():
            received += data
        await connection.write(received)
        connection.write_eof()

    return Hijack(run)


async def raw_first_eof(heard: asyncio.Event, request: Request, backend: Backend) -> Response:
    async def run(connection: Connection) -> None:
        await connection.write(b"bye")
        connection.write_eof()
        received = b""
        while data := await connection.read():
            received += data
        assert received == b"still here"
        heard.set()

    return Hijack(run)


@pytest.fixture
async def heard() -> asyncio.Event:
    """Set when raw_first_eof has heard the client's last words."""
    return asyncio.Event()


@pytest.fixture
async def server(heard: asyncio.Event, sockets: Path) -> AsyncIterator[Server]:
    routes = [
        Route("GET", "/hello", hello),
        Route("GET", "/whoami", whoami),
        Route("POST", "/raw", raw),
        Route("POST", "/raw-first-eof", partial(raw_first_eof, heard)),
    ]
    async with Backend(f"unix://{sockets / 'grpc.sock'}") as backend:
        server = Server(Router(routes), backend, product="test")
        try:
            yield server
        finally:
            await server.close(grace_s=0.2)


async def test_the_socket_is_for_owner_and_group_and_goes_at_the_end(server: Server, sockets: Path) -> None:
    path = sockets / "new" / "d.sock"
    async with listening(server, [f"unix://{path}"], None):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert (await HttpClient(path).get("/hello")).status == 200
    assert not path.exists()


async def test_the_caller_on_a_socket_is_the_user_of_the_process(server: Server, sockets: Path) -> None:
    path = sockets / "d.sock"
    async with listening(server, [f"unix://{path}"], None):
        answer = await HttpClient(path).get("/whoami")
    assert answer.json() == {"caller": pwd.getpwuid(os.getuid()).pw_name}


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwuid", lambda user: {}[user])
    here, there = socket.socketpair()
    with here, there:
        assert user_of(here) == f"user {os.getuid()}"


def test_names_are_fit_to_be_shown() -> None:
    assert printable("Ann\n\x1b[1mof \u202eOps" + "x" * 999) == ("Ann[1mof Ops" + "x" * 999)[:256]


async def test_a_dead_socket_is_replaced(server: Server, sockets: Path) -> None:
    path = sockets / "d.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    async with listening(server, [f"unix://{path}"], None):
        assert (await HttpClient(path).get("/hello")).status == 200


async def test_a_live_socket_is_left_alone(server: Server, sockets: Path) -> None:
    path = sockets / "d.sock"
    async with listening(server, [f"unix://{path}"], None):
        with pytest.raises(ListenError, match="somebody serves on this socket already"):
            async with listening(server, [f"unix://{path}"], None):
                pass
        assert (await HttpClient(path).get("/hello")).status == 200


async def test_a_newer_servers_socket_stays(server: Server, sockets: Path) -> None:
    path = sockets / "d.sock"
    async with listening(server, [f"unix://{path}"], None):
        path.unlink()
        path.write_bytes(b"")
    assert path.exists()


async def test_a_file_in_the_way_is_left_alone(server: Server, sockets: Path) -> None:
    path = sockets / "file"
    path.write_text("precious")
    with pytest.raises(ListenError, match="not a socket"):
        async with listening(server, [f"unix://{path}"], None):
            pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("unix:///" + "x" * 200, "at most 107 bytes"),
        ("unix:///proc/d.sock", "cannot listen here"),
        ("tcp://127.0.0.1:2376", "mutual TLS only"),
        ("http://127.0.0.1", "an address is unix://PATH or tcp://ADDRESS:PORT"),
        ("/run/docker.sock", "an address is unix://PATH or tcp://ADDRESS:PORT"),
    ],
)
async def test_addresses_that_cannot_be_served(server: Server, host: str, message: str) -> None:
    with pytest.raises(ListenError, match=message):
        async with listening(server, [host], None):
            pass


@pytest.mark.parametrize("host", ["tcp://127.0.0.1", "tcp://:2376", "tcp://127.0.0.1:99999", "tcp://127.0.0.1:1/x"])
async def test_tcp_addresses_that_cannot_be_served(server: Server, host: str) -> None:
    with pytest.raises(ListenError):
        async with listening(server, [host], ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)):
            pass


# TLS.


CLIENT = "Anna of Ops"


class Pki:
    """An authority, the server's files, and contexts for clients."""

    def __init__(self, directory: Path) -> None:
        self.authority = trustme.CA()
        self.ca, self.cert, self.key = (directory / name for name in ("ca.pem", "cert.pem", "key.pem"))
        self.authority.cert_pem.write_to_path(self.ca)
        server = self.authority.issue_cert("127.0.0.1")
        server.cert_chain_pems[0].write_to_path(self.cert)
        server.private_key_pem.write_to_path(self.key)

    def client(self, signed_by: trustme.CA | None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if signed_by is not None:
            signed_by.issue_cert("client@example.org", common_name=CLIENT).configure_cert(context)
        return context


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


@pytest.fixture
async def port(server: Server, pki: Pki) -> AsyncIterator[int]:
    with socket.socket() as reserved:
        # Nobody else is given a port that is bound; the server may bind it as well, since this does not listen.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port: int = reserved.getsockname()[1]
        async with listening(server, [f"tcp://127.0.0.1:{port}"], server_context(pki.ca, pki.cert, pki.key)):
            yield port


async def test_the_caller_over_tls_is_the_name_in_the_certificate(port: int, pki: Pki) -> None:
    answer = await _tls_request(port, pki.client(pki.authority), "/whoami")
    assert answer.endswith(b'{"caller":"Anna of Ops"}\n')


async def _tls_request(port: int, context: ssl.SSLContext, path: str = "/hello?size=1") -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n".encode())
            return await reader.read()
        finally:
            writer.transport.abort()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_with_a_certificate(port: int, pki: Pki, version: ssl.TLSVersion) -> None:
    context = pki.client(pki.authority)
    context.minimum_version = context.maximum_version = version
    response = await _tls_request(port, context, "/hello?size=3000000")
    assert response.startswith(b"HTTP/1.1 200 ")
    assert response.count(b"x") >= 3_000_000


async def test_tls_without_or_with_a_foreign_certificate(port: int, pki: Pki) -> None:
    for context in (pki.client(None), pki.client(trustme.CA())):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await _tls_request(port, context)
    assert (await _tls_request(port, pki.client(pki.authority))).startswith(b"HTTP/1.1 200 ")


async def test_plain_http_on_the_tls_port(port: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /hello HTTP/1.1\r\nHost: d\r\n\r\n")
        assert b"HTTP/1.1 200" not in await reader.read()
        writer.close()
        await writer.wait_closed()


class TlsClient:
    """A blocking client that can half-close TLS, as Go's can: ssl's memory buffers on a socket."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="127.0.0.1")
        self._loop(self.tls.do_handshake)

    def _loop(self, step: object) -> object:
        while True:
            try:
                result = step()  # type: ignore[operator]
            except ssl.SSLWantReadError:
                self.flush()
                self._receive()
                continue
            self.flush()
            return result

    def _receive(self) -> None:
        data = self.socket.recv(65536)
        self.incoming.write(data) if data else self.incoming.write_eof()

    def flush(self) -> None:
        self.socket.sendall(self.outgoing.read())

    def write(self, data: bytes) -> None:
        self.tls.write(data)
        self.flush()

    def close_write(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        self.flush()

    def read_to_end(self) -> bytes:
        received = b""
        while True:
            try:
                data = self._loop(lambda: self.tls.read(65536))
            except ssl.SSLZeroReturnError:
                return received
            if not data:
                return received
            assert isinstance(data, bytes)
            received += data


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_half_close_over_tls(port: int, pki: Pki, version: ssl.TLSVersion) -> None:
    context = pki.client(pki.authority)
    context.minimum_version = context.maximum_version = version

    def talk() -> bytes:
        client = TlsClient(port, context)
        with client.socket:
            client.write(b"POST /raw HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nearly,")
            client.write(b"late")
            client.close_write()
            return client.read_to_end()

    response = await asyncio.to_thread(talk)
    assert response.startswith(b"HTTP/1.1 101 UPGRADED\r\n")
    assert response.endswith(b"\r\n\r\nearly,late")


async def test_half_close_by_the_server_over_tls(port: int, pki: Pki, heard: asyncio.Event) -> None:
    context = pki.client(pki.authority)

    def talk() -> bytes:
        client = TlsClient(port, context)
        with client.socket:
            client.write(b"POST /raw-first-eof HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
            received = client.read_to_end()
            client.write(b"still here")
            client.close_write()
            return received

    assert (await asyncio.to_thread(talk)).endswith(b"bye")
    await asyncio.wait_for(heard.wait(), PATIENCE_S)


# The program.


async def _program(
    *arguments: str, under: Sequence[str] = (), pass_fds: Sequence[int] = ()
) -> asyncio.subprocess.Process:
    """Starts the personality; `under` is a command that starts it in turn."""
    return await asyncio.create_subprocess_exec(
        *under,
        *(sys.executable, "-m", "personality.main", *arguments),
        stderr=asyncio.subprocess.PIPE,
        pass_fds=pass_fds,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_program_serves_and_ends_in_order(fake: FakePortLayer, sockets: Path, number: signal.Signals) -> None:
    path = sockets / "d.sock"
    ready, ready_write = os.pipe()
    program = await _program(
        *("--grpc", f"unix://{sockets / 'grpc.sock'}", "--host", f"unix://{path}", "--ready-fd", str(ready_write)),
        pass_fds=[ready_write],
    )
    os.close(ready_write)
    with os.fdopen(ready, "rb") as pipe:
        assert await asyncio.to_thread(pipe.read) == b"ready\n"
    assert (await HttpClient(path).get("/_ping")).body == b"OK"
    assert (await HttpClient(path).get("/v1.50/version")).json()["ApiVersion"] == "1.50"
    program.send_signal(number)
    _, errors = await asyncio.wait_for(program.communicate(), PATIENCE_S)
    assert program.returncode == 0, errors
    assert b"Traceback" not in errors
    assert not path.exists()


async def test_the_program_without_a_port_layer(sockets: Path) -> None:
    path = sockets / "d.sock"
    ready, ready_write = os.pipe()
    program = await _program(
        *("--grpc", f"unix://{sockets / 'nobody.sock'}", "--host", f"unix://{path}", "--ready-fd", str(ready_write)),
        pass_fds=[ready_write],
    )
    os.close(ready_write)
    with os.fdopen(ready, "rb") as pipe:
        assert await asyncio.to_thread(pipe.read) == b"ready\n"
    assert (await HttpClient(path).get("/_ping")).status == 200
    answer = await HttpClient(path).get("/info")
    assert answer.status == 503
    assert "the port layer does not answer" in answer.json()["message"]
    program.terminate()
    await asyncio.wait_for(program.communicate(), PATIENCE_S)
    assert program.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "tcp://127.0.0.1:2376"], b"mutual TLS only"),
        (["--host", "tcp://127.0.0.1:2376", "--tlscert", __file__], b"go together"),
        (
            ["--host", "tcp://127.0.0.1:2376"]
            + [word for name in ("ca", "") for word in (f"--tls{name}cert", __file__)]
            + ["--tlskey", __file__],
            b"the TLS files cannot be used",
        ),
    ],
)
async def test_the_program_refuses(arguments: list[str], message: bytes) -> None:
    program = await _program("--grpc", "unix:///nowhere", *arguments)
    _, errors = await asyncio.wait_for(program.communicate(), PATIENCE_S)
    assert program.returncode != 0
    assert message in errors
    assert b"Traceback" not in errors


async def test_the_program_raises_its_limit_of_descriptors(fake: FakePortLayer, sockets: Path) -> None:
    path = sockets / "d.sock"
    ready, ready_write = os.pipe()
    program = await _program(
        *("--grpc", f"unix://{sockets / 'grpc.sock'}", "--host", f"unix://{path}", "--ready-fd", str(ready_write)),
        # Not by preexec_fn: Python between fork and exec is at the mercy of gRPC's threads and now and then dies there.
        under=("sh", "-c", 'ulimit -Sn 64; ulimit -Hn 1024; exec "$@"', "sh"),
        pass_fds=[ready_write],
    )
    os.close(ready_write)
    with os.fdopen(ready, "rb") as pipe:
        assert await asyncio.to_thread(pipe.read) == b"ready\n"
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(100):
            await stack.enter_async_context(HttpClient(path).raw())
        assert (await HttpClient(path).get("/_ping")).status == 200
    program.terminate()
    await asyncio.wait_for(program.communicate(), PATIENCE_S)
    assert program.returncode == 0
