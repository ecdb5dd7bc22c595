"""POST /containers/create: each field of the API that is taken, refused, or said to have no effect."""

from __future__ import annotations

import os
import pwd
from typing import Any

import msgspec
import openapi
import pytest
from conftest import Answer, HttpClient
from fake_portlayer import FakePortLayer

from personality.translate import bodies
from portlayer.v1 import types_pb2


@pytest.fixture(autouse=True)
def _image(fake: FakePortLayer) -> None:
    fake.add_image("busybox:latest", config={"Cmd": ["sh"], "Entrypoint": ["/entry"], "Env": ["PATH=/bin"]})


async def _create(http: HttpClient, body: dict[str, Any], **query: Any) -> Answer:
    answer = await http.post("/containers/create", {"Image": "busybox", **body}, **query)
    openapi.validate("/containers/create", "POST", answer.status, answer.json())
    return answer


def _spec(fake: FakePortLayer) -> types_pb2.ContainerSpec:
    spec: types_pb2.ContainerSpec = fake.request("CreateContainer").spec
    return spec


def _look(spec: types_pb2.ContainerSpec, path: str) -> Any:
    value: Any = spec
    for name in path.split("."):
        value = getattr(value, name)
    if hasattr(value, "items"):
        return dict(value)
    return list(value) if hasattr(value, "append") else value


@pytest.mark.parametrize(
    ("body", "path", "expected"),
    [
        ({}, "image", "busybox"),
        ({"Owner": "somebody else"}, "owner", pwd.getpwuid(os.getuid()).pw_name),
        ({"Hostname": "box"}, "hostname", "box"),
        ({"Domainname": "example.org"}, "domainname", "example.org"),
        ({"User": "1000:100"}, "process.user", "1000:100"),
        ({"Tty": True}, "process.terminal", True),
        ({"OpenStdin": True}, "process.open_stdin", True),
        ({"OpenStdin": True, "StdinOnce": True}, "process.stdin_once", True),
        ({"Env": ["A=b", "C"]}, "process.env", ["A=b", "C"]),
        ({"Cmd": ["echo", "hi"]}, "process.cmd", ["echo", "hi"]),
        ({"Cmd": "echo"}, "process.cmd", ["echo"]),
        ({"Entrypoint": ["/bin/sh", "-c"]}, "process.entrypoint", ["/bin/sh", "-c"]),
        ({"Entrypoint": "/bin/sh"}, "process.entrypoint", ["/bin/sh"]),
        ({}, "process.entrypoint_set", False),
        ({"Entrypoint": None}, "process.entrypoint_set", False),
        ({"Entrypoint": [""]}, "process.entrypoint", []),
        ({"Entrypoint": [""]}, "process.entrypoint_set", True),
        # Discards the image's entrypoint and keeps its command.
        ({"Entrypoint": []}, "process.entrypoint_set", True),
        ({"Entrypoint": []}, "process.cmd", ["sh"]),
        ({"WorkingDir": "/w"}, "process.working_dir", "/w"),
        ({"Labels": {"a": "b"}}, "labels", {"a": "b"}),
        ({"StopSignal": "SIGQUIT"}, "stop_signal", 3),
        ({"StopSignal": "RTMIN+2"}, "stop_signal", 36),
        ({"StopTimeout": 7}, "stop_timeout_s", 7),
        ({"StopTimeout": 1 << 40}, "stop_timeout_s", (1 << 31) - 1),
        ({"HostConfig": {"Memory": 64 << 20}}, "resources.memory_bytes", 64 << 20),
        ({"HostConfig": {"NanoCpus": 1_500_000_000}}, "resources.nano_cpus", 1_500_000_000),
        ({"HostConfig": {"CpuQuota": 50_000}}, "resources.nano_cpus", 500_000_000),
        ({"HostConfig": {"CpuQuota": 50_000, "CpuPeriod": 25_000}}, "resources.nano_cpus", 2_000_000_000),
        ({"HostConfig": {"CpuQuota": (1 << 63) - 1, "CpuPeriod": 1}}, "resources.nano_cpus", (1 << 64) - 1),
        ({"HostConfig": {"CpuQuota": -1}}, "resources.nano_cpus", 0),
        ({"HostConfig": {"PidsLimit": 10}}, "resources.pids_limit", 10),
        ({"HostConfig": {"PidsLimit": -1}}, "resources.pids_limit", 0),
        ({"HostConfig": {"StorageOpt": {"size": "2G"}}}, "resources.disk_bytes", 2 << 30),
        ({"HostConfig": {"StorageOpt": {"size": "9" * 18 + "t"}}}, "resources.disk_bytes", (1 << 64) - 1),
        ({"HostConfig": {"ShmSize": 1 << 20}}, "shm_size_bytes", 1 << 20),
        ({"HostConfig": {"ReadonlyRootfs": True}}, "read_only_root", True),
        ({"HostConfig": {"Init": True}}, "init_process", True),
        ({"HostConfig": {"Privileged": True}}, "privileged", True),
        ({"HostConfig": {"CapAdd": ["NET_ADMIN"]}}, "process.capabilities_add", ["NET_ADMIN"]),
        ({"HostConfig": {"CapDrop": ["ALL"]}}, "process.capabilities_drop", ["ALL"]),
        ({"HostConfig": {"GroupAdd": ["audio", 5]}}, "process.additional_groups", ["audio", "5"]),
        ({"HostConfig": {"OomScoreAdj": -500}}, "process.oom_score_adj", -500),
        ({"HostConfig": {"SecurityOpt": ["no-new-privileges"]}}, "process.no_new_privileges", True),
        ({"HostConfig": {"SecurityOpt": ["no-new-privileges:false"]}}, "process.no_new_privileges", False),
        ({"HostConfig": {"SecurityOpt": ["seccomp=unconfined"]}}, "process.no_new_privileges", False),
        ({"HostConfig": {"Sysctls": {"kernel.msgmax": "1"}}}, "sysctls", {"kernel.msgmax": "1"}),
        ({"HostConfig": {"ExtraHosts": ["db:10.0.0.1"]}}, "extra_hosts", ["10.0.0.1 db"]),
        ({"HostConfig": {"ExtraHosts": ["six:[fe80::1]"]}}, "extra_hosts", ["fe80::1 six"]),
        ({"HostConfig": {"Dns": ["9.9.9.9"]}}, "dns_servers", ["9.9.9.9"]),
        ({"HostConfig": {"DnsSearch": ["example.org"]}}, "dns_search", ["example.org"]),
        ({"HostConfig": {"DnsOptions": ["ndots:1"]}}, "dns_options", ["ndots:1"]),
        ({"HostConfig": {"AutoRemove": True}}, "auto_remove", True),
        ({"HostConfig": {"LogConfig": {"Type": "none"}}}, "log.disabled", True),
        ({"HostConfig": {"LogConfig": {"Config": {"max-size": "10m"}}}}, "log.max_file_bytes", 10 << 20),
        ({"HostConfig": {"LogConfig": {"Config": {"max-size": "-1"}}}}, "log.max_file_bytes", 0),
        ({"HostConfig": {"LogConfig": {"Type": "local", "Config": {"max-file": "3"}}}}, "log.max_files", 3),
        ({"HostConfig": {"ConsoleSize": [24, 80]}, "Tty": True}, "process.terminal_rows", 24),
        ({"HostConfig": {"ConsoleSize": [24, 80]}, "Tty": True}, "process.terminal_columns", 80),
    ],
)
async def test_what_is_taken(
    http: HttpClient, fake: FakePortLayer, body: dict[str, Any], path: str, expected: object
) -> None:
    answer = await _create(http, body)
    assert answer.status == 201
    assert answer.json() == {"Id": next(iter(fake.containers)), "Warnings": []}
    assert _look(_spec(fake), path) == expected


async def test_tmpfs_both_ways(http: HttpClient, fake: FakePortLayer) -> None:
    options = {"SizeBytes": 4096, "Mode": 0o1777, "Options": [["noexec"], ["uid", "5"]]}
    mount = {"Type": "tmpfs", "Target": "/m", "ReadOnly": True, "TmpfsOptions": options}
    await _create(
        http, {"HostConfig": {"Tmpfs": {"/t": "size=1m"}, "Mounts": [mount, {"Type": "tmpfs", "Target": "/n"}]}}
    )
    assert [(each.target, each.options) for each in _spec(fake).tmpfs] == [
        ("/t", "size=1m"),
        ("/m", "noexec,uid=5,size=4096,mode=1777,ro"),
        ("/n", ""),
    ]


async def test_ulimits(http: HttpClient, fake: FakePortLayer) -> None:
    await _create(http, {"HostConfig": {"Ulimits": [{"Name": "nofile", "Soft": 10, "Hard": -1}]}})
    assert [(one.name, one.soft, one.hard) for one in _spec(fake).process.ulimits] == [("nofile", 10, -1)]


async def test_the_name_and_a_request_id(http: HttpClient, fake: FakePortLayer) -> None:
    await _create(http, {}, name="web")
    first = fake.request("CreateContainer")
    await _create(http, {})
    assert first.name == "web"
    assert len(first.request_id) == 32
    assert fake.request("CreateContainer").request_id != first.request_id


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ({"CpuShares": 512}, "CpuShares"),
        ({"CpusetCpus": "0"}, "CpusetCpus"),
        ({"CpusetMems": "0"}, "CpusetMems"),
        ({"CpuRealtimePeriod": 1000}, "CpuRealtimePeriod"),
        ({"CpuRealtimeRuntime": 1000}, "CpuRealtimeRuntime"),
        ({"KernelMemoryTCP": 1 << 20}, "KernelMemoryTCP"),
        ({"MemoryReservation": 1 << 20}, "MemoryReservation"),
        ({"MemorySwap": 1 << 30}, "MemorySwap"),
        ({"MemorySwappiness": 60}, "MemorySwappiness"),
        ({"OomKillDisable": True}, "OomKillDisable"),
        ({"CgroupParent": "/x"}, "CgroupParent"),
        ({"BlkioWeight": 100}, "BlkioWeight"),
        ({"BlkioWeightDevice": [{"Path": "/dev/sda", "Weight": 100}]}, "BlkioWeightDevice"),
        ({"BlkioDeviceReadBps": [{"Path": "/dev/sda", "Rate": 1}]}, "BlkioDeviceReadBps"),
        ({"BlkioDeviceWriteBps": [{"Path": "/dev/sda", "Rate": 1}]}, "BlkioDeviceWriteBps"),
        ({"BlkioDeviceReadIOps": [{"Path": "/dev/sda", "Rate": 1}]}, "BlkioDeviceReadIOps"),
        ({"BlkioDeviceWriteIOps": [{"Path": "/dev/sda", "Rate": 1}]}, "BlkioDeviceWriteIOps"),
        ({"DeviceCgroupRules": ["c 1:1 r"]}, "DeviceCgroupRules"),
        ({"CpuCount": 1}, "CpuCount"),
        ({"CpuPercent": 1}, "CpuPercent"),
        ({"IOMaximumIOps": 1}, "IOMaximumIOps"),
        ({"IOMaximumBandwidth": 1}, "IOMaximumBandwidth"),
    ],
)
async def test_what_has_no_effect_is_said(http: HttpClient, host: dict[str, Any], name: str) -> None:
    answer = await _create(http, {"HostConfig": host})
    assert answer.status == 201
    assert answer.json()["Warnings"] == [f"{name} has no effect: the container is a VM of its own"]


async def test_a_health_check_is_kept(http: HttpClient) -> None:
    check = {"Test": ["CMD", "true"], "Interval": 5_000_000_000, "Retries": 3}
    answer = await _create(http, {"Healthcheck": check})
    assert answer.json()["Warnings"] == []
    inspected = (await http.get(f"/containers/{answer.json()['Id']}/json")).json()
    assert inspected["Config"]["Healthcheck"] == check
    assert (await _create(http, {"Healthcheck": {"Test": ["NONE"]}})).json()["Warnings"] == []


@pytest.mark.parametrize(
    "host",
    [
        # What docker run sends when nothing of it was asked for.
        {"MemorySwappiness": -1, "MemorySwap": 0, "OomKillDisable": False, "PidsLimit": 0, "BlkioDeviceReadBps": []},
        {"NetworkMode": "default", "PortBindings": {}, "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}},
        {"NetworkMode": "none", "Binds": None, "Links": None, "VolumesFrom": None, "Devices": [], "Mounts": None},
        {"NetworkMode": "bridge", "LogConfig": {"Type": "", "Config": {}}, "PidMode": "", "UTSMode": "", "IpcMode": ""},
        {"Isolation": "", "Runtime": "", "UsernsMode": "", "ContainerIDFile": "", "MaskedPaths": None},
        {"Isolation": "default", "Runtime": "runc", "IpcMode": "private", "CgroupnsMode": "private"},
        {"PortBindings": {"80/tcp": None}, "RestartPolicy": {}, "Ulimits": None, "GroupAdd": None},
        {"Annotations": {"a": "b"}, "Runtime": "vm", "ReadonlyPaths": []},
    ],
)
async def test_nothing_in_particular_is_taken(http: HttpClient, host: dict[str, Any]) -> None:
    answer = await _create(http, {"HostConfig": host, "NetworkingConfig": {"EndpointsConfig": {"none": None}}})
    assert (answer.status, answer.json()["Warnings"]) == (201, [])


@pytest.mark.parametrize(
    ("runtime", "cold_boot", "shown"),
    [
        ("", False, "vm"),
        ("vm", False, "vm"),
        ("runc", False, "runc"),
        ("vm-cold-boot", True, "vm-cold-boot"),
    ],
)
async def test_the_runtime_says_how_the_vm_comes_to_run(
    http: HttpClient, fake: FakePortLayer, runtime: str, cold_boot: bool, shown: str
) -> None:
    made = (await _create(http, {"HostConfig": {"Runtime": runtime}})).json()["Id"]
    assert fake.request("CreateContainer").spec.cold_boot == cold_boot
    inspected = (await http.get(f"/containers/{made}/json")).json()
    assert inspected["HostConfig"]["Runtime"] == shown


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"Image": ""}, 400, "no image given"),
        ({"Image": None}, 400, "no image given"),
        ({"Image": "absent"}, 404, "No such image: absent"),
        ({"Image": "absent", "HostConfig": {"NetworkMode": "none"}}, 404, "No such image: absent"),
        ({"StopSignal": "SIGNAL"}, 400, "invalid signal: SIGNAL"),
        ({"Volumes": {"/data": {}}}, 501, "volumes and bind mounts are not served"),
        ({"MacAddress": "02:42:00:00:00:01"}, 501, "choosing addresses is not served"),
        ({"NetworkingConfig": {"EndpointsConfig": {"blue": {}}}}, 400, "network blue not found"),
        ({"HostConfig": {"NetworkMode": "blue"}}, 400, "network blue not found"),
        ({"NetworkingConfig": {"EndpointsConfig": {"host": {}}}}, 400, "network host cannot be joined"),
        (
            {"NetworkingConfig": {"EndpointsConfig": {"bridge": {"MacAddress": "02:42:00:00:00:01"}}}},
            501,
            "choosing addresses is not served",
        ),
        (
            {"NetworkingConfig": {"EndpointsConfig": {"bridge": {"IPAMConfig": {"IPv4Address": "10.0.0.2"}}}}},
            501,
            "choosing addresses is not served",
        ),
        ({"HostConfig": {"NetworkMode": "host"}}, 400, "network host cannot be joined"),
        ({"HostConfig": {"NetworkMode": "container:x"}}, 400, "network container:x cannot be joined"),
        ({"HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": "8080"}]}}}, 501, "publishing ports is not served"),
        ({"HostConfig": {"PublishAllPorts": True}}, 501, "publishing ports is not served"),
        ({"HostConfig": {"Binds": ["/a:/b"]}}, 501, "volumes and bind mounts are not served"),
        ({"HostConfig": {"VolumesFrom": ["x"]}}, 501, "volumes and bind mounts are not served"),
        ({"HostConfig": {"Mounts": [{"Type": "bind", "Target": "/a", "Source": "/"}]}}, 501, "volumes and bind mounts"),
        ({"HostConfig": {"Links": ["a:b"]}}, 501, "links are not served"),
        ({"HostConfig": {"CgroupnsMode": "host"}}, 501, "sharing the cgroup namespace (host) is impossible"),
        ({"HostConfig": {"Devices": [{"PathOnHost": "/dev/kvm"}]}}, 501, "devices of the host"),
        ({"HostConfig": {"DeviceRequests": [{"Count": -1}]}}, 501, "devices of the host"),
        ({"HostConfig": {"PidMode": "host"}}, 501, "sharing the PID namespace (host) is impossible"),
        ({"HostConfig": {"IpcMode": "host"}}, 501, "sharing the IPC namespace (host) is impossible"),
        ({"HostConfig": {"UTSMode": "host"}}, 501, "sharing the UTS namespace (host) is impossible"),
        ({"HostConfig": {"Runtime": "kata"}}, 400, "unknown or invalid runtime name: kata"),
        ({"HostConfig": {"Isolation": "hyperv"}}, 400, "invalid isolation 'hyperv'"),
        ({"HostConfig": {"LogConfig": {"Type": "gelf"}}}, 400, "no log driver named 'gelf' is registered"),
        ({"HostConfig": {"LogConfig": {"Config": {"magic": "x"}}}}, 400, "unknown log opt 'magic'"),
        ({"HostConfig": {"LogConfig": {"Config": {"max-file": "0"}}}}, 400, "max-file cannot be less than 1"),
        ({"HostConfig": {"LogConfig": {"Config": {"mode": "fast"}}}}, 400, "logging mode not supported: fast"),
        ({"HostConfig": {"LogConfig": {"Config": {"tag": "{{.Secret}}"}}}}, 400, "no field .Secret"),
        ({"HostConfig": {"LogConfig": {"Config": {"tag": "{{if x}}"}}}}, 400, "only fields such as {{.Name}}"),
        ({"HostConfig": {"LogConfig": {"Config": {"env-regex": "("}}}}, 400, "invalid env-regex"),
        ({"HostConfig": {"LogConfig": {"Config": {"max-file": "²"}}}}, 400, "invalid max-file"),
        ({"HostConfig": {"LogConfig": {"Config": {"max-file": "9" * 5000}}}}, 400, "invalid max-file"),
        ({"HostConfig": {"LogConfig": {"Config": {"max-size": "big"}}}}, 400, "invalid size"),
        ({"HostConfig": {"StorageOpt": {"size": "9" * 5000}}}, 400, "invalid size"),
        ({"HostConfig": {"SecurityOpt": ["magic"]}}, 400, "invalid --security-opt"),
        ({"HostConfig": {"ExtraHosts": ["db"]}}, 400, "bad format for add-host"),
        ({"HostConfig": {"ExtraHosts": ["db:host-gateway"]}}, 501, "host-gateway has no meaning yet"),
        ({"HostConfig": {"Memory": -1}}, 400, "invalid Memory: -1"),
        ({"HostConfig": {"NanoCpus": -1}}, 400, "invalid NanoCpus: -1"),
        ({"HostConfig": {"CpuPeriod": -1, "CpuQuota": 1}}, 400, "invalid CpuPeriod: -1"),
        ({"HostConfig": {"ShmSize": -1}}, 400, "invalid ShmSize: -1"),
        ({"HostConfig": {"OomScoreAdj": 1001}}, 400, "$.HostConfig.OomScoreAdj"),
        ({"HostConfig": {"ConsoleSize": [-1, 80]}}, 400, "$.HostConfig.ConsoleSize"),
        ({"HostConfig": {"ConsoleSize": [1 << 16, 80]}}, 400, "$.HostConfig.ConsoleSize"),
        ({"HostConfig": {"Mounts": [{"Type": "tmpfs", "TmpfsOptions": {"Mode": -1}}]}}, 400, "TmpfsOptions.Mode"),
        ({"HostConfig": {"Annotations": {"a": "x" * 62_000}}}, 400, "larger than 60 KiB"),
    ],
)
async def test_what_cannot_be_had_is_refused(
    http: HttpClient, fake: FakePortLayer, body: dict[str, Any], status: int, message: str
) -> None:
    answer = await http.post("/containers/create", {"Image": "busybox", **body})
    assert answer.status == status, answer.body
    assert message in answer.json()["message"]
    assert not fake.containers


async def test_an_image_for_another_platform(http: HttpClient, fake: FakePortLayer) -> None:
    answer = await _create(http, {}, platform="linux/arm64")
    assert answer.status == 404
    assert "its platform (linux/amd64) does not match the specified platform (linux/arm64)" in answer.json()["message"]
    assert not fake.containers
    assert (await _create(http, {}, platform="linux/amd64")).status == 201
    assert (await _create(http, {}, platform="a/b/c/d")).status == 400


async def test_the_port_layer_refuses_the_name(http: HttpClient) -> None:
    await _create(http, {}, name="web")
    answer = await _create(http, {}, name="web")
    assert answer.status == 409
    assert "already in use" in answer.json()["message"]


# Types. A field of the wrong type must not get far enough to come back in an inspection that no client can read.


def _fields(definition: str) -> dict[str, dict[str, Any]]:
    """Of the API's definition, those it is made of included."""
    found: dict[str, dict[str, Any]] = {}
    described = openapi.description()["definitions"][definition]
    for part in described.get("allOf", [described]):
        if "$ref" in part:
            found |= _fields(part["$ref"].rsplit("/", 1)[1])
        found |= part.get("properties", {})
    return found


@pytest.mark.parametrize(
    ("definition", "struct"),
    [
        ("ContainerConfig", bodies.ContainerBody),
        ("HostConfig", bodies.HostConfig),
        ("HealthConfig", bodies.Healthcheck),
        ("RestartPolicy", bodies.RestartPolicy),
        ("NetworkingConfig", bodies.NetworkingConfig),
    ],
)
def test_every_documented_field_is_known(definition: str, struct: type[msgspec.Struct]) -> None:
    known = {field.encode_name for field in msgspec.structs.fields(struct)}
    assert set(_fields(definition)) - known == set()


def _wrong_values() -> list[tuple[str, str, object]]:
    wrong = {"string": 5, "integer": "5", "boolean": "yes", "array": "x", "object": []}
    ambiguous = {"Cmd", "Entrypoint"}  # a string is taken, too
    found = []
    for definition in ("ContainerConfig", "HostConfig"):
        for name, field in _fields(definition).items():
            if name not in ambiguous:
                found.append((definition, name, wrong[field.get("type", "object")]))
    return [
        *found,
        ("HostConfig", "Memory", 1 << 63),
        ("HostConfig", "PidsLimit", 10**40),
        ("HostConfig", "Memory", 0.5),
    ]


@pytest.mark.parametrize(("definition", "name", "value"), _wrong_values())
async def test_wrong_types(http: HttpClient, fake: FakePortLayer, definition: str, name: str, value: object) -> None:
    body = {name: value} if definition == "ContainerConfig" else {"HostConfig": {name: value}}
    answer = await _create(http, body)
    assert answer.status == 400
    assert name in answer.json()["message"]
    assert not fake.containers


async def test_nesting_has_an_end(http: HttpClient) -> None:
    for depth in (100, 500, 900, 1500, 100_000):
        deep = b"[" * depth + b"]" * depth
        data = b'{"Image": "busybox", "HostConfig": {"Devices": ' + deep + b"}}"
        answer = await http.request(
            "POST", "/containers/create", data=data, headers={"Content-Type": "application/json"}
        )
        assert answer.status in (400, 501)


async def test_unknown_fields_are_passed_over(http: HttpClient) -> None:
    answer = await _create(http, {"Magic": {"a": 1}, "HostConfig": {"Other": [1 << 100]}})
    assert answer.status == 201
    inspected = await http.get(f"/containers/{answer.json()['Id']}/json")
    assert inspected.status == 200
    assert "Other" not in inspected.json()["HostConfig"]


async def test_a_long_command_is_no_matter(http: HttpClient, fake: FakePortLayer) -> None:
    assert (await _create(http, {"Cmd": ["sh", "-c", "x" * 100_000]})).status == 201
    assert len(_spec(fake).process.cmd[2]) == 100_000
