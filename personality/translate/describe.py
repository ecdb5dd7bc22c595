"""Containers as Docker's API describes them: in lists, and in full."""

from __future__ import annotations

import json
import time
from typing import Any

from personality.times import rfc3339
from personality.translate.create import FRONTEND
from personality.translate.durations import human
from personality.translate.signals import signal_name
from portlayer.v1 import types_pb2

_WORDS = {
    types_pb2.CONTAINER_STATUS_CREATED: "created",
    types_pb2.CONTAINER_STATUS_STARTING: "created",
    types_pb2.CONTAINER_STATUS_RUNNING: "running",
    types_pb2.CONTAINER_STATUS_STOPPING: "running",
    types_pb2.CONTAINER_STATUS_PAUSED: "paused",
    types_pb2.CONTAINER_STATUS_EXITED: "exited",
    types_pb2.CONTAINER_STATUS_REMOVING: "removing",
    types_pb2.CONTAINER_STATUS_DEAD: "dead",
}
_RUNNING = frozenset({"running", "paused"})
# What inspect shows of HostConfig when the client gave nothing; a client's own values are laid over it.
_HOST_CONFIG: dict[str, Any] = {
    "Binds": None,
    "ContainerIDFile": "",
    "LogConfig": {"Type": "json-file", "Config": {}},
    "NetworkMode": "none",
    "PortBindings": {},
    "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
    "AutoRemove": False,
    "VolumeDriver": "",
    "VolumesFrom": None,
    "ConsoleSize": [0, 0],
    "CapAdd": None,
    "CapDrop": None,
    "CgroupnsMode": "private",
    "Dns": [],
    "DnsOptions": [],
    "DnsSearch": [],
    "ExtraHosts": None,
    "GroupAdd": None,
    "IpcMode": "private",
    "Cgroup": "",
    "Links": None,
    "OomScoreAdj": 0,
    "PidMode": "",
    "Privileged": False,
    "PublishAllPorts": False,
    "ReadonlyRootfs": False,
    "SecurityOpt": None,
    "UTSMode": "",
    "UsernsMode": "",
    "ShmSize": 64 << 20,
    "Runtime": "qemu",
    "Isolation": "",
    "CpuShares": 0,
    "Memory": 0,
    "NanoCpus": 0,
    "CgroupParent": "",
    "BlkioWeight": 0,
    "CpuPeriod": 0,
    "CpuQuota": 0,
    "CpusetCpus": "",
    "CpusetMems": "",
    "Devices": [],
    "MemoryReservation": 0,
    "MemorySwap": 0,
    "OomKillDisable": False,
    "PidsLimit": None,
    "Ulimits": [],
}


def status_word(container: types_pb2.Container) -> str:
    """ "created", "running", "paused", "exited", "removing" or "dead"."""
    return _WORDS.get(container.state.status, "dead")


def is_running(container: types_pb2.Container) -> bool:
    """Running or paused."""
    return status_word(container) in _RUNNING


def status_text(container: types_pb2.Container, now_ns: int | None = None) -> str:
    """ "Up 5 seconds", "Exited (0) 2 minutes ago"."""
    state, word = container.state, status_word(container)
    now_ns = time.time_ns() if now_ns is None else now_ns
    if word in _RUNNING:
        return f"Up {human((now_ns - state.started_unix_ns) / 1e9)}{' (Paused)' if word == 'paused' else ''}"
    if word == "exited":
        return f"Exited ({state.exit_code}) {human((now_ns - state.finished_unix_ns) / 1e9)} ago"
    return {"created": "Created", "removing": "Removal In Progress"}.get(word, "Dead")


def given(container: types_pb2.Container) -> dict[str, Any]:
    """What the client that created it through this API said; empty for containers made by others."""
    data = container.spec.frontend_data.get(FRONTEND, b"")
    try:
        decoded = json.loads(data) if data else {}
    except ValueError:
        return {}
    return decoded if isinstance(decoded, dict) else {}


def command(container: types_pb2.Container) -> list[str]:
    """Program and arguments."""
    process = container.spec.process
    return [*process.entrypoint, *process.cmd]


def summary(container: types_pb2.Container) -> dict[str, Any]:
    """An entry of GET /containers/json."""
    return {
        "Id": container.id,
        "Names": [f"/{container.name}"],
        "Image": container.spec.image,
        "ImageID": container.image_id,
        "Command": " ".join(command(container)),
        "Created": container.state.created_unix_ns // 1_000_000_000,
        "Ports": [],
        "Labels": dict(container.spec.labels),
        "State": status_word(container),
        "Status": status_text(container),
        "HostConfig": {"NetworkMode": _network_mode(given(container))},
        "NetworkSettings": {"Networks": {"none": _endpoint()}},
        "Mounts": [],
    }


def inspect(container: types_pb2.Container) -> dict[str, Any]:
    """GET /containers/{id}/json."""
    said = given(container)
    args = command(container)
    return {
        "Id": container.id,
        "Created": rfc3339(container.state.created_unix_ns),
        "Path": args[0] if args else "",
        "Args": args[1:],
        "State": _state(container),
        "Image": container.image_id,
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": "",
        "Name": f"/{container.name}",
        "RestartCount": container.state.restart_count,
        "Driver": "squashfs",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": list(container.exec_ids) or None,
        "HostConfig": _host_config(container, said),
        "GraphDriver": {"Name": "squashfs", "Data": {"Machine": container.machine}},
        "Mounts": [],
        "Config": _config(container, said),
        "NetworkSettings": {
            "Bridge": "",
            "SandboxID": "",
            "SandboxKey": "",
            "Ports": {},
            "EndpointID": "",
            "Gateway": "",
            "GlobalIPv6Address": "",
            "GlobalIPv6PrefixLen": 0,
            "IPAddress": "",
            "IPPrefixLen": 0,
            "IPv6Gateway": "",
            "MacAddress": "",
            "Networks": {"none": _endpoint()},
        },
    }


def _state(container: types_pb2.Container) -> dict[str, Any]:
    state, word = container.state, status_word(container)
    return {
        "Status": word,
        "Running": word in _RUNNING,
        "Paused": word == "paused",
        "Restarting": False,
        "OOMKilled": state.oom_killed,
        "Dead": word == "dead",
        "Pid": state.pid if word in _RUNNING else 0,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": rfc3339(state.started_unix_ns),
        "FinishedAt": rfc3339(state.finished_unix_ns),
    }


def _config(container: types_pb2.Container, said: dict[str, Any]) -> dict[str, Any]:
    spec, process = container.spec, container.spec.process
    config = {
        "Hostname": spec.hostname,
        "Domainname": spec.domainname,
        "User": process.user,
        "AttachStdin": bool(said.get("AttachStdin")),
        "AttachStdout": bool(said.get("AttachStdout")),
        "AttachStderr": bool(said.get("AttachStderr")),
        "Tty": process.terminal,
        "OpenStdin": process.open_stdin,
        "StdinOnce": process.stdin_once,
        "Env": list(process.env),
        "Cmd": list(process.cmd) or None,
        "Image": spec.image,
        "Volumes": said.get("Volumes"),
        "WorkingDir": process.working_dir,
        "Entrypoint": list(process.entrypoint) or None,
        "OnBuild": None,
        "Labels": dict(spec.labels),
        "StopSignal": signal_name(spec.stop_signal),
    }
    if spec.HasField("stop_timeout_s"):
        config["StopTimeout"] = spec.stop_timeout_s
    for key in ("ExposedPorts", "Healthcheck"):
        if said.get(key):
            config[key] = said[key]
    return config


def _host_config(container: types_pb2.Container, said: dict[str, Any]) -> dict[str, Any]:
    host = said.get("HostConfig")
    merged = {**_HOST_CONFIG, **{key: value for key, value in (host or {}).items() if value is not None}}
    merged["NetworkMode"] = _network_mode(said)
    merged["AutoRemove"] = container.spec.auto_remove
    merged["Memory"] = container.spec.resources.memory_bytes
    merged["Runtime"] = merged["Runtime"] or "qemu"
    merged["ShmSize"] = container.spec.shm_size_bytes or 64 << 20
    if not merged["LogConfig"].get("Type"):
        merged["LogConfig"] = _HOST_CONFIG["LogConfig"]
    return merged


def _network_mode(said: dict[str, Any]) -> str:
    """Whatever was asked for, it is loopback; the mode is given back as the client named it."""
    return str((said.get("HostConfig") or {}).get("NetworkMode") or "none")


def _endpoint() -> dict[str, Any]:
    return {
        "MacAddress": "",
        "GwPriority": 0,
        "NetworkID": "",
        "EndpointID": "",
        "Gateway": "",
        "IPAddress": "",
        "IPPrefixLen": 0,
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
    }
