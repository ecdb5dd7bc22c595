"""Restart policies, health checks, lists and logs as the docker CLI asks for them; differences that dockerd showed."""

from __future__ import annotations

import time
from typing import Any

import grpc
import openapi
import pytest
from conftest import HttpClient
from fake_portlayer import FakePortLayer
from fake_process import Script

from personality.translate import describe
from personality.translate.log_options import Detailed
from portlayer.v1 import types_pb2

SECOND_NS = 1_000_000_000
Policy = types_pb2.RestartPolicy
Health = types_pb2.Health


@pytest.fixture(autouse=True)
def _image(fake: FakePortLayer) -> None:
    fake.add_image("busybox:latest")
    fake.scripts["*"] = Script(forever=True)


async def create(http: HttpClient, name: str, host: dict[str, Any] | None = None, **body: Any) -> str:
    answer = await http.post("/containers/create", {"Image": "busybox", "HostConfig": host or {}, **body}, name=name)
    assert answer.status == 201, answer.body
    identity: str = answer.json()["Id"]
    return identity


async def inspect(http: HttpClient, name: str) -> Any:
    answer = await http.get(f"/containers/{name}/json")
    openapi.validate("/containers/{id}/json", "GET", 200, answer.json(), nulls=True)
    return answer.json()


async def names(http: HttpClient, **filters: list[str]) -> set[str]:
    answer = await http.get("/containers/json", all="1", filters=filters)
    assert answer.status == 200, answer.body
    return {one["Names"][0] for one in answer.json()}


# --- restart policies


@pytest.mark.parametrize(
    ("given", "kind", "retries"),
    [
        ({"Name": "no"}, Policy.KIND_UNSPECIFIED, 0),
        ({"Name": ""}, Policy.KIND_UNSPECIFIED, 0),
        ({"Name": "always"}, Policy.KIND_ALWAYS, 0),
        ({"Name": "unless-stopped", "MaximumRetryCount": 0}, Policy.KIND_UNLESS_STOPPED, 0),
        ({"Name": "on-failure", "MaximumRetryCount": 3}, Policy.KIND_ON_FAILURE, 3),
    ],
)
async def test_restart_policies_reach_the_port_layer_and_come_back(
    fake: FakePortLayer, http: HttpClient, given: dict[str, Any], kind: Policy.Kind, retries: int
) -> None:
    await create(http, "box", {"RestartPolicy": given})
    assert fake.request("CreateContainer").spec.restart == Policy(kind=kind, max_retries=retries)
    shown = (await inspect(http, "box"))["HostConfig"]["RestartPolicy"]
    assert shown == {"Name": given["Name"] or "no", "MaximumRetryCount": retries}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"Name": "sometimes"}, "unknown policy 'sometimes'"),
        ({"Name": "no", "MaximumRetryCount": 3}, "can only be used with 'on-failure'"),
        ({"Name": "always", "MaximumRetryCount": 3}, "can only be used with 'on-failure'"),
        ({"Name": "on-failure", "MaximumRetryCount": -1}, "cannot be negative"),
    ],
)
async def test_impossible_restart_policies(http: HttpClient, given: dict[str, Any], message: str) -> None:
    body = {"Image": "busybox", "HostConfig": {"RestartPolicy": given}}
    for answer in (
        await http.post("/containers/create", body),
        await http.post("/containers/x/update", body["HostConfig"]),
    ):
        assert answer.status == 400
        assert message in answer.json()["message"]


async def test_update_changes_the_policy_and_nothing_else(fake: FakePortLayer, http: HttpClient) -> None:
    await create(http, "box")
    # The CLI sends every field.
    body = {"Memory": 0, "NanoCpus": 0, "PidsLimit": None, "Devices": None, "CpusetCpus": "", "MemorySwappiness": None}
    answer = await http.post("/containers/box/update", {**body, "RestartPolicy": {"Name": "always"}})
    openapi.validate("/containers/{id}/update", "POST", answer.status, answer.json())
    assert (await inspect(http, "box"))["HostConfig"]["RestartPolicy"]["Name"] == "always"
    assert (await http.post("/containers/box/update", {**body, "RestartPolicy": {"Name": ""}})).status == 200
    assert not fake.request("UpdateContainer").HasField("restart")
    refused = await http.post("/containers/box/update", {**body, "Memory": 100 << 20})
    assert refused.status == 501
    assert "Memory cannot be changed" in refused.json()["message"]
    assert (await http.post("/containers/nosuch/update", body)).status == 404


async def test_a_container_that_waits_to_be_started_again(fake: FakePortLayer, http: HttpClient) -> None:
    identity = await create(http, "box", {"RestartPolicy": {"Name": "always"}})
    state = fake.containers[identity].state
    state.status = types_pb2.CONTAINER_STATUS_RESTARTING
    state.exit_code, state.restart_count = 3, 2
    state.started_unix_ns = state.finished_unix_ns = time.time_ns() - 5 * 3600 * SECOND_NS
    shown = await inspect(http, "box")
    assert shown["RestartCount"] == 2
    expected = {"Status": "restarting", "Running": True, "Restarting": True, "Paused": False, "Pid": 0, "ExitCode": 3}
    assert expected.items() <= shown["State"].items()
    listed = (await http.get("/containers/json")).json()  # it counts as running
    assert (listed[0]["State"], listed[0]["Status"]) == ("restarting", "Restarting (3) 5 hours ago")
    assert await names(http, status=["restarting"]) == {"/box"}
    state.status = types_pb2.CONTAINER_STATUS_STARTING
    assert (await inspect(http, "box"))["State"]["Status"] == "restarting"
    state.restart_count = 0  # somebody starts it: as before, until it runs
    assert (await inspect(http, "box"))["State"]["Status"] == "exited"


# --- health checks


async def test_health_checks_reach_the_port_layer_and_come_back(fake: FakePortLayer, http: HttpClient) -> None:
    check = {"Test": ["CMD-SHELL", "true"], "Interval": SECOND_NS, "StartPeriod": 2 * SECOND_NS, "Retries": 2}
    await create(http, "box", Healthcheck=check)
    spec = fake.request("CreateContainer").spec.health_check
    assert (list(spec.test), spec.interval_ns, spec.start_period_ns, spec.retries) == (
        ["CMD-SHELL", "true"],
        SECOND_NS,
        2 * SECOND_NS,
        2,
    )
    assert (await inspect(http, "box"))["Config"]["Healthcheck"] == check
    await create(http, "none", Healthcheck={"Test": ["NONE"]})
    assert (await inspect(http, "none"))["Config"]["Healthcheck"] == {"Test": ["NONE"]}


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ({"Interval": 1000}, "Interval in Healthcheck cannot be less than 1ms"),
        ({"StartPeriod": -5}, None),
        ({"Retries": -1}, "Retries in Healthcheck cannot be negative"),
    ],
)
async def test_impossible_health_checks(http: HttpClient, check: dict[str, Any], message: str | None) -> None:
    answer = await http.post("/containers/create", {"Image": "busybox", "Healthcheck": {"Test": ["CMD", "x"], **check}})
    assert answer.status == 400
    assert (message or "StartPeriod in Healthcheck cannot be less than 1ms") in answer.json()["message"]


async def test_health_is_shown_and_filtered_by(fake: FakePortLayer, http: HttpClient) -> None:
    plain = await create(http, "plain")
    checked = await create(http, "checked")
    for identity in (plain, checked):
        await http.post(f"/containers/{identity}/start")
    assert "Health" not in (await inspect(http, "plain"))["State"]
    health = fake.containers[checked].state.health
    for status, word, remark in (
        (Health.STATUS_STARTING, "starting", "(health: starting)"),
        (Health.STATUS_HEALTHY, "healthy", "(healthy)"),
        (Health.STATUS_UNHEALTHY, "unhealthy", "(unhealthy)"),
    ):
        health.status = status
        assert (await inspect(http, "checked"))["State"]["Health"]["Status"] == word
        listed = (await http.get("/containers/json", filters={"name": ["checked"]})).json()
        assert listed[0]["Status"].endswith(remark)
        assert await names(http, health=[word]) == {"/checked"}
    assert await names(http, health=["none"]) == {"/plain"}
    assert (await http.get("/containers/json", filters={"health": ["splendid"]})).status == 400
    health.failing_streak = 4
    health.probes.add(began_unix_ns=1, ended_unix_ns=2, exit_code=-1, output=b"bad \xff bytes")
    shown = (await inspect(http, "checked"))["State"]["Health"]
    assert shown["FailingStreak"] == 4
    assert shown["Log"][0]["ExitCode"] == -1
    assert shown["Log"][0]["Output"] == "bad � bytes"


# --- lists


async def test_containers_of_an_image_whatever_its_name_is_now(fake: FakePortLayer, http: HttpClient) -> None:
    await create(http, "box")
    image = next(iter(fake.images.values()))
    image.tags.append("other:tag")
    for name in ("busybox", "busybox:latest", "other:tag", image.id, image.id[7:19]):
        assert await names(http, ancestor=[name]) == {"/box"}, name
    del image.tags[:]
    fake.add_image("busybox:latest")  # the name has moved on
    assert await names(http, ancestor=["busybox"]) == set()
    assert await names(http, ancestor=["nosuch"]) == set()


def test_commands_are_shown_as_dockerd_shows_them() -> None:
    container = types_pb2.Container()
    container.spec.process.cmd.extend(["sh", "-c", "echo it's a test"])
    assert describe.summary(container)["Command"] == "sh -c 'echo it's a test'"


async def test_what_the_cli_sends_for_no_limit_is_none(http: HttpClient) -> None:
    host = {
        "PidsLimit": 0,
        "MemorySwappiness": -1,
        "IpcMode": "",
        "LogConfig": {"Type": "", "Config": {"max-size": "1m"}},
    }
    await create(http, "box", host)
    shown = (await inspect(http, "box"))["HostConfig"]
    assert shown["PidsLimit"] is None
    assert "MemorySwappiness" not in shown
    assert (shown["IpcMode"], shown["CgroupnsMode"]) == ("private", "private")
    assert shown["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1m"}}


@pytest.mark.parametrize(
    ("code", "status"), [(grpc.StatusCode.NOT_FOUND, 404), (grpc.StatusCode.FAILED_PRECONDITION, 409)]
)
async def test_kill_says_what_it_could_not_do(
    fake: FakePortLayer, http: HttpClient, code: grpc.StatusCode, status: int
) -> None:
    fake.fail("KillContainer", code, "the reason")
    answer = await http.post("/containers/box/kill")
    assert answer.status == status
    assert answer.json()["message"] == "cannot kill container: box: the reason"


# --- logs with details


async def test_details_of_log_lines(fake: FakePortLayer, http: HttpClient) -> None:
    fake.scripts["*"] = Script(stdout=b"one\ntwo\n")
    config = {"labels": "color,shape", "env-regex": "^N", "tag": "{{.Name}}/{{ .ImageName }}"}
    await create(
        http,
        "box",
        {"LogConfig": {"Config": config}},
        Labels={"color": "light blue", "size": "s"},
        Env=["N1=a", "M=b"],
        Tty=True,
    )
    await http.post("/containers/box/start")
    await http.post("/containers/box/wait")
    prefix = b"N1=a,color=light+blue,tag=box%2Fbusybox "
    plain = await http.get("/containers/box/logs", stdout="1", details="1")
    assert plain.body == prefix + b"one\n" + prefix + b"two\n"
    stamped = await http.get("/containers/box/logs", stdout="1", details="1", timestamps="1")
    assert [line.split(b" ", 1)[1] for line in stamped.body.splitlines()] == [prefix + b"one", prefix + b"two"]
    assert (await http.get("/containers/box/logs", stdout="1")).body == b"one\ntwo\n"


def test_lines_in_pieces_get_their_details_once() -> None:
    detailed = Detailed(b"<>", stamped=False)
    assert detailed.lines(1, b"a\nb") == b"<>a\n<>b"
    assert detailed.lines(2, b"err\r\n") == b"<>err\r\n"  # another stream
    assert detailed.lines(1, b"b\r") == b"b\r"
    assert detailed.lines(1, b"b\n\nc\n") == b"b\n<>\n<>c\n"
    assert detailed.lines(1, b"\n") == b"<>\n"
    stamped = Detailed(b"<>", stamped=True)
    assert stamped.lines(1, b"T1 a b\nT2 c") == b"T1 <>a b\nT2 <>c"
    assert stamped.lines(1, b" d\nT3 e\n") == b" d\nT3 <>e\n"
