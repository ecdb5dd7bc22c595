"""From what a client asks for to what the agent gets: image configuration, defaults, limits, capabilities."""

from __future__ import annotations

import secrets
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from portlayer.drivers.base import DiskNames
from portlayer.errors import InvalidArgumentError
from portlayer.execution import health, restarts
from portlayer.v1 import execution_pb2, types_pb2
from tether.v1 import tether_pb2

SIGTERM = 15
_ENTROPY_BYTES = 64


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DEFAULT_CAPABILITIES = _words(
    "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID "
    "SYS_CHROOT"
)
ALL_CAPABILITIES = DEFAULT_CAPABILITIES | _words(
    "AUDIT_CONTROL AUDIT_READ BLOCK_SUSPEND BPF CHECKPOINT_RESTORE DAC_READ_SEARCH IPC_LOCK IPC_OWNER LEASE "
    "LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE NET_ADMIN NET_BROADCAST PERFMON SYS_ADMIN SYS_BOOT SYS_MODULE SYS_NICE "
    "SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG SYSLOG WAKE_ALARM"
)
_ULIMITS = _words("as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack")


class ImageConfig(Protocol):
    """What an image says about its processes."""

    @property
    def entrypoint(self) -> Sequence[str]: ...
    @property
    def cmd(self) -> Sequence[str]: ...
    @property
    def env(self) -> Sequence[str]: ...
    @property
    def working_dir(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def stop_signal(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def health_check(self) -> health.ImageHealthCheck: ...


def complete(spec: types_pb2.ContainerSpec, image: ImageConfig, container_id: str) -> types_pb2.ContainerSpec:
    """The specification with everything that is open filled in, checked. Raises InvalidArgumentError."""
    whole = types_pb2.ContainerSpec()
    whole.CopyFrom(spec)
    process = whole.process
    if not process.entrypoint_set and not process.entrypoint:
        process.entrypoint.extend(image.entrypoint)
        if not process.cmd:
            process.cmd.extend(image.cmd)
    environment = merge_environment(image.env, process.env)
    del process.env[:]
    process.env.extend(environment)
    process.working_dir = process.working_dir or image.working_dir or "/"
    process.user = process.user or image.user
    for key, value in image.labels.items():
        if key not in whole.labels:
            whole.labels[key] = value
    whole.hostname = whole.hostname or container_id[:12]
    whole.stop_signal = whole.stop_signal or parse_signal(image.stop_signal) or SIGTERM
    health.complete(whole.health_check, image.health_check)
    _check(whole)
    return whole


def merge_environment(base: Iterable[str], changes: Iterable[str]) -> list[str]:
    """NAME=value pairs laid over others; a bare NAME removes."""
    merged = {entry.partition("=")[0]: entry for entry in base}
    for entry in changes:
        name, equals, _ = entry.partition("=")
        if not name or "\0" in entry:
            raise InvalidArgumentError(f"invalid environment variable: {entry!r}")
        if equals:
            merged[name] = entry
        else:
            merged.pop(name, None)
    return list(merged.values())


def parse_signal(text: str) -> int:
    """A signal as images name it ("SIGTERM", "TERM", "15"); 0 for none or an unknown one."""
    name = text.strip().upper().removeprefix("SIG")
    if name.isdigit():
        return int(name) if 1 <= int(name) <= 64 else 0
    for base, start, sign in (("RTMIN", 34, 1), ("RTMAX", 64, -1)):
        if name == base:
            return start
        if name.startswith(base) and name[len(base) + 1 :].isdigit():
            return start + sign * int(name[len(base) + 1 :])
    return int(signal.Signals[f"SIG{name}"]) if f"SIG{name}" in signal.Signals.__members__ else 0


def init_request(
    spec: types_pb2.ContainerSpec,
    request_id: str,
    *,
    memory_limit_bytes: int,
    cpu_limit_ns_per_s: int,
    machine_id: str,
    disks: DiskNames,
) -> tether_pb2.StartRequest:
    """The agent's Start for a container; limits 0 where the VM's size is the limit."""
    process = spec.process
    return tether_pb2.StartRequest(
        request_id=request_id,
        entropy=secrets.token_bytes(_ENTROPY_BYTES),
        wall_clock_unix_ns=time.time_ns(),
        hostname=spec.hostname,
        domainname=spec.domainname,
        image_disk=tether_pb2.Disk(serial=disks.image, filesystem="squashfs"),
        writable_disk=tether_pb2.Disk(serial=disks.writable, filesystem="ext4"),
        read_only_root=spec.read_only_root,
        tmpfs=[tether_pb2.Tmpfs(target=mount.target, options=mount.options) for mount in spec.tmpfs],
        shm_size_bytes=spec.shm_size_bytes,
        process=tether_pb2.ProcessSpec(
            args=[*process.entrypoint, *process.cmd],
            env=process.env,
            working_dir=process.working_dir,
            user=process.user,
            additional_groups=process.additional_groups,
            terminal=process.terminal,
            window_size=tether_pb2.WindowSize(rows=process.terminal_rows, columns=process.terminal_columns),
            stdin=process.open_stdin,
            capabilities=capabilities(spec),
            rlimits=[tether_pb2.Rlimit(name=one.name, soft=one.soft, hard=one.hard) for one in process.ulimits],
            no_new_privileges=process.no_new_privileges,
            oom_score_adj=process.oom_score_adj,
        ),
        init_process=spec.init_process,
        memory_limit_bytes=memory_limit_bytes,
        cpu_limit_ns_per_s=cpu_limit_ns_per_s,
        pids_limit=spec.resources.pids_limit,
        extra_hosts=spec.extra_hosts,
        resolv_conf=_resolv_conf(spec),
        sysctls=dict(spec.sysctls),
        privileged=spec.privileged,
        machine_id=machine_id,
    )


def exec_request(
    exec_id: str, exec_spec: execution_pb2.ExecSpec, spec: types_pb2.ContainerSpec
) -> tether_pb2.ExecRequest:
    """The agent's Exec for a further process of a container."""
    process = spec.process
    return tether_pb2.ExecRequest(
        process_id=exec_id,
        process=tether_pb2.ProcessSpec(
            args=exec_spec.args,
            env=merge_environment(process.env, exec_spec.env),
            working_dir=exec_spec.working_dir or process.working_dir,
            user=exec_spec.user or process.user,
            additional_groups=process.additional_groups,
            terminal=exec_spec.terminal,
            window_size=tether_pb2.WindowSize(rows=exec_spec.terminal_rows, columns=exec_spec.terminal_columns),
            stdin=exec_spec.attach_stdin,
            capabilities=sorted(ALL_CAPABILITIES) if exec_spec.privileged else capabilities(spec),
            rlimits=[tether_pb2.Rlimit(name=one.name, soft=one.soft, hard=one.hard) for one in process.ulimits],
            no_new_privileges=process.no_new_privileges,
        ),
    )


def capabilities(spec: types_pb2.ContainerSpec) -> list[str]:
    """The exact set: Docker's defaults with what was added and dropped."""
    if spec.privileged:
        return sorted(ALL_CAPABILITIES)
    added = {_capability(name) for name in spec.process.capabilities_add}
    dropped = {_capability(name) for name in spec.process.capabilities_drop}
    base = ALL_CAPABILITIES if "ALL" in added else DEFAULT_CAPABILITIES
    kept = frozenset() if "ALL" in dropped else base - dropped
    return sorted(kept | (added - {"ALL"}))


def _capability(name: str) -> str:
    short = name.upper().removeprefix("CAP_")
    if short != "ALL" and short not in ALL_CAPABILITIES:
        raise InvalidArgumentError(f'invalid capability: unknown capability: "{name}"')
    return short


def _check(spec: types_pb2.ContainerSpec) -> None:
    process = spec.process
    if not process.entrypoint and not process.cmd:
        raise InvalidArgumentError("no command specified")
    if not [*process.entrypoint, *process.cmd][0]:
        raise InvalidArgumentError("the command is empty")
    words = (*process.entrypoint, *process.cmd, process.working_dir, process.user, spec.hostname, spec.domainname)
    if any("\0" in text for text in words):
        raise InvalidArgumentError("arguments and names must not contain NUL")
    if not process.working_dir.startswith("/"):
        raise InvalidArgumentError(
            f"the working directory '{process.working_dir}' is invalid, it needs to be an absolute path"
        )
    if len(spec.hostname) > 63:
        raise InvalidArgumentError(f"the host name {spec.hostname!r} is longer than 63 characters")
    for mount in spec.tmpfs:
        if not mount.target.startswith("/"):
            raise InvalidArgumentError(f"invalid mount path: '{mount.target}' mount path must be absolute")
        if not mount.target.strip("/"):
            raise InvalidArgumentError("invalid tmpfs mount: destination can't be '/'")
    for limit in process.ulimits:
        if limit.name not in _ULIMITS:
            raise InvalidArgumentError(f"invalid ulimit type: {limit.name}")
        if limit.hard != -1 and (limit.soft == -1 or limit.soft > limit.hard):
            raise InvalidArgumentError(f"ulimit {limit.name}: soft limit must be less than or equal to hard limit")
    if not 0 <= spec.stop_signal <= 64:
        raise InvalidArgumentError(f"invalid signal: {spec.stop_signal}")
    if not -1000 <= process.oom_score_adj <= 1000:
        raise InvalidArgumentError(f"Invalid value {process.oom_score_adj}, range for oom score adj is [-1000, 1000]")
    restarts.check(spec.restart)
    if spec.auto_remove and spec.restart.kind != restarts.NEVER:
        raise InvalidArgumentError("can't create 'AutoRemove' container with restart policy")
    if len(spec.owner) > 256 or not spec.owner.isprintable():
        raise InvalidArgumentError("the owner's name has at most 256 printable characters")
    if sum(len(value) for value in spec.frontend_data.values()) > 64 << 10:
        raise InvalidArgumentError("the front-end's data is larger than 64 KiB")
    capabilities(spec)


def _resolv_conf(spec: types_pb2.ContainerSpec) -> list[str]:
    lines = [f"nameserver {server}" for server in spec.dns_servers]
    if spec.dns_search:
        lines.append(f"search {' '.join(spec.dns_search)}")
    if spec.dns_options:
        lines.append(f"options {' '.join(spec.dns_options)}")
    return lines
