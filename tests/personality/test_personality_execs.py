"""Further processes in containers: made, run, inspected; and resource usage."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import docker
import grpc
import openapi
import pytest
from conftest import HttpClient, frames
from fake_portlayer import FakePortLayer
from fake_process import STDOUT, FakeProcess, Script
from fake_state import PATIENCE_S

from portlayer.v1 import execution_pb2

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
ALL = {"AttachStdin": True, "AttachStdout": True, "AttachStderr": True}


@pytest.fixture(autouse=True)
async def _box(http: HttpClient, fake: FakePortLayer) -> None:
    """A running container named "box"."""
    fake.add_image("busybox:latest")
    fake.scripts["box"] = Script(forever=True)
    await http.post("/containers/create", {"Image": "busybox"}, name="box")
    await http.post("/containers/box/start")


async def _prepare(http: HttpClient, **body: Any) -> str:
    answer = await http.post("/containers/box/exec", {"Cmd": ["sh"], **ALL, **body})
    openapi.validate("/containers/{id}/exec", "POST", answer.status, answer.json())
    assert answer.status == 201, answer.body
    return str(answer.json()["Id"])


async def _process(fake: FakePortLayer, identity: str) -> FakeProcess:
    await fake.until_called("AttachExec")
    async with asyncio.timeout(PATIENCE_S):
        while identity not in fake.exec_processes:
            await asyncio.sleep(0.01)
    return fake.exec_processes[identity]


async def test_create(http: HttpClient, fake: FakePortLayer) -> None:
    await _prepare(
        http,
        Cmd=["env", "-0"],
        Env=["A=b"],
        WorkingDir="/w",
        User="1:2",
        Tty=True,
        Privileged=True,
        ConsoleSize=[24, 80],
        DetachKeys="ctrl-a",
    )
    request = fake.request("CreateExec")
    spec = request.spec
    assert request.container == next(iter(fake.containers))
    assert (list(spec.args), list(spec.env), spec.working_dir, spec.user) == (["env", "-0"], ["A=b"], "/w", "1:2")
    assert (spec.terminal, spec.privileged, spec.attach_stdin) == (True, True, True)
    assert (spec.terminal_rows, spec.terminal_columns) == (24, 80)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "No exec command specified"),
        ({"Cmd": []}, 400, "No exec command specified"),
        ({"Cmd": 5}, 400, "$.Cmd"),
        ({"Cmd": ["x"], "Tty": "yes"}, 400, "$.Tty"),
        ({"Cmd": ["x"], "Env": "A=b"}, 400, "$.Env"),
        ({"Cmd": ["x"], "DetachKeys": "ctrl-"}, 400, "Unknown character"),
        ({"Cmd": ["x"], "ConsoleSize": [-1, 5]}, 400, "$.ConsoleSize"),
        ({"Cmd": ["x"], "ConsoleSize": [1 << 40, 5]}, 400, "$.ConsoleSize"),
    ],
)
async def test_create_what_cannot_be(
    http: HttpClient, fake: FakePortLayer, body: dict[str, Any], status: int, message: str
) -> None:
    answer = await http.post("/containers/box/exec", body)
    openapi.validate("/containers/{id}/exec", "POST", 404, answer.json())  # 400 has no schema of its own
    assert answer.status == status
    assert message in answer.json()["message"]
    assert not fake.execs


async def test_create_in_what_does_not_run(http: HttpClient) -> None:
    await http.post("/containers/box/kill")
    answer = await http.post("/containers/box/exec", {"Cmd": ["x"]})
    openapi.validate("/containers/{id}/exec", "POST", answer.status, answer.json())
    assert answer.status == 409
    assert (await http.post("/containers/nobody/exec", {"Cmd": ["x"]})).status == 404


@pytest.mark.parametrize("upgrade", [True, False])
@pytest.mark.parametrize(
    ("version", "terminal", "content_type"),
    [("", False, MULTIPLEXED), ("/v1.41", False, RAW), ("", True, RAW)],
)
async def test_start(
    http: HttpClient, fake: FakePortLayer, upgrade: bool, version: str, terminal: bool, content_type: str
) -> None:
    fake.scripts["sh"] = Script(stdout=b"out", stderr=b"err", exit_code=4)
    identity = await _prepare(http, Tty=terminal)
    target = f"{version}/exec/{identity}/start"
    async with http.hijacked(target, body={"Detach": False, "Tty": terminal}, upgrade=upgrade) as stream:
        assert stream.status == (101 if upgrade else 200)
        assert stream.headers["content-type"] == content_type
        rest = await stream.rest()
    assert rest == b"outerr" if terminal else frames(rest) == [(1, b"out"), (2, b"err")]
    # By then its exit code is known.
    assert (await http.get(f"/exec/{identity}/json")).json()["ExitCode"] == 4


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"AttachStdout": False}, [(2, b"err")]),
        ({"AttachStderr": False}, [(1, b"out")]),
        ({"AttachStdout": False, "AttachStderr": False}, []),
    ],
)
async def test_streams_that_are_not_attached(
    http: HttpClient, fake: FakePortLayer, wanted: dict[str, bool], expected: list[tuple[int, bytes]]
) -> None:
    fake.scripts["sh"] = Script(stdout=b"out", stderr=b"err")
    identity = await _prepare(http, **wanted)
    async with http.hijacked(f"/exec/{identity}/start", body={}) as stream:
        assert frames(await stream.rest()) == expected


async def test_input_and_half_close(http: HttpClient, fake: FakePortLayer) -> None:
    fake.scripts["cat"] = Script(echo=True)
    identity = await _prepare(http, Cmd=["cat"])
    async with http.hijacked(f"/exec/{identity}/start", body={}) as stream:
        stream.writer.write(b"to and fro")
        assert await stream.frame() == (1, b"to and fro")
        stream.writer.write_eof()
        assert await stream.rest() == b""
    assert (await http.get(f"/exec/{identity}/json")).json()["ExitCode"] == 0


async def test_detach_keys(http: HttpClient, fake: FakePortLayer) -> None:
    fake.scripts["sh"] = Script(forever=True)
    identity = await _prepare(http, Tty=True, DetachKeys="ctrl-a,x")
    async with http.hijacked(f"/exec/{identity}/start", body={"Tty": True}) as stream:
        stream.writer.write(b"ls\x01x")
        assert await stream.rest() == b""
    process = await _process(fake, identity)
    assert bytes(process.stdin) == b"ls"
    assert (await http.get(f"/exec/{identity}/json")).json()["Running"] is True


async def test_a_client_that_vanishes_ends_the_call(http: HttpClient, fake: FakePortLayer) -> None:
    fake.scripts["sh"] = Script(forever=True)
    identity = await _prepare(http)
    async with http.hijacked(f"/exec/{identity}/start", body={}) as stream:
        process = await _process(fake, identity)
        await process.emit(STDOUT, b"hello")
        assert await stream.frame() == (1, b"hello")
    await fake.until_cancelled("AttachExec")


async def test_start_detached(http: HttpClient, fake: FakePortLayer) -> None:
    fake.scripts["sh"] = Script(forever=True)
    identity = await _prepare(http)
    answer = await http.post(f"/exec/{identity}/start", {"Detach": True})
    assert (answer.status, answer.body) == (200, b"")


async def test_start_with_a_window(http: HttpClient, fake: FakePortLayer) -> None:
    fake.scripts["sh"] = Script(exit_code=0)
    identity = await _prepare(http, Tty=True)
    async with http.hijacked(f"/exec/{identity}/start", body={"Tty": True, "ConsoleSize": [30, 90]}) as stream:
        await stream.rest()
    assert fake.sizes == [(identity, 30, 90)]
    answer = await http.post(f"/exec/{identity}/start", {"ConsoleSize": [-1, 1 << 50]})
    assert answer.status == 400


@pytest.mark.parametrize("data", [b"", b"{}"])
async def test_start_without_a_word(http: HttpClient, fake: FakePortLayer, data: bytes) -> None:
    identity = await _prepare(http)
    headers = {"Content-Type": "application/json"} if data else {}
    answer = await http.request("POST", f"/exec/{identity}/start", data=data, headers=headers)
    assert answer.status == 200


@pytest.mark.parametrize("terminal", [False, True])
async def test_programs_that_cannot_be_launched(http: HttpClient, fake: FakePortLayer, terminal: bool) -> None:
    """The stream tells it, as the connection has left HTTP for clients that asked to; detached, it is an answer."""
    failed = execution_pb2.LaunchFailed(exit_code=127, errno=2, step="exec")
    for method in ("AttachExec", "StartExec"):
        fake.fail(method, grpc.StatusCode.ABORTED, "sh: not found", launch_failed=failed)
    identity = await _prepare(http, Tty=terminal)
    async with http.hijacked(f"/exec/{identity}/start", body={"Tty": terminal}) as stream:
        rest = await stream.rest()
    assert rest == b"sh: not found\r\n" if terminal else frames(rest) == [(1, b"sh: not found\r\n")]
    answer = await http.post(f"/exec/{identity}/start", {"Detach": True})
    assert (answer.status, answer.json()["message"]) == (400, "sh: not found")


async def test_the_head_goes_out_before_the_process_starts(http: HttpClient, fake: FakePortLayer) -> None:
    """docker-py reads the head through a buffer, and loses what else gets into it."""
    identity = await _prepare(http)
    fake.blocked.add("AttachExec")
    async with http.hijacked(f"/exec/{identity}/start", body={}) as stream:
        assert stream.status == 101
        await fake.until_called("AttachExec")
        assert not fake.exec_processes
    await fake.until_cancelled("AttachExec")


@pytest.mark.parametrize("detach", [False, True])
async def test_no_exec_runs_twice(http: HttpClient, fake: FakePortLayer, detach: bool) -> None:
    fake.scripts["sh"] = Script(forever=True)
    identity = await _prepare(http)
    await http.post(f"/exec/{identity}/start", {"Detach": True})
    for words in ("is already running", "has already run"):
        answer = await http.post(f"/exec/{identity}/start", {"Detach": detach})
        openapi.validate("/exec/{id}/start", "POST", answer.status, answer.json())
        assert (answer.status, answer.json()["message"]) == (409, f"exec {identity} {words}")
        await fake.exec_processes[identity].end(0)
        async with asyncio.timeout(PATIENCE_S):
            while fake.execs[identity].running:
                await asyncio.sleep(0.01)


async def test_inspect(http: HttpClient, fake: FakePortLayer) -> None:
    fake.scripts["sh"] = Script(forever=True)
    identity = await _prepare(http, Cmd=["sh", "-c", "x"], User="me", AttachStderr=False, DetachKeys="ctrl-a")
    answer = await http.get(f"/exec/{identity}/json")
    prepared = answer.json()
    # The description has no null here; dockerd has, until there is an exit code.
    openapi.validate("/exec/{id}/json", "GET", 200, prepared | {"ExitCode": 0}, nulls=True)
    assert (prepared["ID"], prepared["ContainerID"]) == (identity, next(iter(fake.containers)))
    assert (prepared["Running"], prepared["ExitCode"], prepared["CanRemove"]) == (False, None, False)
    assert prepared["ProcessConfig"] == {
        "tty": False,
        "entrypoint": "sh",
        "arguments": ["-c", "x"],
        "privileged": False,
        "user": "me",
    }
    streams = {name: prepared[name] for name in ("OpenStdin", "OpenStdout", "OpenStderr")}
    assert streams == {"OpenStdin": True, "OpenStdout": True, "OpenStderr": False}
    await http.post(f"/exec/{identity}/start", {"Detach": True})
    running = (await http.get(f"/exec/{identity}/json")).json()
    assert (running["Running"], running["Pid"]) == (True, 77)
    await fake.exec_processes[identity].end(3)
    assert (await http.get("/containers/box/json")).json()["ExecIDs"] == [identity]


@pytest.mark.parametrize("data", [b"", b"[1]", b"{", b"\xff"])
async def test_execs_that_others_made(http: HttpClient, fake: FakePortLayer, data: bytes) -> None:
    fake.scripts["sh"] = Script(stdout=b"out", stderr=b"err")
    identity = await _prepare(http)
    fake.execs[identity].spec.frontend_data["docker"] = data
    assert (await http.get(f"/exec/{identity}/json")).status == 200
    async with http.hijacked(f"/exec/{identity}/start", body={}) as stream:
        assert frames(await stream.rest()) == [(1, b"out"), (2, b"err")]


async def test_resize(http: HttpClient, fake: FakePortLayer) -> None:
    identity = await _prepare(http, Tty=True)
    answer = await http.post(f"/exec/{identity}/resize", h="24", w="80")
    assert (answer.status, answer.body) == (200, b"")
    assert fake.sizes == [(identity, 24, 80)]
    for query in ({"h": "x", "w": "1"}, {"h": "70000", "w": "1"}, {"h": "1", "w": "-1"}):
        assert (await http.post(f"/exec/{identity}/resize", **query)).status == 400


# Resource usage.


async def test_stats_stream(http: HttpClient, fake: FakePortLayer) -> None:
    async with asyncio.timeout(PATIENCE_S):
        async with http.raw() as (reader, writer):
            writer.write(b"GET /containers/box/stats HTTP/1.0\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            first, second = [json.loads(await reader.readline()) for _ in range(2)]
        await fake.until_cancelled("StreamStats")
    for sample in (first, second):
        openapi.validate("/containers/{id}/stats", "GET", 200, sample, nulls=True)
    assert first["preread"] == "0001-01-01T00:00:00Z"
    assert first["precpu_stats"]["cpu_usage"]["total_usage"] == 0
    assert second["preread"] == first["read"]
    assert second["precpu_stats"]["cpu_usage"] == first["cpu_stats"]["cpu_usage"]
    assert (second["name"], second["id"]) == ("/box", next(iter(fake.containers)))
    assert (second["memory_stats"]["usage"], second["memory_stats"]["limit"]) == (10 << 20, 128 << 20)
    assert second["cpu_stats"]["online_cpus"] == 2


async def test_stats_once(http: HttpClient, fake: FakePortLayer) -> None:
    """One object: with a rate in it, or (one-shot) at once."""
    answer = await http.get("/containers/box/stats", stream="0")
    assert len(answer.lines()) == 1
    openapi.validate("/containers/{id}/stats", "GET", 200, answer.json(), nulls=True)
    assert answer.json()["preread"] != "0001-01-01T00:00:00Z"
    answer = await http.get("/containers/box/stats", **{"stream": "0", "one-shot": "1"})
    assert answer.json()["preread"] == "0001-01-01T00:00:00Z"
    assert sum(name == "StreamStats" for name, _ in fake.calls) == 3


async def test_docker_py(
    docker_client: docker.DockerClient, fake: FakePortLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each program writes once docker-py has read the answer's head: it reads that through a buffer of its own."""
    loop = asyncio.get_running_loop()
    head_read = asyncio.Semaphore(0)
    fake.scripts["sh"] = Script(stdout=b"out", stderr=b"err", exit_code=3, turn=head_read)
    raw_socket = docker_client.api._get_raw_response_socket

    def read_raw(response: object) -> object:
        loop.call_soon_threadsafe(head_read.release)
        return raw_socket(response)

    monkeypatch.setattr(docker_client.api, "_get_raw_response_socket", read_raw)

    def use() -> None:
        box = docker_client.containers.get("box")
        assert box.exec_run("sh") == (3, b"outerr")
        assert box.exec_run("sh", demux=True) == (3, (b"out", b"err"))
        assert box.exec_run("sh", stdout=False, demux=True) == (3, (None, b"err"))
        first = next(box.stats(stream=True, decode=True))
        assert first["name"] == "/box"

    await asyncio.to_thread(use)
