"""Containers as Docker's API describes them: in lists, and in full."""

from __future__ import annotations

import json
import time
from typing import Any

from personality.times import rfc3339
from personality.translate.create import COLD_BOOT_RUNTIME, DEFAULT_RUNTIME, FRONTEND
from personality.translate.durations import human
from personality.translate.networks import endpoints, network_mode
from personality.translate.policies import described_check, described_health, described_policy, health_word
from personality.translate.signals import signal_name
from portlayer.v1 import types_pb2

_WORDS = {
    types_pb2.CONTAINER_STATUS_CREATED: "created",
    types_pb2.CONTAINER_STATUS_RUNNING: "running",
    types_pb2.CONTAINER_STATUS_STOPPING: "running",
    types_pb2.CONTAINER_STATUS_PAUSED: "paused",
    types_pb2.CONTAINER_STATUS_EXITED: "exited",
    types_pb2.CONTAINER_STATUS_REMOVING: "removing",
    types_pb2.CONTAINER_STATUS_DEAD: "dead",
    types_pb2.CONTAINER_STATUS_RESTARTING: "restarting",
}
# To Docker's users a container that waits to be started again runs.
_RUNNING = frozenset({"running", "paused", "restarting"})
_START_METHODS = {
    types_pb2.START_METHOD_COLD_BOOT: "cold-boot",
    types_pb2.START_METHOD_CLONE: "clone",
    types_pb2.START_METHOD_POOLED: "pooled",
}
# In the order in which they follow each other.
_PHASES = ("machine", "restore", "disks", "agent", "exec")
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
    "Runtime": "",
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
    "DeviceCgroupRules": None,
    "DeviceRequests": None,
    "Devices": [],
    "MemoryReservation": 0,
    "MemorySwap": 0,
    "OomKillDisable": False,
    "PidsLimit": None,
    "Ulimits": [],
}


def status_word(container: types_pb2.Container) -> str:
    """ "created", "running", "paused", "restarting", "exited", "removing" or "dead"."""
    state = container.state
    if state.status == types_pb2.CONTAINER_STATUS_STARTING:
        # As it was before: while a VM boots, nothing of the container is there yet.
        return "restarting" if state.restart_count else "exited" if state.started_unix_ns else "created"
    return _WORDS.get(state.status, "dead")


def is_running(container: types_pb2.Container) -> bool:
    """Running, paused or about to run again."""
    return status_word(container) in _RUNNING


def status_text(container: types_pb2.Container, now_ns: int | None = None) -> str:
    """ "Up 5 seconds", "Exited (0) 2 minutes ago"."""
    state, word = container.state, status_word(container)
    now_ns = time.time_ns() if now_ns is None else now_ns
    if word in ("running", "paused"):
        return f"Up {human((now_ns - state.started_unix_ns) / 1e9)}{_remark(state, word)}"
    if word in ("exited", "restarting"):
        return f"{word.capitalize()} ({state.exit_code}) {human((now_ns - state.finished_unix_ns) / 1e9)} ago"
    return {"created": "Created", "removing": "Removal In Progress"}.get(word, "Dead")


def _remark(state: types_pb2.ContainerState, word: str) -> str:
    if word == "paused":
        return " (Paused)"
    health = health_word(state)
    return {"none": "", "starting": " (health: starting)"}.get(health, f" ({health})")


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
        "Command": _command_line(container),
        "Created": container.state.created_unix_ns // 1_000_000_000,
        "Ports": [],
        "Labels": dict(container.spec.labels),
        "State": status_word(container),
        "Status": status_text(container),
        "HostConfig": {"NetworkMode": network_mode(container, given(container))},
        "NetworkSettings": {
            "Networks": {
                name: {key: value for key, value in endpoint.items() if value is not None}
                for name, endpoint in endpoints(container).items()
            }
        },
        "Mounts": [],
    }


def _command_line(container: types_pb2.Container) -> str:
    """As Docker's lists show it: arguments with spaces in quotes, whatever else is in them."""
    program, *arguments = command(container) or [""]
    return " ".join([program, *(f"'{each}'" if " " in each else each for each in arguments)])


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
        "VirtualMachine": _virtual_machine(container),
        "Mounts": [],
        "Config": _config(container, said),
        "NetworkSettings": {
            "Bridge": "",
            "SandboxID": "",
            "SandboxKey": "",
            "Ports": {},
            "HairpinMode": False,
            "LinkLocalIPv6Address": "",
            "LinkLocalIPv6PrefixLen": 0,
            "SecondaryIPAddresses": None,
            "SecondaryIPv6Addresses": None,
            "EndpointID": "",
            "Gateway": "",
            "GlobalIPv6Address": "",
            "GlobalIPv6PrefixLen": 0,
            "IPAddress": "",
            "IPPrefixLen": 0,
            "IPv6Gateway": "",
            "MacAddress": "",
            "Networks": endpoints(container),
        },
    }


def _virtual_machine(container: types_pb2.Container) -> dict[str, Any]:
    """What Docker's API has no place for: clients pass over it, and `docker inspect` prints it."""
    took_ns = container.start_phases_ns
    phases = [*(name for name in _PHASES if name in took_ns), *sorted(set(took_ns) - set(_PHASES))]
    return {
        "Directory": container.machine,
        "ConsoleLog": container.console_log_path,
        "StartMethod": _START_METHODS.get(container.start_method, ""),
        "StartPhases": {name: round(took_ns[name] / 1e6, 3) for name in phases},
    }


def _state(container: types_pb2.Container) -> dict[str, Any]:
    state, word = container.state, status_word(container)
    described = {
        "Status": word,
        "Running": word in _RUNNING,
        "Paused": word == "paused",
        "Restarting": word == "restarting",
        "OOMKilled": state.oom_killed,
        "Dead": word == "dead",
        "Pid": state.pid if word in _RUNNING else 0,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": rfc3339(state.started_unix_ns),
        "FinishedAt": rfc3339(state.finished_unix_ns),
    }
    if health_word(state) != "none":
        described["Health"] = described_health(state)
    return described


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
    if said.get("ExposedPorts"):
        config["ExposedPorts"] = said["ExposedPorts"]
    if check := described_check(spec.health_check):
        config["Healthcheck"] = check
    return config


def _host_config(container: types_pb2.Container, said: dict[str, Any]) -> dict[str, Any]:
    host = said.get("HostConfig")
    merged = {**_HOST_CONFIG, **{key: value for key, value in (host or {}).items() if value is not None}}
    merged["NetworkMode"] = network_mode(container, said)
    merged["AutoRemove"] = container.spec.auto_remove
    merged["Memory"] = container.spec.resources.memory_bytes
    merged["Runtime"] = merged["Runtime"] or (COLD_BOOT_RUNTIME if container.spec.cold_boot else DEFAULT_RUNTIME)
    merged["ShmSize"] = container.spec.shm_size_bytes or 64 << 20
    merged["RestartPolicy"] = described_policy(container.spec.restart)
    merged["LogConfig"] = {
        "Type": merged["LogConfig"].get("Type") or "json-file",
        "Config": merged["LogConfig"].get("Config") or {},
    }
    for key in ("IpcMode", "CgroupnsMode"):
        merged[key] = merged[key] or "private"
    # No limit, in the words of the CLI and in the API's.
    if merged.get("MemorySwappiness") == -1:
        del merged["MemorySwappiness"]
    if (merged["PidsLimit"] or 0) <= 0:
        merged["PidsLimit"] = None
    return merged
