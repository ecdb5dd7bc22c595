"""From the body of POST /containers/create to a ContainerSpec: what is served, what is refused, what is only noted."""

from __future__ import annotations

from typing import Any

import msgspec

from personality.errors import DockerError, NotServed
from personality.translate.bodies import ContainerBody, HostConfig, Mount, TmpfsOptions
from personality.translate.log_options import log_config
from personality.translate.networks import wanted_networks
from personality.translate.policies import health_check, restart_policy
from personality.translate.signals import parse_signal
from personality.translate.sizes import parse_size
from portlayer.v1 import types_pb2

FRONTEND = "docker"
_MAX_FRONTEND_BYTES = 60 << 10
_MAX_TIMEOUT_S = (1 << 31) - 1
_MAX_UINT64 = (1 << 64) - 1
# Docker's word for how a container is run: here, how its VM comes to run. The default clones where it can.
DEFAULT_RUNTIME = "vm"
COLD_BOOT_RUNTIME = "vm-cold-boot"
# Clients that name runc mean "as usual".
_RUNTIMES = frozenset({"", DEFAULT_RUNTIME, COLD_BOOT_RUNTIME, "runc", "io.containerd.runc.v2"})
_NO_PORTS = "publishing ports is not served yet: nothing gives a container's network cards addresses so far"
_NO_VOLUMES = "volumes and bind mounts are not served yet: put the data into an image, or send it by docker exec"

# What shares a kernel among containers, and Windows' own.
_NO_EFFECT = (
    *("CpuShares", "CpusetCpus", "CpusetMems", "CpuRealtimePeriod", "CpuRealtimeRuntime", "CpuCount", "CpuPercent"),
    *("KernelMemory", "KernelMemoryTCP", "MemoryReservation", "MemorySwap", "MemorySwappiness", "OomKillDisable"),
    *("CgroupParent", "BlkioWeight", "BlkioWeightDevice", "BlkioDeviceReadBps", "BlkioDeviceWriteBps"),
    *("BlkioDeviceReadIOps", "BlkioDeviceWriteIOps", "IOMaximumIOps", "IOMaximumBandwidth", "DeviceCgroupRules"),
)
NOT_ASKED: tuple[object, ...] = (None, False, 0, -1, "", [])
_KEPT = ("AttachStdin", "AttachStdout", "AttachStderr", "Volumes", "ExposedPorts", "HostConfig")


def container_spec(body: ContainerBody) -> tuple[types_pb2.ContainerSpec, list[str]]:
    """The specification, and warnings for the client. Raises DockerError for what cannot be had."""
    host = body.host_config or HostConfig()
    if not body.image:
        raise DockerError(400, "no image given: Image must name one")
    _refuse(body, host)
    spec = types_pb2.ContainerSpec(
        image=body.image,
        process=_process(body, host),
        hostname=body.hostname or "",
        domainname=body.domainname or "",
        labels=body.labels or {},
        resources=_resources(host),
        read_only_root=bool(host.readonly_rootfs),
        tmpfs=_tmpfs(host),
        shm_size_bytes=_positive("ShmSize", host.shm_size),
        stop_signal=parse_signal(body.stop_signal) if body.stop_signal else 0,
        init_process=bool(host.init),
        privileged=bool(host.privileged),
        networks=wanted_networks(body, host),
        extra_hosts=[_host_line(entry) for entry in host.extra_hosts or ()],
        dns_servers=host.dns or (),
        dns_search=host.dns_search or (),
        dns_options=host.dns_options or (),
        sysctls=host.sysctls or {},
        auto_remove=bool(host.auto_remove),
        cold_boot=host.runtime == COLD_BOOT_RUNTIME,
        log=log_config(host.log_config),
        restart=restart_policy(host.restart_policy),
        health_check=health_check(body.healthcheck),
        frontend_data={FRONTEND: _frontend_data(body)},
    )
    if body.stop_timeout is not None:
        spec.stop_timeout_s = min(max(0, body.stop_timeout), _MAX_TIMEOUT_S)
    return spec, _warnings(host)


def _process(body: ContainerBody, host: HostConfig) -> types_pb2.ProcessConfig:
    entrypoint = _strings(body.entrypoint)
    rows, columns = host.console_size if host.console_size and len(host.console_size) == 2 else (0, 0)
    return types_pb2.ProcessConfig(
        # Docker's way of saying "none": one empty string.
        entrypoint=[] if entrypoint == [""] else entrypoint or [],
        entrypoint_set=entrypoint is not None,
        cmd=_strings(body.cmd) or [],
        env=body.env or [],
        working_dir=body.working_dir or "",
        user=body.user or "",
        additional_groups=[str(group) for group in host.group_add or ()],
        terminal=bool(body.tty),
        terminal_rows=rows,
        terminal_columns=columns,
        open_stdin=bool(body.open_stdin),
        stdin_once=bool(body.stdin_once),
        capabilities_add=host.cap_add or (),
        capabilities_drop=host.cap_drop or (),
        ulimits=[types_pb2.Ulimit(name=one.name, soft=one.soft, hard=one.hard) for one in host.ulimits or ()],
        no_new_privileges=_no_new_privileges(host),
        oom_score_adj=host.oom_score_adj or 0,
    )


def _strings(value: str | list[str] | None) -> list[str] | None:
    return [value] if isinstance(value, str) else value


def _resources(host: HostConfig) -> types_pb2.Resources:
    nano_cpus = _positive("NanoCpus", host.nano_cpus)
    period = _positive("CpuPeriod", host.cpu_period) or 100_000
    if not nano_cpus and host.cpu_quota and host.cpu_quota > 0:
        nano_cpus = min(host.cpu_quota * 1_000_000_000 // period, _MAX_UINT64)
    size = (host.storage_opt or {}).get("size", "")
    return types_pb2.Resources(
        memory_bytes=_positive("Memory", host.memory),
        nano_cpus=nano_cpus,
        pids_limit=max(0, host.pids_limit or 0),
        disk_bytes=parse_size(size) if size else 0,
    )


def _positive(name: str, value: int | None) -> int:
    if value is not None and value < 0:
        raise DockerError(400, f"invalid {name}: {value}")
    return value or 0


def _tmpfs(host: HostConfig) -> list[types_pb2.TmpfsMount]:
    mounts = [types_pb2.TmpfsMount(target=target, options=options) for target, options in (host.tmpfs or {}).items()]
    return mounts + [_tmpfs_mount(mount) for mount in host.mounts or ()]


def _tmpfs_mount(mount: Mount) -> types_pb2.TmpfsMount:
    given = mount.tmpfs_options or TmpfsOptions()
    options = ["=".join(each) for each in given.options or ()]
    if given.size_bytes:
        options.append(f"size={given.size_bytes}")
    if given.mode:
        options.append(f"mode={given.mode:o}")
    if mount.read_only:
        options.append("ro")
    return types_pb2.TmpfsMount(target=mount.target, options=",".join(options))


def _host_line(entry: str) -> str:
    """ "name:address" as a line of /etc/hosts."""
    name, separator, address = entry.partition(":")
    if not separator or not name or not address:
        raise DockerError(400, f'bad format for add-host: "{entry}"')
    if address == "host-gateway":
        raise NotServed("host-gateway has no meaning yet: nothing gives a container's network cards addresses so far")
    return f"{address.strip('[]')} {name}"


def _no_new_privileges(host: HostConfig) -> bool:
    wanted = False
    for option in host.security_opt or ():
        name, _, value = option.replace("=", ":", 1).partition(":")
        if name == "no-new-privileges":
            wanted = value in ("", "true")
        elif name not in ("seccomp", "apparmor", "label", "systempaths"):
            raise DockerError(400, f'invalid --security-opt 2: "{option}"')
    return wanted


def _refuse(body: ContainerBody, host: HostConfig) -> None:
    """What this host cannot give is said, never passed over."""
    if host.publish_all_ports or any((host.port_bindings or {}).values()):
        raise NotServed(_NO_PORTS)
    volumes = [mount for mount in host.mounts or () if mount.type != "tmpfs"]
    if host.binds or host.volumes_from or body.volumes or volumes:
        raise NotServed(_NO_VOLUMES)
    if host.links:
        raise NotServed("links are not served: they are of no use without addresses")
    if host.devices or host.device_requests:
        raise NotServed("devices of the host cannot be given to a container: it is a VM of its own")
    namespaces = {"PID": host.pid_mode, "IPC": host.ipc_mode, "UTS": host.uts_mode, "cgroup": host.cgroupns_mode}
    for what, value in namespaces.items():
        if (value or "private") not in ("private", "shareable", "none"):
            raise NotServed(f"sharing the {what} namespace ({value}) is impossible: a container is a VM of its own")
    if (host.runtime or "") not in _RUNTIMES:
        raise DockerError(400, f"unknown or invalid runtime name: {host.runtime}")
    if (host.isolation or "default") != "default":
        raise DockerError(400, f"invalid isolation '{host.isolation}': here it is always a VM")


def _warnings(host: HostConfig) -> list[str]:
    given = msgspec.to_builtins(host)
    return [
        f"{name} has no effect: the container is a VM of its own" for name in _NO_EFFECT if given[name] not in NOT_ASKED
    ]


def _frontend_data(body: ContainerBody) -> bytes:
    """What the client said and the port layer has no place for, so that inspect can give it back."""
    given = msgspec.to_builtins(body)
    kept = {name: _without_nulls(given[name]) for name in _KEPT if given[name] is not None}
    data = msgspec.json.encode(kept)
    if len(data) > _MAX_FRONTEND_BYTES:
        raise DockerError(400, f"the container's configuration is larger than {_MAX_FRONTEND_BYTES >> 10} KiB")
    return data


def _without_nulls(value: Any) -> Any:
    """What was not given, or given as nothing, is left to inspect's defaults."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value
