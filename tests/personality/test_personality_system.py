"""Ping, version, info, events, networks, volumes, and what is not served."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from pathlib import Path

import docker
import openapi
import pytest
from conftest import HttpClient
from fake_portlayer import FakePortLayer
from fake_state import PATIENCE_S

from personality.api.routes import build_router
from personality.errors import DockerError
from personality.times import parse_time, rfc3339
from portlayer.v1 import system_pb2


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_ping(http: HttpClient, method: str) -> None:
    answer = await http.request(method, "/_ping")
    assert answer.status == 200
    assert answer.body == (b"OK" if method == "GET" else b"")
    expected = {
        "api-version": "1.50",
        "builder-version": "1",
        "cache-control": "no-cache, no-store, must-revalidate",
        "content-length": "2",
        "docker-experimental": "false",
        "ostype": "linux",
        "pragma": "no-cache",
        "swarm": "inactive",
    }
    assert expected.items() <= answer.headers.items()


async def test_version(http: HttpClient) -> None:
    answer = await http.get("/version")
    openapi.validate("/version", "GET", 200, answer.json())
    body = answer.json()
    assert (body["Version"], body["ApiVersion"], body["MinAPIVersion"]) == ("0.1.0", "1.50", "1.24")
    assert (body["Arch"], body["KernelVersion"]) == ("amd64", "6.1.0")


async def test_info(http: HttpClient, fake: FakePortLayer) -> None:
    fake.add_image("busybox:latest")
    answer = await http.get("/info")
    openapi.validate("/info", "GET", 200, answer.json())
    body = answer.json()
    assert (body["Images"], body["NCPU"], body["MemTotal"]) == (1, 4, 8 << 30)
    assert body["Warnings"] == ["WARNING: no KVM"]
    assert ["Accelerator", "tcg"] in body["DriverStatus"]
    assert (set(body["Runtimes"]), body["DefaultRuntime"]) == ({"vm", "vm-cold-boot"}, "vm")


async def test_disk_usage(http: HttpClient, fake: FakePortLayer, docker_client: docker.DockerClient) -> None:
    fake.add_image("busybox:latest")
    await asyncio.to_thread(docker_client.containers.create, "busybox", name="box")
    answer = await http.get("/system/df")
    openapi.validate("/system/df", "GET", 200, answer.json(), nulls=True)
    body = answer.json()
    assert body["LayersSize"] == 7_000
    assert [image["RepoTags"] for image in body["Images"]] == [["busybox:latest"]]
    assert [(each["Names"], each["SizeRw"]) for each in body["Containers"]] == [(["/box"], 12_345)]
    assert (await http.get("/system/df", type=["volume", "build-cache"])).json() == {"Volumes": [], "BuildCache": []}
    assert (await http.get("/system/df", type="socks")).status == 400


def _templates() -> list[system_pb2.Template]:
    """One in use, one made and never used, one that is still to be made."""
    return [
        system_pb2.Template(
            id="a" * 64,
            state=system_pb2.Template.STATE_READY,
            memory_bytes=1 << 30,
            cpus=1,
            disk_bytes=270_000_000,
            created_unix_ns=1_700_000_000_000_000_005,
            last_used_unix_ns=1_700_000_001_000_000_000,
            pooled=1,
            uses=7,
        ),
        system_pb2.Template(
            id="b" * 64,
            state=system_pb2.Template.STATE_READY,
            memory_bytes=512 << 20,
            cpus=2,
            disk_bytes=130_000_000,
            created_unix_ns=1_700_000_002_000_000_000,
        ),
        system_pb2.Template(id="c" * 64, state=system_pb2.Template.STATE_WAITING, memory_bytes=2 << 30, cpus=1),
    ]


async def test_templates_are_shown_as_a_cache(http: HttpClient, fake: FakePortLayer) -> None:
    fake.templates = _templates()
    answer = await http.get("/system/df")
    openapi.validate("/system/df", "GET", 200, answer.json(), nulls=True)
    used, unused = answer.json()["BuildCache"]
    assert used == {
        "ID": "a" * 64,
        "Parents": None,
        "Type": "internal",
        "Description": "instant clone template: 1024 MiB, 1 CPU",
        "InUse": True,
        "Shared": False,
        "Size": 270_000_000,
        "CreatedAt": "2023-11-14T22:13:20.000000005Z",
        "LastUsedAt": "2023-11-14T22:13:21Z",
        "UsageCount": 7,
    }
    assert unused["Description"] == "instant clone template: 512 MiB, 2 CPUs"
    assert (unused["InUse"], unused["LastUsedAt"], unused["UsageCount"]) == (False, None, 0)


@pytest.mark.skipif(shutil.which("docker") is None, reason="no docker CLI here")
async def test_docker_system_df(http: HttpClient, fake: FakePortLayer, docker_socket: Path) -> None:
    fake.templates = _templates()

    async def df(*options: str) -> str:
        arguments = ("-H", f"unix://{docker_socket}", "system", "df", *options)
        process = await asyncio.create_subprocess_exec("docker", *arguments, stdout=-1, stderr=-1)
        out, err = await process.communicate()
        assert process.returncode == 0, err
        return out.decode()

    total = next(line for line in (await df()).splitlines() if line.startswith("Build Cache"))
    assert total.split()[2:6] == ["2", "1", "400MB", "130MB"]
    lines = [line.split() for line in (await df("--verbose")).splitlines()]
    assert ["a" * 12 + "*", "internal", "270MB"] in [words[:3] for words in lines]  # the star: in use


async def test_metrics(http: HttpClient, fake: FakePortLayer) -> None:
    fake.metrics = "# TYPE vch_pooled_clones gauge\nvch_pooled_clones 2.0\n"
    answer = await http.get("/metrics")
    assert (answer.status, answer.body.decode()) == (200, fake.metrics)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")


async def test_networks(http: HttpClient) -> None:
    answer = await http.get("/networks")
    openapi.validate("/networks", "GET", 200, answer.json())
    [network] = answer.json()
    assert network["Name"] == "none"
    answer = await http.get("/networks/none")
    openapi.validate("/networks/{id}", "GET", 200, answer.json())
    assert answer.json() == network
    assert (await http.get("/networks/other")).status == 404
    for filters in ({"name": ["x"]}, {"driver": ["bridge"]}, {"type": ["custom"]}, {"label": ["a"]}):
        assert (await http.get("/networks", filters=filters)).json() == []
    answer = await http.delete("/networks/none")
    openapi.validate("/networks/{id}", "DELETE", answer.status, answer.json())
    assert answer.status == 403
    assert (await http.post("/networks/create", {"Name": "x"})).status == 501


async def test_volumes(http: HttpClient) -> None:
    answer = await http.get("/volumes")
    openapi.validate("/volumes", "GET", 200, answer.json())
    assert answer.json() == {"Volumes": [], "Warnings": []}
    assert (await http.get("/volumes/v")).status == 404
    assert (await http.delete("/volumes/v")).status == 404
    assert (await http.post("/volumes/create", {"Name": "v"})).status == 501


@pytest.mark.parametrize("path", ["/volumes/prune", "/networks/prune", "/build/prune", "/images/prune"])
async def test_prune_what_there_is_not(http: HttpClient, path: str) -> None:
    answer = await http.post(path)
    openapi.validate(path, "POST", 200, answer.json())


@pytest.mark.parametrize(("method", "path"), openapi.endpoints())
def test_every_documented_endpoint_has_a_route(method: str, path: str) -> None:
    build_router().find(method, re.sub(r"\{\w+\}", "x", path))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/build"),
        ("POST", "/session"),
        ("POST", "/grpc"),
        ("POST", "/auth"),
        ("POST", "/commit"),
        ("POST", "/images/team/box/push"),
        ("GET", "/images/search"),
        ("GET", "/distribution/team/box/json"),
        ("GET", "/containers/x/export"),
        ("GET", "/containers/x/changes"),
        ("HEAD", "/containers/x/archive"),
        ("PUT", "/containers/x/archive"),
        ("POST", "/plugins/pull"),
        ("POST", "/swarm/init"),
    ],
)
async def test_not_served(http: HttpClient, method: str, path: str) -> None:
    answer = await http.request(method, path)
    assert answer.status == 501
    assert method == "HEAD" or "not served" in answer.json()["message"]


async def test_no_such_plugin(http: HttpClient) -> None:
    """docker inspect asks for a plugin last, and says "no such object" only when that is 404."""
    answer = await http.get("/plugins/team/x/json")
    openapi.validate("/plugins/{name}/json", "GET", answer.status, answer.json())
    assert (answer.status, answer.json()["message"]) == (404, 'plugin "team/x" not found')


@pytest.mark.parametrize("path", ["/swarm", "/services", "/nodes", "/tasks", "/secrets", "/configs", "/services/x"])
async def test_swarm_mode_is_off(http: HttpClient, path: str) -> None:
    answer = await http.get(path)
    assert answer.status == 503
    assert answer.json()["message"].startswith("This node is not a swarm manager.")


# Events.


async def _arrange_events(fake: FakePortLayer) -> None:
    await fake.emit("image", "load", "sha256:1", name="busybox:latest")
    await fake.emit("container", "create", "aaa1", name="web", image="busybox:latest", tier="front")
    await fake.emit("container", "exec_create: sh -c x", "aaa1", name="web", image="busybox:latest")
    await fake.emit("container", "start", "bbb2", name="db", image="example.org/postgres:9", tier="back")


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [0, 1, 2, 3]),
        ({"type": ["image"]}, [0]),
        ({"type": ["image", "container"]}, [0, 1, 2, 3]),
        ({"type": ["volume"]}, []),
        ({"event": ["start", "load"]}, [0, 3]),
        ({"event": ["exec_create"]}, [2]),
        ({"event": ["exec"]}, []),
        ({"container": ["web"]}, [1, 2]),
        ({"container": ["bbb"]}, [3]),
        ({"image": ["busybox"]}, [0, 1, 2]),
        ({"image": ["example.org/postgres:9"]}, [3]),
        ({"label": ["tier"]}, [1, 3]),
        ({"label": ["tier=front"]}, [1]),
        ({"label": ["tier=front", "x"]}, []),
        ({"scope": ["local"]}, [0, 1, 2, 3]),
        ({"scope": ["swarm"]}, []),
        ({"network": ["x"]}, []),
        ({"type": ["container"], "event": ["start"]}, [3]),
    ],
)
async def test_event_filters(
    http: HttpClient, fake: FakePortLayer, filters: dict[str, list[str]], expected: list[int]
) -> None:
    await _arrange_events(fake)
    answer = await http.get("/events", since="0", until=rfc3339(fake.events[-1].time_unix_ns), filters=filters)
    for message in answer.lines():
        openapi.validate_definition("EventMessage", message)
    order = [event.time_unix_ns for event in fake.events]
    assert [order.index(message["timeNano"]) for message in answer.lines()] == expected


async def test_event_fields(http: HttpClient, fake: FakePortLayer) -> None:
    await fake.emit("container", "start", "bbb2", name="db", image="postgres:9")
    [message] = (await http.get("/events", since="1h", until=rfc3339(time.time_ns()))).lines()
    seconds, nanoseconds = message.pop("time"), message.pop("timeNano")
    assert seconds == nanoseconds // 10**9
    assert message == {
        "status": "start",
        "id": "bbb2",
        "from": "postgres:9",
        "Type": "container",
        "Action": "start",
        "Actor": {"ID": "bbb2", "Attributes": {"name": "db", "image": "postgres:9"}},
        "scope": "local",
    }


async def test_events_live(http: HttpClient, fake: FakePortLayer) -> None:
    """The headers say that nothing is missed from here on; a client that leaves ends the subscription."""
    await fake.emit("container", "start", "old")
    async with asyncio.timeout(PATIENCE_S), http.raw() as (reader, writer):
        writer.write(b"GET /events HTTP/1.1\r\nHost: d\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await fake.emit("container", "die", "new")
        await reader.readline()
        assert json.loads(await reader.readline())["Action"] == "die"
    await fake.until_cancelled("StreamEvents")


@pytest.mark.parametrize(
    "query",
    [
        {"since": "x"},
        {"until": "12-12"},
        {"since": "20", "until": "10"},
        {"filters": {"colour": ["red"]}},
        {"filters": "x"},
    ],
)
async def test_events_bad_input(http: HttpClient, query: dict[str, object]) -> None:
    answer = await http.get("/events", **query)
    openapi.validate("/events", "GET", answer.status, answer.json())
    assert answer.status == 400


async def test_docker_py(docker_client: docker.DockerClient, fake: FakePortLayer) -> None:
    await _arrange_events(fake)

    def use() -> list[str]:
        assert docker_client.ping()
        assert docker_client.info()["Name"] == "vch-test"
        assert docker_client.version()["Version"] == "0.1.0"
        assert docker_client.volumes.list() == []
        assert [network.name for network in docker_client.networks.list()] == ["none"]
        return [event["Action"] for event in docker_client.events(since=1, until=int(time.time()) + 1, decode=True)]

    assert (await asyncio.to_thread(use))[:2] == ["load", "create"]


# Times.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1629574695", 1629574695 * 10**9),
        ("1629574695.515", 1629574695515 * 10**6),
        ("1629574695.000000001", 1629574695 * 10**9 + 1),
        ("1970-01-02", None),
        ("1970-01-02Z", 86400 * 10**9),
        ("1970-01-01T00:01Z", 60 * 10**9),
        ("1970-01-01T01:00:00.5+01:00", 5 * 10**8),
        ("1970-01-01T00:00:00.000000007Z", 7),
    ],
)
def test_parse_time(text: str, expected: int | None) -> None:
    parsed = parse_time(text, "since")
    assert expected is None or parsed == expected


def test_parse_durations() -> None:
    for text, seconds in (("1h30m", 5400), ("10s", 10), ("1.5h", 5400), ("500ms", 0.5)):
        before = time.time_ns()
        assert before <= parse_time(text, "since") + seconds * 10**9 <= time.time_ns()


@pytest.mark.parametrize("text", ["", "x", "1e5", "10 s", "1970-13-01", "1970-01-01T25:00", "١٢", "9" * 20, "h"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(DockerError) as caught:
        parse_time(text, "since")
    assert caught.value.status == 400


def test_rfc3339() -> None:
    assert rfc3339(0) == "0001-01-01T00:00:00Z"
    assert rfc3339(1_644_009_612_497_794_800) == "2022-02-04T21:20:12.4977948Z"
    assert rfc3339(1_644_009_612_000_000_000) == "2022-02-04T21:20:12Z"
