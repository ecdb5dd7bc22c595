"""The bodies that clients send about containers and execs. Go's clients send null for what is not set."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

Strings = list[str] | None
StringOrStrings = str | list[str] | None
Map = dict[str, str] | None
# The integers of Docker's API, which Go's clients and server hold in 64 bits, and those that must fit in fewer.
Integer = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Dimension = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]


class Body(msgspec.Struct, rename="pascal"):
    """Fields are named as in the API, in Python's case here; unknown ones are passed over."""


class Nothing(Body):
    """The values of sets, which the API writes as maps to empty objects."""


class RestartPolicy(Body):
    name: str | None = None
    maximum_retry_count: Integer | None = None


class LogConfig(Body):
    type: str | None = None
    config: Map = None


class Ulimit(Body):
    name: str
    soft: Integer = 0
    hard: Integer = 0


class TmpfsOptions(Body):
    size_bytes: Integer | None = None
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o7777)] | None = None
    # Each a name, or a name and a value.
    options: list[list[str]] | None = None


class Mount(Body):
    target: str = ""
    source: str | None = None
    type: str = ""
    read_only: bool | None = None
    tmpfs_options: TmpfsOptions | None = None


class WeightDevice(Body):
    path: str = ""
    weight: Integer = 0


class ThrottleDevice(Body):
    path: str = ""
    rate: Integer = 0


class PortBinding(Body):
    host_ip: str | None = None
    host_port: str | None = None


class Healthcheck(Body):
    test: Strings = None
    interval: Integer | None = None
    timeout: Integer | None = None
    retries: Integer | None = None
    start_period: Integer | None = None
    start_interval: Integer | None = None


class HostConfig(Body):
    # The size of the machine, and limits within it.
    memory: Integer | None = None
    nano_cpus: Integer | None = None
    cpu_period: Integer | None = None
    cpu_quota: Integer | None = None
    pids_limit: Integer | None = None
    ulimits: list[Ulimit] | None = None
    oom_score_adj: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] | None = None
    shm_size: Integer | None = None
    storage_opt: Map = None
    # Shares of a kernel that a container here does not share.
    cpu_shares: Integer | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    cpu_realtime_period: Integer | None = None
    cpu_realtime_runtime: Integer | None = None
    memory_reservation: Integer | None = None
    memory_swap: Integer | None = None
    memory_swappiness: Integer | None = None
    kernel_memory: Integer | None = None
    kernel_memory_tcp: Integer | None = msgspec.field(default=None, name="KernelMemoryTCP")
    oom_kill_disable: bool | None = None
    blkio_weight: Integer | None = None
    blkio_weight_device: list[WeightDevice] | None = None
    blkio_device_read_bps: list[ThrottleDevice] | None = None
    blkio_device_write_bps: list[ThrottleDevice] | None = None
    blkio_device_read_iops: list[ThrottleDevice] | None = msgspec.field(default=None, name="BlkioDeviceReadIOps")
    blkio_device_write_iops: list[ThrottleDevice] | None = msgspec.field(default=None, name="BlkioDeviceWriteIOps")
    cgroup_parent: str | None = None
    cgroup: str | None = None
    # Windows' own.
    cpu_count: Integer | None = None
    cpu_percent: Integer | None = None
    io_maximum_iops: Integer | None = msgspec.field(default=None, name="IOMaximumIOps")
    io_maximum_bandwidth: Integer | None = msgspec.field(default=None, name="IOMaximumBandwidth")
    # What processes may do.
    init: bool | None = None
    privileged: bool | None = None
    cap_add: Strings = None
    cap_drop: Strings = None
    group_add: list[str | int] | None = None
    security_opt: Strings = None
    sysctls: Map = None
    masked_paths: Strings = None
    readonly_paths: Strings = None
    # Files.
    tmpfs: Map = None
    readonly_rootfs: bool | None = None
    binds: Strings = None
    mounts: list[Mount] | None = None
    volumes_from: Strings = None
    volume_driver: str | None = None
    # Networks and names.
    network_mode: str | None = None
    port_bindings: dict[str, list[PortBinding] | None] | None = None
    publish_all_ports: bool | None = None
    links: Strings = None
    extra_hosts: Strings = None
    dns: Strings = None
    dns_search: Strings = None
    dns_options: Strings = None
    # Devices.
    devices: list[Any] | None = None
    device_requests: list[Any] | None = None
    device_cgroup_rules: Strings = None
    # Namespaces.
    pid_mode: str | None = None
    ipc_mode: str | None = None
    uts_mode: str | None = msgspec.field(default=None, name="UTSMode")
    userns_mode: str | None = None
    cgroupns_mode: str | None = None
    # Life.
    auto_remove: bool | None = None
    restart_policy: RestartPolicy | None = None
    log_config: LogConfig | None = None
    runtime: str | None = None
    isolation: str | None = None
    console_size: list[Dimension] | None = None
    container_id_file: str | None = msgspec.field(default=None, name="ContainerIDFile")
    annotations: Map = None


class EndpointSettings(Body):
    """A network to join, and how."""

    ipam_config: dict[str, Any] | None = msgspec.field(default=None, name="IPAMConfig")
    links: Strings = None
    mac_address: str | None = None
    aliases: Strings = None
    driver_opts: Map = None


class NetworkingConfig(Body):
    endpoints_config: dict[str, EndpointSettings | None] | None = None


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
    healthcheck: Healthcheck | None = None
    image: str | None = None
    volumes: dict[str, Nothing | None] | None = None
    exposed_ports: dict[str, Nothing | None] | None = None
    working_dir: str | None = None
    labels: Map = None
    stop_signal: str | None = None
    stop_timeout: Integer | None = None
    mac_address: str | None = None
    network_disabled: bool | None = None
    args_escaped: bool | None = None
    on_build: Strings = None
    shell: Strings = None
    host_config: HostConfig | None = None
    networking_config: NetworkingConfig | None = None


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
    console_size: list[Dimension] | None = None


class ExecStartBody(Body):
    """POST /exec/{id}/start."""

    detach: bool | None = None
    tty: bool | None = None
    console_size: list[Dimension] | None = None
