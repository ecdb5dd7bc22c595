"""A container's networks, as clients ask for them and as they are told of them."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import openapi
import pytest
from conftest import HttpClient
from fake_portlayer import FakePortLayer
from fake_process import Script
from fake_state import make_network

NAMES = ("none", "bridge", "web", "lab")


@pytest.fixture(autouse=True)
def networks(fake: FakePortLayer) -> dict[str, str]:
    """Ids by name."""
    fake.add_image("busybox:latest")
    fake.networks += [
        make_network("bridge", "bridge", "port group /DC0/network/vch"),
        make_network("web", "vsphere", "port group /DC0/network/VLAN 7"),
        make_network("lab", "vsphere"),
    ]
    return {network.name: network.id for network in fake.networks}


async def _create(http: HttpClient, **body: Any) -> dict[str, Any]:
    answer = await http.post("/containers/create", {"Image": "busybox", **body})
    assert answer.status == 201, answer.body
    return (await http.get(f"/containers/{answer.json()['Id']}/json")).json()


@pytest.mark.parametrize(
    ("mode", "endpoints", "asked", "shown"),
    [
        (None, None, [], ["bridge"]),
        ("", None, [], ["bridge"]),
        ("default", {}, [], ["bridge"]),
        ("default", {"default": {}}, [], ["bridge"]),
        ("bridge", None, [], ["bridge"]),
        ("bridge", {"bridge": {}}, [], ["bridge"]),
        ("none", None, ["none"], ["none"]),
        ("web", None, ["web"], ["web"]),
        # As docker run --network web --network lab and docker compose send it.
        ("web", {"web": {}, "lab": {"Aliases": ["me"]}}, ["web", "lab"], ["web", "lab"]),
        ("web", {"lab": {}, "web": None}, ["web", "lab"], ["web", "lab"]),
        ("web", {"lab": {}}, ["web", "lab"], ["web", "lab"]),
        ("default", {"default": {}, "lab": {}}, ["bridge", "lab"], ["bridge", "lab"]),
        (None, {"lab": {}}, ["lab"], ["lab"]),
        ("bridge", {"lab": {}, "web": {}}, ["lab", "web"], ["lab", "web"]),
    ],
)
async def test_networks_that_are_asked_for(
    http: HttpClient,
    fake: FakePortLayer,
    networks: dict[str, str],
    mode: str | None,
    endpoints: dict[str, Any] | None,
    asked: list[str],
    shown: list[str],
) -> None:
    config = {"EndpointsConfig": endpoints}
    body = await _create(http, HostConfig={"NetworkMode": mode}, NetworkingConfig=config)
    openapi.validate("/containers/{id}/json", "GET", 200, body, nulls=True)
    assert list(fake.request("CreateContainer").spec.networks) == asked
    assert body["HostConfig"]["NetworkMode"] == (mode or shown[0])
    found = body["NetworkSettings"]["Networks"]
    assert {name: one["NetworkID"] for name, one in found.items()} == {name: networks[name] for name in shown}
    assert list(found) == shown
    assert {one["IPAddress"] for one in found.values()} == {""}
    [listed] = (await http.get("/containers/json", all="1")).json()
    assert {name: one["NetworkID"] for name, one in listed["NetworkSettings"]["Networks"].items()} == {
        name: networks[name] for name in shown
    }


async def test_a_disabled_network_is_none(http: HttpClient, fake: FakePortLayer) -> None:
    await _create(http, NetworkDisabled=True, HostConfig={"NetworkMode": "web"})
    assert list(fake.request("CreateContainer").spec.networks) == ["none"]


async def test_without_a_bridge_network_the_default_is_loopback(http: HttpClient, fake: FakePortLayer) -> None:
    del fake.networks[1:]
    body = await _create(http, HostConfig={"NetworkMode": "default"})
    assert list(body["NetworkSettings"]["Networks"]) == ["none"]


async def test_a_container_of_an_earlier_version_is_on_none(http: HttpClient, fake: FakePortLayer) -> None:
    identity = (await _create(http))["Id"]
    del fake.containers[identity].endpoints[:]
    body = (await http.get(f"/containers/{identity}/json")).json()
    assert {name: one["NetworkID"] for name, one in body["NetworkSettings"]["Networks"].items()} == {"none": ""}


async def test_containers_are_found_by_network(http: HttpClient, networks: dict[str, str]) -> None:
    for name in ("web", "lab"):
        await _create(http, HostConfig={"NetworkMode": name})
    both = await _create(http, HostConfig={"NetworkMode": "web"}, NetworkingConfig={"EndpointsConfig": {"lab": {}}})

    async def count(*values: str) -> int:
        return len((await http.get("/containers/json", all="1", filters={"network": list(values)})).json())

    assert await count("web") == 2
    assert await count(networks["web"]) == 2
    assert await count("web", "lab") == 3
    assert await count("bridge") == 0
    assert await count("") == 0
    found = (await http.get("/containers/json", all="1", filters={"network": ["lab"], "id": [both["Id"]]})).json()
    assert [one["Id"] for one in found] == [both["Id"]]


async def test_networks_are_listed(http: HttpClient, networks: dict[str, str]) -> None:
    answer = (await http.get("/networks")).json()
    openapi.validate("/networks", "GET", 200, answer)
    assert {one["Name"]: (one["Id"], one["Driver"]) for one in answer} == {
        name: (networks[name], driver)
        for name, driver in zip(NAMES, ("null", "bridge", "vsphere", "vsphere"), strict=True)
    }
    for filters, names in (
        ({"type": ["custom"]}, ["web", "lab"]),
        ({"type": ["builtin"]}, ["none", "bridge"]),
        ({"driver": ["vsphere"]}, ["web", "lab"]),
        ({"id": [networks["web"][:12]]}, ["web"]),
        ({"name": ["e"]}, ["none", "bridge", "web"]),
    ):
        assert [one["Name"] for one in (await http.get("/networks", filters=filters)).json()] == names


async def test_a_network_tells_who_is_on_it_and_what_it_is(http: HttpClient, fake: FakePortLayer) -> None:
    fake.scripts["*"] = Script(forever=True)
    first = await _create(http, HostConfig={"NetworkMode": "web"})
    await _create(http, HostConfig={"NetworkMode": "web"})  # which does not run
    await http.post(f"/containers/{first['Id']}/start")
    answer = (await http.get("/networks/web")).json()
    openapi.validate("/networks/{id}", "GET", 200, answer)
    assert {key: one["Name"] for key, one in answer["Containers"].items()} == {first["Id"]: first["Name"].lstrip("/")}
    assert answer["Options"] == {"description": "port group /DC0/network/VLAN 7"}
    assert (await http.get("/networks/lab")).json()["Containers"] == {}
    assert (await http.delete("/networks/web")).status == 403


@pytest.mark.skipif(shutil.which("docker") is None, reason="no docker CLI here")
async def test_the_docker_client(fake: FakePortLayer, docker_socket: Path, networks: dict[str, str]) -> None:
    async def docker(*arguments: str, code: int = 0) -> str:
        command = ("docker", "-H", f"unix://{docker_socket}", *arguments)
        process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
        out, err = await process.communicate()
        assert process.returncode == code, err
        return (err if code else out).decode()

    assert (await docker("network", "ls", "--format", "{{.Name}}")).split() == sorted(NAMES)
    made = (await docker("create", "--network", "web", "--network", "lab", "busybox")).strip()
    assert list(fake.containers[made].spec.networks) == ["web", "lab"]
    shown = json.loads(await docker("inspect", "-f", "{{json .NetworkSettings.Networks}}", made))
    assert {name: one["NetworkID"] for name, one in shown.items()} == {name: networks[name] for name in ("web", "lab")}
    assert (await docker("ps", "-a", "--format", "{{.Networks}}")).strip() in ("web,lab", "lab,web")
    made = (await docker("create", "busybox")).strip()
    assert list(fake.containers[made].spec.networks) == []
    refused = await docker("run", "--network", "web", "--network", "mine", "busybox", code=125)
    assert "network mine not found" in refused
    assert "Unable to find image" not in refused
