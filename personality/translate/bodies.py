"""The bodies that clients send about containers and execs. Go's clients send null for what is not set."""

from __future__ import annotations

from typing import Any

import msgspec

Strings = list[str] | None
StringOrStrings = str | list[str] | None


class Body(msgspec.Struct, rename="pascal"):
    """Fields are named as in the API, in Python's case here; unknown ones are passed over."""


class RestartPolicy(Body):
    name: str | None = None


class LogConfig(Body):
    type: str | None = None
    config: dict[str, str] | None = None


class Ulimit(Body):
    name: str
    soft: int = 0
    hard: int = 0


class TmpfsOptions(Body):
    size_bytes: int | None = None
    mode: int | None = None


class Mount(Body):
    target: str = ""
    source: str | None = None
    type: str = ""
    read_only: bool | None = None
    tmpfs_options: TmpfsOptions | None = None


class HostConfig(Body):
    memory: int | None = None
    nano_cpus: int | None = None
    cpu_period: int | None = None
    cpu_quota: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    blkio_weight: int | None = None
    pids_limit: int | None = None
    oom_score_adj: int | None = None
    oom_kill_disable: bool | None = None
    tmpfs: dict[str, str] | None = None
    shm_size: int | None = None
    readonly_rootfs: bool | None = None
    init: bool | None = None
    privileged: bool | None = None
    cap_add: Strings = None
    cap_drop: Strings = None
    group_add: list[str | int] | None = None
    ulimits: list[Ulimit] | None = None
    sysctls: dict[str, str] | None = None
    extra_hosts: Strings = None
    dns: Strings = None
    dns_search: Strings = None
    dns_options: Strings = None
    security_opt: Strings = None
    auto_remove: bool | None = None
    log_config: LogConfig | None = None
    restart_policy: RestartPolicy | None = None
    network_mode: str | None = None
    port_bindings: dict[str, Any] | None = None
    publish_all_ports: bool | None = None
    binds: Strings = None
    mounts: list[Mount] | None = None
    volumes_from: Strings = None
    links: Strings = None
    devices: list[Any] | None = None
    device_requests: list[Any] | None = None
    pid_mode: str | None = None
    ipc_mode: str | None = None
    uts_mode: str | None = msgspec.field(default=None, name="UTSMode")
    runtime: str | None = None
    isolation: str | None = None
    console_size: list[int] | None = None
    storage_opt: dict[str, str] | None = None


class ContainerBody(Body):
    """POST /containers/create."""

    hostname: str | None = None
    domainname: str | None = None
    user: str | None = None
    attach_stdin: bool | None = None
    attach_stdout: bool | None = None
    attach_stderr: bool | None = None
    tty: bool | None = None
    open_stdin: bool | None = None
    stdin_once: bool | None = None
    env: Strings = None
    cmd: StringOrStrings = None
    entrypoint: StringOrStrings = None
    healthcheck: dict[str, Any] | None = None
    image: str | None = None
    volumes: dict[str, Any] | None = None
    exposed_ports: dict[str, Any] | None = None
    working_dir: str | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None
    stop_timeout: int | None = None
    host_config: HostConfig | None = None
    networking_config: dict[str, Any] | None = None


class ExecBody(Body):
    """POST /containers/{id}/exec."""

    attach_stdin: bool | None = None
    attach_stdout: bool | None = None
    attach_stderr: bool | None = None
    detach_keys: str | None = None
    tty: bool | None = None
    cmd: StringOrStrings = None
    env: Strings = None
    privileged: bool | None = None
    user: str | None = None
    working_dir: str | None = None
    console_size: list[int] | None = None


class ExecStartBody(Body):
    """POST /exec/{id}/start."""

    detach: bool | None = None
    tty: bool | None = None
    console_size: list[int] | None = None
