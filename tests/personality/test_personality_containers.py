"""Containers after their creation: lists, inspection, life, and what each refusal of the port layer becomes."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import docker
import grpc
import openapi
import pytest
from conftest import HttpClient
from fake_portlayer import FakePortLayer
from fake_process import Script
from fake_state import PATIENCE_S

from personality.times import parse_time
from portlayer.v1 import execution_pb2, types_pb2

FOREVER = Script(forever=True)


async def _make(http: HttpClient, name: str, *, start: bool = False, **body: Any) -> str:
    answer = await http.post("/containers/create", {"Image": "busybox", **body}, name=name)
    assert answer.status == 201, answer.body
    if start:
        assert (await http.post(f"/containers/{name}/start")).status == 204
    return str(answer.json()["Id"])


@pytest.fixture(autouse=True)
def _image(fake: FakePortLayer) -> None:
    fake.add_image("busybox:latest", config={"Cmd": ["sh"], "Env": ["PATH=/bin"]})
    fake.scripts["web"] = FOREVER


def _check(path: str, method: str, answer: Any, *, nulls: bool = False) -> Any:
    body = answer.json() if answer.body else None
    openapi.validate(path, method, answer.status, body, nulls=nulls)
    return body


# Lists.


async def test_list(http: HttpClient) -> None:
    web = await _make(http, "web", start=True, Labels={"tier": "front"}, Cmd=["sleep", "9"])
    await _make(http, "idle")
    [entry] = _check("/containers/json", "GET", await http.get("/containers/json"))
    assert (entry["Id"], entry["Names"], entry["Image"]) == (web, ["/web"], "busybox")
    assert (entry["Command"], entry["State"], entry["Labels"]) == ("sleep 9", "running", {"tier": "front"})
    assert entry["Status"].startswith("Up ")
    assert "SizeRw" not in entry
    everything = _check("/containers/json", "GET", await http.get("/containers/json", all="1"))
    assert [each["Names"] for each in everything] == [["/idle"], ["/web"]]
    assert everything[0]["Status"] == "Created"


async def test_list_shows_the_image_by_a_name_that_it_still_has(http: HttpClient, fake: FakePortLayer) -> None:
    await _make(http, "one")
    image = next(iter(fake.images.values()))
    assert (await http.get("/containers/json", all="1")).json()[0]["Image"] == "busybox"
    del image.tags[:]
    assert (await http.get("/containers/json", all="1")).json()[0]["Image"] == image.id
    fake.add_image("busybox:latest")  # another one
    [entry] = (await http.get("/containers/json", all="1")).json()
    assert (entry["Image"], entry["ImageID"]) == (image.id, image.id)
    fake.images.clear()
    assert (await http.get("/containers/json", all="1")).json()[0]["Image"] == image.id


async def test_list_with_sizes(http: HttpClient, fake: FakePortLayer) -> None:
    await _make(http, "web")
    [entry] = _check("/containers/json", "GET", await http.get("/containers/json", all="1", size="1"))
    assert (entry["SizeRw"], entry["SizeRootFs"]) == (12_345, 4_012_345)
    fake.images.clear()  # docker rmi -f
    [entry] = (await http.get("/containers/json", all="1", size="1")).json()
    assert entry["SizeRootFs"] == 12_345


async def test_list_with_sizes_while_one_is_removed(http: HttpClient, fake: FakePortLayer) -> None:
    await _make(http, "web")
    fake.fail("GetContainer", grpc.StatusCode.NOT_FOUND, "No such container")
    answer = await http.get("/containers/json", all="1", size="1")
    assert (answer.status, answer.json()) == (200, [])


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["three", "two", "one"]),
        ({"name": ["t"]}, ["three", "two"]),
        ({"name": ["^/one$"]}, ["one"]),
        ({"name": ["^one$", "two"]}, ["two", "one"]),
        ({"label": ["a"]}, ["two", "one"]),
        ({"label": ["a=1"]}, ["one"]),
        ({"label": ["a", "b"]}, ["two"]),
        ({"status": ["running"]}, ["two"]),
        ({"status": ["created", "exited"]}, ["three", "one"]),
        ({"exited": ["3"]}, ["three"]),
        ({"exited": ["0"]}, []),
        ({"ancestor": ["busybox"]}, ["three", "two", "one"]),
        ({"ancestor": ["busybox:latest"]}, ["three", "two", "one"]),
        ({"ancestor": ["busybox:1"]}, []),
        ({"before": ["two"]}, ["one"]),
        ({"since": ["two"]}, ["three"]),
        ({"network": ["none"]}, ["three", "two", "one"]),
        ({"network": ["blue"]}, []),
        ({"volume": ["v"]}, []),
        ({"publish": ["80"]}, []),
        ({"expose": ["80"]}, []),
        ({"health": ["none"]}, ["three", "two", "one"]),
        ({"health": ["healthy"]}, []),
        ({"is-task": ["false"]}, ["three", "two", "one"]),
        ({"is-task": ["true"]}, []),
        ({"name": {"one": True}}, ["one"]),
        ({"name": {"one": False}}, ["three", "two", "one"]),
    ],
)
async def test_list_filters(
    http: HttpClient, fake: FakePortLayer, filters: dict[str, object], expected: list[str]
) -> None:
    fake.scripts |= {"two": FOREVER, "three": Script(exit_code=3)}
    await _make(http, "one", Labels={"a": "1"})
    await _make(http, "two", start=True, Labels={"a": "2", "b": ""})
    await _make(http, "three", start=True)
    await http.post("/containers/three/wait")
    answer = await http.get("/containers/json", all="1", filters=filters)
    assert [each["Names"][0] for each in answer.json()] == [f"/{name}" for name in expected]


async def test_list_by_id_and_image_id(http: HttpClient, fake: FakePortLayer) -> None:
    identity = await _make(http, "one")
    await _make(http, "two")
    image = next(iter(fake.images))
    for filters, count in (({"id": [identity[:6]]}, 1), ({"ancestor": [image]}, 2), ({"ancestor": [image[7:19]]}, 2)):
        assert len((await http.get("/containers/json", all="1", filters=filters)).json()) == count


async def test_list_limit(http: HttpClient) -> None:
    for name in ("one", "two", "three"):
        await _make(http, name)
    for limit, count in (("2", 2), ("0", 0), ("-1", 0), ("9", 3)):
        assert len((await http.get("/containers/json", limit=limit)).json()) == count


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"filters": {"colour": ["red"]}}, 400),
        ({"filters": {"status": ["sad"]}}, 400),
        ({"filters": {"exited": ["x"]}}, 400),
        ({"filters": {"exited": ["9" * 5000]}}, 400),
        ({"filters": {"name": ["("]}}, 400),
        ({"filters": {"is-task": ["maybe"]}}, 400),
        ({"filters": {"before": ["nobody"]}}, 404),
        ({"filters": {"since": ["nobody"]}}, 404),
        ({"filters": [1]}, 400),
        ({"limit": "x"}, 400),
        ({"limit": "1_0"}, 400),
        ({"limit": "9" * 30}, 400),
        ({"limit": "9" * 5000}, 400),
    ],
)
async def test_broken_lists(http: HttpClient, query: dict[str, Any], status: int) -> None:
    await _make(http, "one")
    answer = await http.get("/containers/json", **query)
    assert answer.status == status
    assert answer.json()["message"]


# Inspection.


async def test_inspect(http: HttpClient) -> None:
    host = {"Memory": 64 << 20, "CapAdd": ["NET_ADMIN"], "NetworkMode": "bridge", "AutoRemove": False}
    identity = await _make(http, "web", start=True, Hostname="box", Tty=True, StopTimeout=3, HostConfig=host)
    for name in ("web", identity, identity[:12]):
        answer = await http.get(f"/containers/{name}/json")
        body = _check("/containers/{id}/json", "GET", answer, nulls=True)
        assert body["Id"] == identity
    assert (body["Name"], body["Path"], body["Args"]) == ("/web", "sh", [])
    assert body["State"]["Running"] is True
    assert body["State"]["Pid"] == 42
    assert (body["Config"]["Hostname"], body["Config"]["Tty"], body["Config"]["StopTimeout"]) == ("box", True, 3)
    assert (body["Config"]["Env"], body["Config"]["Cmd"]) == (["PATH=/bin"], ["sh"])
    assert {key: body["HostConfig"][key] for key in host} == host
    assert "SizeRw" not in body
    assert (await http.get("/containers/web/json", size="1")).json()["SizeRw"] == 12_345


async def test_inspect_says_how_the_vm_came_to_run(http: HttpClient, fake: FakePortLayer) -> None:
    identity = await _make(http, "web", start=True)
    machine = (await http.get("/containers/web/json")).json()["VirtualMachine"]
    assert machine == {"Directory": "fake:machine", "ConsoleLog": "", "StartMethod": "", "StartPhases": {}}
    container = fake.containers[identity]
    container.console_log_path = "/machines/web/console.log"
    container.start_phases_ns.update({"exec": 1_234_567, "machine": 2_000_000, "restore": 0, "other": 1})
    methods = {
        types_pb2.START_METHOD_COLD_BOOT: "cold-boot",
        types_pb2.START_METHOD_CLONE: "clone",
        types_pb2.START_METHOD_POOLED: "pooled",
    }
    for method, word in methods.items():
        container.start_method = method
        answer = await http.get("/containers/web/json")
        machine = _check("/containers/{id}/json", "GET", answer, nulls=True)["VirtualMachine"]
        assert (machine["StartMethod"], machine["ConsoleLog"]) == (word, "/machines/web/console.log")
    phases = [("machine", 2.0), ("restore", 0.0), ("exec", 1.235), ("other", 0.0)]
    assert list(machine["StartPhases"].items()) == phases


@pytest.mark.skipif(shutil.which("docker") is None, reason="no docker CLI here")
async def test_docker_inspect_prints_what_docker_does_not_know(
    http: HttpClient, fake: FakePortLayer, docker_socket: Path
) -> None:
    identity = await _make(http, "web", start=True)
    fake.containers[identity].start_method = types_pb2.START_METHOD_POOLED
    fake.containers[identity].start_phases_ns["exec"] = 1_234_567
    arguments = ("-H", f"unix://{docker_socket}", "inspect", "-f", "{{json .VirtualMachine}}", "web")
    process = await asyncio.create_subprocess_exec("docker", *arguments, stdout=-1, stderr=-1)
    out, err = await process.communicate()
    assert process.returncode == 0, err
    shown = json.loads(out)
    assert (shown["StartMethod"], shown["StartPhases"]) == ("pooled", {"exec": 1.235})


async def test_inspect_what_ended(http: HttpClient, fake: FakePortLayer) -> None:
    fake.scripts["job"] = Script(exit_code=3)
    await _make(http, "job", start=True)
    await http.post("/containers/job/wait")
    state = (await http.get("/containers/job/json")).json()["State"]
    assert (state["Status"], state["Running"], state["Pid"], state["ExitCode"]) == ("exited", False, 0, 3)
    assert parse_time(state["StartedAt"], "start") < parse_time(state["FinishedAt"], "end")


@pytest.mark.parametrize("data", [b"", b"[1]", b"{", b"\xff", b'{"HostConfig": {}}'])
async def test_inspect_what_others_made(http: HttpClient, fake: FakePortLayer, data: bytes) -> None:
    """A container made over gRPC, whose front-end data is not this front-end's."""
    identity = await _make(http, "web")
    fake.containers[identity].spec.frontend_data["docker"] = data
    body = _check("/containers/{id}/json", "GET", await http.get("/containers/web/json"), nulls=True)
    assert body["HostConfig"]["NetworkMode"] == "none"
    assert (await http.get("/containers/json", all="1")).status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/containers/{id}/json"),
        ("GET", "/containers/{id}/top"),
        ("GET", "/containers/{id}/logs?stdout=1"),
        ("GET", "/containers/{id}/stats"),
        ("POST", "/containers/{id}/start"),
        ("POST", "/containers/{id}/stop"),
        ("POST", "/containers/{id}/restart"),
        ("POST", "/containers/{id}/kill"),
        ("POST", "/containers/{id}/pause"),
        ("POST", "/containers/{id}/unpause"),
        ("POST", "/containers/{id}/rename?name=x"),
        ("POST", "/containers/{id}/resize?h=1&w=1"),
        ("POST", "/containers/{id}/attach?stream=1&stdout=1"),
        ("POST", "/containers/{id}/wait"),
        ("DELETE", "/containers/{id}"),
        ("POST", "/exec/{id}/start"),
        ("POST", "/exec/{id}/resize?h=1&w=1"),
        ("GET", "/exec/{id}/json"),
    ],
)
async def test_no_such_container_or_exec(http: HttpClient, method: str, path: str) -> None:
    answer = await http.request(method, path.replace("{id}", "nobody"))
    assert answer.status == 404
    openapi.validate(path.partition("?")[0], method, 404, answer.json())
    assert answer.json()["message"].endswith(": nobody")


# Life.


async def test_start_and_stop(http: HttpClient, fake: FakePortLayer) -> None:
    await _make(http, "web")
    for action, query, expected in (
        ("start", {}, 204),
        ("start", {}, 304),
        ("stop", {}, 204),
        ("stop", {}, 304),
        ("restart", {}, 204),
        ("restart", {"t": "1", "signal": "SIGINT"}, 204),
    ):
        answer = await http.post(f"/containers/web/{action}", **query)
        assert (answer.status, answer.body) == (expected, b"")
        openapi.validate(f"/containers/{{id}}/{action}", "POST", answer.status, None)
    assert (fake.request("RestartContainer").timeout_s, fake.request("RestartContainer").signal) == (1, 2)


@pytest.mark.parametrize(
    ("text", "expected"), [("", None), ("5", 5), ("0", 0), ("-1", -1), ("-99", -1), ("10024101125", (1 << 31) - 1)]
)
@pytest.mark.parametrize(("action", "method"), [("stop", "StopContainer"), ("restart", "RestartContainer")])
async def test_time_outs(
    http: HttpClient, fake: FakePortLayer, text: str, expected: int | None, action: str, method: str
) -> None:
    await _make(http, "web", start=True)
    assert (await http.post(f"/containers/web/{action}", t=text)).status == 204
    request = fake.request(method)
    assert (request.timeout_s if request.HasField("timeout_s") else None) == expected


@pytest.mark.parametrize("query", [{"t": "soon"}, {"t": "9" * 40}, {"signal": "SIGNOT"}, {"signal": "65"}])
@pytest.mark.parametrize("action", ["stop", "restart"])
async def test_broken_stops(http: HttpClient, fake: FakePortLayer, action: str, query: dict[str, str]) -> None:
    await _make(http, "web", start=True)
    answer = await http.post(f"/containers/web/{action}", **query)
    assert answer.status == 400
    assert not {"StopContainer", "RestartContainer"} & {name for name, _ in fake.calls}


@pytest.mark.parametrize(("text", "number"), [("", 9), ("SIGHUP", 1), ("hup", 1), ("15", 15), ("RTMAX-1", 63)])
async def test_kill(http: HttpClient, fake: FakePortLayer, text: str, number: int) -> None:
    await _make(http, "web", start=True)
    answer = await http.post("/containers/web/kill", **({"signal": text} if text else {}))
    assert answer.status == 204
    assert fake.request("KillContainer").signal == number


async def test_kill_what_does_not_run(http: HttpClient) -> None:
    await _make(http, "web")
    body = _check("/containers/{id}/kill", "POST", answer := await http.post("/containers/web/kill"))
    assert answer.status == 409
    assert body["message"].startswith("cannot kill container: web: container ")
    assert (await http.post("/containers/web/kill", signal="0")).status == 400


async def test_pause_and_unpause(http: HttpClient) -> None:
    await _make(http, "web")
    answer = await http.post("/containers/web/pause")
    assert answer.status == 409
    await http.post("/containers/web/start")
    assert (await http.post("/containers/web/pause")).status == 204
    assert (await http.get("/containers/json")).json()[0]["Status"].endswith(" (Paused)")
    assert (await http.post("/containers/web/unpause")).status == 204


async def test_rename(http: HttpClient, fake: FakePortLayer) -> None:
    await _make(http, "web")
    assert (await http.post("/containers/web/rename", name="db")).status == 204
    assert (await http.get("/containers/db/json")).status == 200
    for query in ({}, {"name": ""}, {"name": "/"}):
        assert (await http.post("/containers/db/rename", **query)).status == 400
    fake.fail("RenameContainer", grpc.StatusCode.ALREADY_EXISTS, 'Conflict. The name "x" is already in use')
    answer = await http.post("/containers/db/rename", name="x")
    _check("/containers/{id}/rename", "POST", answer)
    assert answer.status == 409


async def test_remove(http: HttpClient, fake: FakePortLayer) -> None:
    await _make(http, "web", start=True)
    answer = await http.delete("/containers/web")
    _check("/containers/{id}", "DELETE", answer)
    assert answer.status == 409
    assert (await http.delete("/containers/web", link="1")).status == 400
    assert (await http.delete("/containers/web", force="1", v="1")).status == 204
    assert not fake.containers
    assert (await http.delete("/containers/web")).status == 404


async def test_resize(http: HttpClient, fake: FakePortLayer) -> None:
    await _make(http, "web", start=True)
    assert (await http.post("/containers/web/resize", h="24", w="80")).status == 200
    assert fake.sizes == [("web", 24, 80)]
    for query in ({"h": "-1", "w": "1"}, {"h": "65536", "w": "1"}, {"h": "x", "w": "1"}):
        assert (await http.post("/containers/web/resize", **query)).status == 400


@pytest.mark.parametrize("state", ["created", "exited"])
async def test_what_needs_a_running_container(http: HttpClient, fake: FakePortLayer, state: str) -> None:
    fake.scripts["job"] = Script()
    await _make(http, "job", start=state == "exited")
    if state == "exited":
        await http.post("/containers/job/wait")
    for method, path in (
        ("GET", "/containers/job/top"),
        ("POST", "/containers/job/pause"),
        ("POST", "/containers/job/resize?h=1&w=1"),
        ("POST", "/containers/job/kill"),
    ):
        answer = await http.request(method, path)
        assert answer.status == 409
        assert "is not running" in answer.json()["message"]


@pytest.mark.parametrize(
    ("arguments", "titles"),
    [
        ({}, ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]),
        ({"ps_args": "-ef"}, ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]),
        ({"ps_args": "aux"}, ["USER", "PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT", "START", "TIME", "COMMAND"]),
        ({"ps_args": "-o pid,args"}, ["PID", "COMMAND"]),
        ({"ps_args": "-eo pid,ppid,comm"}, ["PID", "PPID", "COMMAND"]),
        ({"ps_args": "-opid"}, ["PID"]),
    ],
)
async def test_top(http: HttpClient, arguments: dict[str, str], titles: list[str]) -> None:
    await _make(http, "web", start=True)
    body = _check("/containers/{id}/top", "GET", await http.get("/containers/web/top", **arguments))
    assert body["Titles"] == titles
    assert all(len(row) == len(titles) for row in body["Processes"])
    assert body["Processes"][0][titles.index("PID")] == "42"


@pytest.mark.parametrize("text", ["-o magic", "-o pid,magic", "-Z", "--sort=pid"])
async def test_top_with_options_that_are_not_understood(http: HttpClient, text: str) -> None:
    await _make(http, "web", start=True)
    answer = await http.get("/containers/web/top", ps_args=text)
    assert answer.status == 400
    assert "magic" in answer.json()["message"] or "are not understood" in answer.json()["message"]


# Waiting.


async def test_wait(http: HttpClient, fake: FakePortLayer) -> None:
    fake.scripts["job"] = Script(exit_code=7)
    await _make(http, "job", start=True)
    for condition in ({}, {"condition": "not-running"}):
        answer = await http.post("/containers/job/wait", **condition)
        assert _check("/containers/{id}/wait", "POST", answer) == {"StatusCode": 7}
    answer = await http.post("/containers/job/wait", condition="tomorrow")
    assert answer.status == 400


@pytest.mark.parametrize("condition", ["next-exit", "removed", "not-running"])
async def test_wait_says_when_it_waits(http: HttpClient, fake: FakePortLayer, condition: str) -> None:
    """The head arrives before the end: what a client does upon it is not missed."""
    await _make(http, "web", start=True)
    async with asyncio.timeout(PATIENCE_S), http.raw() as (reader, writer):
        writer.write(f"POST /containers/web/wait?condition={condition} HTTP/1.1\r\nHost: d\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert (await http.post("/containers/web/kill")).status == 204
        if condition == "removed":
            assert (await http.delete("/containers/web")).status == 204
        await reader.readline()
        assert json.loads(await reader.readline()) == {"StatusCode": 137}


async def test_wait_tells_what_went_wrong(http: HttpClient, fake: FakePortLayer) -> None:
    await _make(http, "web", start=True)
    fake.fail("WaitContainer", grpc.StatusCode.UNAVAILABLE, "the agent does not answer")
    answer = await http.post("/containers/web/wait")
    assert (answer.status, answer.json()["message"]) == (503, "the agent does not answer")


# Pruning.


async def test_prune(http: HttpClient, fake: FakePortLayer) -> None:
    running = await _make(http, "web", start=True)
    made = await _make(http, "made")
    kept = await _make(http, "kept", Labels={"keep": "yes"})
    body = _check("/containers/prune", "POST", await http.post("/containers/prune", filters={"label!": ["keep=yes"]}))
    assert body == {"ContainersDeleted": [made], "SpaceReclaimed": 12_345}
    assert (await http.post("/containers/prune", filters={"until": ["1h"]})).json()["ContainersDeleted"] == []
    answer = await http.post("/containers/prune", filters={"label": ["keep"]})
    assert answer.json()["ContainersDeleted"] == [kept]
    assert list(fake.containers) == [running]
    for filters in ({"status": ["exited"]}, {"until": ["soon"]}):
        assert (await http.post("/containers/prune", filters=filters)).status == 400


@pytest.mark.parametrize("code", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION])
async def test_prune_beside_others(http: HttpClient, fake: FakePortLayer, code: grpc.StatusCode) -> None:
    """One that is removed or started meanwhile is no failure."""
    await _make(http, "one")
    fake.fail("RemoveContainer", code, "too late")
    answer = await http.post("/containers/prune")
    assert (answer.status, answer.json()["ContainersDeleted"]) == (200, [])


# What the port layer's errors become.


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 400),
        (grpc.StatusCode.OUT_OF_RANGE, 400),
        (grpc.StatusCode.PERMISSION_DENIED, 403),
        (grpc.StatusCode.NOT_FOUND, 404),
        (grpc.StatusCode.ALREADY_EXISTS, 409),
        (grpc.StatusCode.FAILED_PRECONDITION, 409),
        (grpc.StatusCode.UNIMPLEMENTED, 501),
        (grpc.StatusCode.UNAVAILABLE, 503),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 500),
        (grpc.StatusCode.ABORTED, 500),
        (grpc.StatusCode.INTERNAL, 500),
        (grpc.StatusCode.UNKNOWN, 500),
        (grpc.StatusCode.DATA_LOSS, 500),
        (grpc.StatusCode.CANCELLED, 500),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 500),
    ],
)
async def test_statuses(http: HttpClient, fake: FakePortLayer, code: grpc.StatusCode, status: int) -> None:
    """The port layer's sentence reaches the client as it is, whatever language it is in."""
    await _make(http, "web")
    sentence = 'näher erklärt: "so"\nund so'
    for method, path in (("StartContainer", "start"), ("PauseContainer", "pause"), ("WaitContainer", "wait")):
        fake.fail(method, code, sentence)
        answer = await http.post(f"/containers/web/{path}")
        assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
        assert answer.json() == {"message": sentence}


@pytest.mark.parametrize(("exit_code", "status"), [(126, 400), (127, 400), (128, 500)])
async def test_programs_that_cannot_be_launched(
    http: HttpClient, fake: FakePortLayer, exit_code: int, status: int
) -> None:
    await _make(http, "web")
    failed = execution_pb2.LaunchFailed(exit_code=exit_code, errno=2, step="exec")
    fake.fail("StartContainer", grpc.StatusCode.ABORTED, 'exec: "x": no such file', launch_failed=failed)
    answer = await http.post("/containers/web/start")
    assert (answer.status, answer.json()) == (status, {"message": 'exec: "x": no such file'})


async def test_a_message_is_never_missing(http: HttpClient, fake: FakePortLayer) -> None:
    await _make(http, "web")
    fake.fail("StartContainer", grpc.StatusCode.UNAVAILABLE, "")
    assert (await http.post("/containers/web/start")).json() == {"message": "unavailable"}


@pytest.mark.parametrize(
    ("method", "rpc", "path"),
    [
        ("POST", "CreateContainer", "/containers/create"),
        ("POST", "StartContainer", "/containers/web/start"),
        ("POST", "StopContainer", "/containers/web/stop"),
        ("DELETE", "RemoveContainer", "/containers/web"),
        ("GET", "ListContainers", "/containers/json"),
        ("GET", "GetContainer", "/containers/web/json"),
        ("POST", "WaitContainer", "/containers/web/wait"),
        ("GET", "ReadLogs", "/containers/web/logs?stdout=1&follow=1"),
        ("GET", "StreamStats", "/containers/web/stats"),
        ("GET", "StreamStats", "/containers/web/stats?stream=0"),
        ("GET", "ListProcesses", "/containers/web/top"),
        ("POST", "Attach", "/containers/web/attach?stream=1&stdout=1"),
        ("GET", "GetImage", "/images/busybox/json"),
        ("GET", "SaveImages", "/images/busybox/get"),
        ("GET", "GetInfo", "/info"),
        ("GET", "StreamEvents", "/events"),
    ],
)
async def test_clients_that_vanish_cancel_the_call(
    http: HttpClient, fake: FakePortLayer, method: str, rpc: str, path: str
) -> None:
    await _make(http, "web")
    fake.blocked.add(rpc)
    body = b'{"Image": "busybox"}' if path.endswith("create") else b""
    head = f"{method} {path} HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    seen = len(fake.calls)
    async with asyncio.timeout(PATIENCE_S):
        async with http.raw() as (_, writer):
            writer.write(head.encode() + b"\r\n" + body)
            async with fake.entered:
                await fake.entered.wait_for(lambda: any(name == rpc for name, _ in fake.calls[seen:]))
        await fake.until_cancelled(rpc)


async def test_docker_py(docker_client: docker.DockerClient, fake: FakePortLayer) -> None:
    fake.scripts["job"] = Script(stdout=b"out\n", stderr=b"err\n", exit_code=2)

    def use() -> None:
        job = docker_client.containers.create("busybox", ["run"], name="job", labels={"a": "b"}, detach=True)
        assert docker_client.containers.list() == []
        assert docker_client.containers.list(all=True, filters={"label": "a=b"}) == [job]
        job.start()
        assert job.wait() == {"StatusCode": 2}
        assert job.logs() == b"out\nerr\n"
        assert job.logs(stdout=False) == b"err\n"
        job.reload()
        assert (job.status, job.attrs["State"]["ExitCode"]) == ("exited", 2)
        job.rename("done")
        web = docker_client.containers.run("busybox", name="web", detach=True)
        assert web.top()["Titles"][1] == "PID"
        assert web.stats(stream=False)["memory_stats"]["usage"] == 10 << 20
        web.pause()
        web.unpause()
        with pytest.raises(docker.errors.APIError, match="is running"):
            web.remove()
        web.stop(timeout=1)
        web.restart(timeout=1)
        web.kill("SIGKILL")
        assert len(docker_client.containers.prune()["ContainersDeleted"]) == 2
        with pytest.raises(docker.errors.NotFound):
            docker_client.containers.get("web")
        with pytest.raises(docker.errors.ImageNotFound):
            docker_client.containers.create("absent")

    await asyncio.to_thread(use)
    assert types_pb2.CONTAINER_STATUS_EXITED not in {one.state.status for one in fake.containers.values()}
