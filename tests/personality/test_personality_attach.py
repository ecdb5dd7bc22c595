"""Containers' streams: attach, with its connection out of HTTP, and logs."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import openapi
import pytest
from conftest import HttpClient, frames
from fake_portlayer import FakePortLayer
from fake_process import STDERR, STDOUT, FakeProcess, Script
from fake_state import PATIENCE_S

from personality.api import streams

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
EVERYTHING = "stream=1&stdin=1&stdout=1&stderr=1"


@pytest.fixture(autouse=True)
def _image(fake: FakePortLayer) -> None:
    fake.add_image("busybox:latest")
    fake.scripts["box"] = Script(forever=True)


async def _run(http: HttpClient, fake: FakePortLayer, script: Script | None = None, **body: Any) -> FakeProcess:
    """A running container named "box"."""
    if script is not None:
        fake.scripts["box"] = script
    await http.post("/containers/create", {"Image": "busybox", **body}, name="box")
    assert (await http.post("/containers/box/start")).status == 204
    return next(iter(fake.processes.values()))


async def _stdin(process: FakeProcess, expected: bytes) -> None:
    async with asyncio.timeout(PATIENCE_S), process.changed:
        await process.changed.wait_for(lambda: bytes(process.stdin) == expected)


@pytest.mark.parametrize("upgrade", [True, False])
@pytest.mark.parametrize(
    ("version", "terminal", "content_type"),
    [("", False, MULTIPLEXED), ("/v1.42", False, MULTIPLEXED), ("/v1.41", False, RAW), ("", True, RAW)],
)
async def test_attach(
    http: HttpClient, fake: FakePortLayer, upgrade: bool, version: str, terminal: bool, content_type: str
) -> None:
    process = await _run(http, fake, Tty=terminal)
    async with http.hijacked(f"{version}/containers/box/attach?{EVERYTHING}", upgrade=upgrade) as stream:
        assert stream.status == (101 if upgrade else 200)
        assert stream.headers["content-type"] == content_type
        assert stream.headers.get("upgrade") == ("tcp" if upgrade else None)
        await process.emit(STDOUT, b"out")
        await process.emit(STDERR, b"\x00\xff")
        await process.end(0)
        rest = await stream.rest()
    assert rest == b"out\x00\xff" if terminal else frames(rest) == [(1, b"out"), (2, b"\x00\xff")]


@pytest.mark.parametrize(
    ("query", "expected"),
    [("stdout=1", [(1, b"o")]), ("stderr=1", [(2, b"e")]), ("stdout=1&stderr=1", [(1, b"o"), (2, b"e")]), ("", [])],
)
async def test_attach_to_some_streams(
    http: HttpClient, fake: FakePortLayer, query: str, expected: list[tuple[int, bytes]]
) -> None:
    process = await _run(http, fake)
    async with http.hijacked(f"/containers/box/attach?stream=1&{query}") as stream:
        await process.emit(STDOUT, b"o")
        await process.emit(STDERR, b"e")
        await process.end(0)
        assert frames(await stream.rest()) == expected


async def test_attach_says_what_it_asks_for(http: HttpClient, fake: FakePortLayer) -> None:
    process = await _run(http, fake)
    identity = next(iter(fake.containers))
    for query, expected in (
        (EVERYTHING, (True, True, True, False, True)),
        ("logs=1&stdout=1", (False, True, False, True, False)),
        ("logs=true&stream=true&stderr=true&stdin=false", (False, False, True, True, True)),
    ):
        async with http.hijacked(f"/containers/box/attach?{query}"):
            request = fake.request("Attach")
        assert (request.stdin, request.stdout, request.stderr, request.logs, request.stream) == expected
        assert request.container == identity
    await process.end(0)


async def test_attach_before_the_start_misses_nothing(http: HttpClient, fake: FakePortLayer) -> None:
    fake.scripts["box"] = Script(stdout=b"first words\n", exit_code=0)
    await http.post("/containers/create", {"Image": "busybox"}, name="box")
    async with http.hijacked(f"/containers/box/attach?{EVERYTHING}") as stream:
        await http.post("/containers/box/start")
        assert frames(await stream.rest()) == [(1, b"first words\n")]


@pytest.mark.parametrize("upgrade", [True, False])
async def test_half_close_ends_stdin_alone(http: HttpClient, fake: FakePortLayer, upgrade: bool) -> None:
    process = await _run(http, fake, OpenStdin=True, StdinOnce=True)
    async with http.hijacked(f"/containers/box/attach?{EVERYTHING}", upgrade=upgrade) as stream:
        stream.writer.write(b"all of it")
        stream.writer.write_eof()
        await _stdin(process, b"all of it")
        async with process.changed:
            await process.changed.wait_for(lambda: process.stdin_closed)
        await process.emit(STDOUT, b"still talking")
        assert await stream.frame() == (1, b"still talking")
        await process.end(0)
        assert await stream.rest() == b""


async def test_input_larger_than_a_message(http: HttpClient, fake: FakePortLayer) -> None:
    await _run(http, fake, Script(echo=True), OpenStdin=True)
    data = bytes(range(256)) * 12_000  # 3 MB
    async with http.hijacked(f"/containers/box/attach?{EVERYTHING}") as stream:
        stream.writer.write(data)
        stream.writer.write_eof()
        received = frames(await stream.rest())
    assert b"".join(each for _, each in received) == data


@pytest.mark.parametrize(
    ("query", "typed", "passed"),
    [
        ("", [b"abc\x10\x11"], b"abc"),
        ("", [b"a\x10", b"\x11"], b"a"),
        ("&detachKeys=ctrl-a,d", [b"\x10\x11\x01d"], b"\x10\x11"),
        ("&detachKeys=x", [b"abx"], b"ab"),
    ],
)
async def test_detach_keys(
    http: HttpClient, fake: FakePortLayer, query: str, typed: list[bytes], passed: bytes
) -> None:
    process = await _run(http, fake, Tty=True, OpenStdin=True)
    async with http.hijacked(f"/containers/box/attach?{EVERYTHING}{query}") as stream:
        for part in typed:
            stream.writer.write(part)
            await _stdin(process, passed)
        assert await stream.rest() == b""
    assert bytes(process.stdin) == passed
    assert not process.stdin_closed
    assert process.exit_code is None


async def test_a_process_that_reads_nothing_does_not_keep_a_client_that_detaches(
    http: HttpClient, fake: FakePortLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_LAST_INPUT_S", 0.05)
    process = await _run(http, fake, Tty=True, OpenStdin=True)
    monkeypatch.setattr(process, "feed", lambda data: asyncio.Event().wait())
    async with http.hijacked(f"/containers/box/attach?{EVERYTHING}") as stream:
        stream.writer.write(b"abc\x10\x11")
        assert await stream.rest() == b""
    await fake.until_cancelled("Attach")


async def test_detach_keys_need_a_terminal(http: HttpClient, fake: FakePortLayer) -> None:
    process = await _run(http, fake, OpenStdin=True)
    async with http.hijacked(f"/containers/box/attach?{EVERYTHING}") as stream:
        stream.writer.write(b"\x10\x11")
        await _stdin(process, b"\x10\x11")
        await process.end(0)
        assert await stream.rest() == b""


async def test_the_beginning_of_the_detach_keys_is_passed_on(http: HttpClient, fake: FakePortLayer) -> None:
    process = await _run(http, fake, Tty=True, OpenStdin=True)
    async with http.hijacked(f"/containers/box/attach?{EVERYTHING}") as stream:
        stream.writer.write(b"\x10\x10x")
        await _stdin(process, b"\x10\x10x")
    await fake.until_cancelled("Attach")


@pytest.mark.parametrize("keys", ["ctrl-", "ctrl-ab", "ab", "ctrl-p,,", "é"])
async def test_broken_detach_keys(http: HttpClient, fake: FakePortLayer, keys: str) -> None:
    await _run(http, fake)
    answer = await http.post("/containers/box/attach", stream="1", detachKeys=keys)
    assert answer.status == 400
    assert "Unknown character" in answer.json()["message"]


async def test_attach_that_is_refused_is_an_ordinary_answer(http: HttpClient, fake: FakePortLayer) -> None:
    await _run(http, fake)
    fake.fail("Attach", grpc.StatusCode.FAILED_PRECONDITION, "container is paused")
    async with http.hijacked("/containers/box/attach?stream=1&stdout=1") as stream:
        assert (stream.status, stream.headers["content-type"]) == (409, "application/json")
        assert await stream.reader.readline() == b'{"message":"container is paused"}\n'


@pytest.mark.parametrize("half_close_first", [True, False])
async def test_a_client_that_vanishes_ends_the_attachment(
    http: HttpClient, fake: FakePortLayer, half_close_first: bool
) -> None:
    process = await _run(http, fake, OpenStdin=True)
    async with http.hijacked(f"/containers/box/attach?{EVERYTHING}") as stream:
        if half_close_first:
            stream.writer.write_eof()
            async with process.changed:
                await process.changed.wait_for(lambda: process.stdin_closed)
        assert "Attach" not in fake.cancelled
    await fake.until_cancelled("Attach")
    assert process.exit_code is None


async def test_clients_attached_at_once_see_the_same(http: HttpClient, fake: FakePortLayer) -> None:
    process = await _run(http, fake)
    async with (
        http.hijacked("/containers/box/attach?stream=1&stdout=1") as one,
        http.hijacked("/containers/box/attach?stream=1&stdout=1") as two,
    ):
        await process.emit(STDOUT, b"for all")
        assert await one.frame() == await two.frame() == (1, b"for all")
        await process.end(0)


# Logs.


async def test_logs(http: HttpClient, fake: FakePortLayer) -> None:
    process = await _run(http, fake, Script(stdout=b"a\nb\n", stderr=b"c\n"))
    await process.ended()
    answer = await http.get("/containers/box/logs", stdout="1", stderr="1")
    openapi.validate("/containers/{id}/logs", "GET", answer.status, answer.body.decode("latin-1"))
    assert answer.headers["content-type"] == MULTIPLEXED
    assert frames(answer.body) == [(1, b"a\nb\n"), (2, b"c\n")]
    assert frames((await http.get("/containers/box/logs", stderr="1")).body) == [(2, b"c\n")]
    assert (await http.get("/v1.41/containers/box/logs", stderr="1")).headers["content-type"] == RAW
    stamped = (await http.get("/containers/box/logs", stdout="1", timestamps="1")).body
    assert frames(stamped)[0][1].startswith(b"2026-01-02T03:04:05.000000006Z a\n")


async def test_logs_of_a_terminal_are_raw(http: HttpClient, fake: FakePortLayer) -> None:
    await (await _run(http, fake, Script(stdout=b"a\r\n"), Tty=True)).ended()
    answer = await http.get("/containers/box/logs", stdout="1")
    assert (answer.headers["content-type"], answer.body) == (RAW, b"a\r\n")


async def test_logs_of_what_never_ran(http: HttpClient) -> None:
    await http.post("/containers/create", {"Image": "busybox"}, name="idle")
    answer = await http.get("/containers/idle/logs", stdout="1")
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize(
    ("query", "since_ns", "until_ns", "tail"),
    [
        ({}, 0, 0, None),
        ({"since": "0", "until": "0", "tail": "all"}, 0, 0, None),
        ({"since": "10.5", "until": "20", "tail": "5"}, 10_500_000_000, 20_000_000_000, 5),
        ({"since": "1970-01-01T00:00:01Z", "tail": "0"}, 1_000_000_000, 0, 0),
        ({"since": "-5", "tail": "-1"}, 0, 0, None),
        ({"since": "999999999999", "tail": "x"}, (1 << 63) - 1, 0, None),
        ({"until": "9000-01-01", "tail": "9" * 100}, 0, (1 << 63) - 1, None),
    ],
)
async def test_which_logs(
    http: HttpClient, fake: FakePortLayer, query: dict[str, str], since_ns: int, until_ns: int, tail: int | None
) -> None:
    await _run(http, fake)
    assert (await http.get("/containers/box/logs", stdout="1", **query)).status == 200
    request = fake.request("ReadLogs")
    assert (request.since_unix_ns, request.until_unix_ns) == (since_ns, until_ns)
    assert (request.tail if request.HasField("tail") else None) == tail
    assert (request.stdout, request.stderr, request.follow, request.timestamps) == (True, False, False, False)


async def test_logs_since_a_while_ago(http: HttpClient, fake: FakePortLayer) -> None:
    await _run(http, fake)
    before = time.time_ns()
    await http.get("/containers/box/logs", stdout="1", since="10m")
    assert before <= fake.request("ReadLogs").since_unix_ns + 600 * 10**9 <= time.time_ns()


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ({}, 400, "you must choose at least one stream"),
        ({"stdout": "0", "stderr": "false"}, 400, "you must choose at least one stream"),
        ({"stdout": "1", "since": "x"}, 400, '"since"'),
        ({"stdout": "1", "until": "12:00"}, 400, '"until"'),
    ],
)
async def test_broken_log_queries(
    http: HttpClient, fake: FakePortLayer, query: dict[str, str], status: int, message: str
) -> None:
    await _run(http, fake)
    answer = await http.get("/containers/box/logs", **query)
    assert answer.status == status
    assert message in answer.json()["message"]


async def test_logs_that_are_not_kept(http: HttpClient, fake: FakePortLayer) -> None:
    await _run(http, fake, HostConfig={"LogConfig": {"Type": "none"}})
    answer = await http.get("/containers/box/logs", stdout="1")
    assert (answer.status, answer.json()["message"]) == (501, "configured logging driver does not support reading")


async def test_following_logs(http: HttpClient, fake: FakePortLayer) -> None:
    """Each piece comes at once; the end of the container is the end of the answer."""
    process = await _run(http, fake, Script(stdout=b"old\n", forever=True), Tty=True)
    async with asyncio.timeout(PATIENCE_S), http.raw() as (reader, writer):
        writer.write(b"GET /containers/box/logs?stdout=1&follow=1 HTTP/1.1\r\nHost: d\r\n\r\n")
        assert b"chunked" in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readuntil(b"old\n\r\n")
        await process.emit(STDOUT, b"new\n")
        assert await reader.readuntil(b"new\n\r\n")
        await process.end(0)
        assert await reader.readuntil(b"0\r\n\r\n") == b"0\r\n\r\n"


@pytest.mark.parametrize("half_close_first", [True, False])
async def test_a_follower_that_vanishes_ends_the_call(
    http: HttpClient, fake: FakePortLayer, half_close_first: bool
) -> None:
    await _run(http, fake)
    async with asyncio.timeout(PATIENCE_S):
        async with http.raw() as (reader, writer):
            writer.write(b"GET /containers/box/logs?stdout=1&follow=1 HTTP/1.1\r\nHost: d\r\n\r\n")
            if half_close_first:
                writer.write_eof()
            await reader.readuntil(b"\r\n\r\n")
            await fake.until_called("ReadLogs")
        await fake.until_cancelled("ReadLogs")


async def test_logs_that_break_off_do_not_look_whole(http: HttpClient, fake: FakePortLayer) -> None:
    await _run(http, fake)
    fake.fail("ReadLogs", grpc.StatusCode.DATA_LOSS, "the log is broken")
    async with asyncio.timeout(PATIENCE_S), http.raw() as (reader, writer):
        writer.write(b"GET /containers/box/logs?stdout=1 HTTP/1.1\r\nHost: d\r\n\r\n")
        answer = await reader.read()
    assert b" 500 " in answer.splitlines()[0] or not answer.endswith(b"0\r\n\r\n")
