"""The host itself: ping, version, info, disk usage."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

import grpc
import grpc.aio

from personality.api.images import image_summary
from personality.backend import Backend
from personality.errors import DockerError
from personality.http.messages import Reply, Request
from personality.http.router import Route
from personality.http.server import MAX_VERSION, MIN_VERSION, version_text
from personality.times import rfc3339
from personality.translate.create import COLD_BOOT_RUNTIME, DEFAULT_RUNTIME
from personality.translate.describe import summary
from portlayer.v1 import execution_pb2, storage_pb2, system_pb2, types_pb2

PLATFORM = "Virtual Container Host"

# Go's names of architectures, which Docker's API uses.
_GO_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

_USAGE_TYPES = frozenset({"container", "image", "volume", "build-cache"})

_NO_CACHE = {
    "Cache-Control": "no-cache, no-store, must-revalidate",
    "Pragma": "no-cache",
    "Builder-Version": "1",  # no BuildKit here: clients must not open a session for it
    "Swarm": "inactive",
}


async def ping(request: Request, backend: Backend) -> Reply:
    return Reply(raw=b"OK", content_type="text/plain; charset=utf-8", headers=dict(_NO_CACHE))


async def version(request: Request, backend: Backend) -> Reply:
    info = await backend.system.GetInfo(system_pb2.GetInfoRequest())
    engine = {
        "ApiVersion": version_text(MAX_VERSION),
        "MinAPIVersion": version_text(MIN_VERSION),
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": _go_architecture(info),
        "KernelVersion": info.kernel_version,
        "BuildTime": "",
    }
    components = [
        {"Name": "Engine", "Version": info.version, "Details": engine | {"Experimental": "false"}},
        {"Name": info.driver, "Version": info.version, "Details": dict(sorted(info.driver_status.items()))},
    ]
    return Reply(
        body={
            "Platform": {"Name": PLATFORM},
            "Components": components,
            "Version": info.version,
            **engine,
            "Experimental": False,
        }
    )


def _go_architecture(info: system_pb2.GetInfoResponse) -> str:
    return _GO_ARCHITECTURES.get(info.architecture, info.architecture)


async def info(request: Request, backend: Backend) -> Reply:
    response = await backend.system.GetInfo(system_pb2.GetInfoRequest())
    return Reply(body=system_info(response))


def system_info(info: system_pb2.GetInfoResponse) -> dict[str, Any]:
    """SystemInfo of the API."""
    return {
        "ID": info.id,
        "Name": info.name,
        "ServerVersion": info.version,
        "SystemTime": rfc3339(time.time_ns()),
        "Containers": info.containers,
        "ContainersRunning": info.containers_running,
        "ContainersPaused": info.containers_paused,
        "ContainersStopped": info.containers_stopped,
        "Images": info.images,
        "DockerRootDir": info.state_dir,
        "Labels": [],
        "ProductLicense": "",
        "ExperimentalBuild": False,
        "LiveRestoreEnabled": True,  # machines outlive both the port layer and this process
        "Warnings": list(info.warnings),
        **_host(info),
        **_drivers(info),
        **_limits(),
        **_process(),
        **_elsewhere(),
    }


def _host(info: system_pb2.GetInfoResponse) -> dict[str, Any]:
    return {
        "NCPU": info.cpus,
        "MemTotal": info.memory_bytes,
        "KernelVersion": info.kernel_version,
        "Architecture": info.architecture,
        "OSType": "linux",
        "OperatingSystem": info.operating_system,
        "OSVersion": "",
        "Isolation": "",
        "SecurityOptions": ["name=virtual-machine"],
    }


def _drivers(info: system_pb2.GetInfoResponse) -> dict[str, Any]:
    status = {
        "Machines": info.driver,
        "Default memory": f"{info.default_memory_bytes >> 20} MiB",
        "Default CPUs": str(info.default_cpus),
        **dict(sorted(info.driver_status.items())),
    }
    return {
        "Driver": "squashfs",
        "DriverStatus": [[key, value] for key, value in status.items()],
        "Plugins": {"Volume": [], "Network": ["null"], "Authorization": [], "Log": ["json-file", "none"]},
        "LoggingDriver": "json-file",
        "CgroupDriver": "none",  # on the host; a limit is the size of the machine
        "CgroupVersion": "2",
        "Runtimes": {name: {"path": info.driver} for name in (DEFAULT_RUNTIME, COLD_BOOT_RUNTIME)},
        "DefaultRuntime": DEFAULT_RUNTIME,
        "InitBinary": "tini-static",
        "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": ""},
        "InitCommit": {"ID": ""},
    }


def _limits() -> dict[str, bool]:
    """What `docker run` options take effect."""
    return {
        "MemoryLimit": True,
        "CpuCfsPeriod": True,
        "CpuCfsQuota": True,
        "PidsLimit": True,
        "SwapLimit": False,
        "CPUShares": False,
        "CPUSet": False,
        "OomKillDisable": False,
        "IPv4Forwarding": False,
    }


def _process() -> dict[str, Any]:
    return {
        "Debug": logging.getLogger("personality").isEnabledFor(logging.DEBUG),
        "NFd": len(os.listdir("/proc/self/fd")),
        "NGoroutines": len(asyncio.all_tasks()),
        "NEventsListener": 0,
    }


def _elsewhere() -> dict[str, Any]:
    """What this host does not have: registries, proxies, swarm mode, devices."""
    return {
        "IndexServerAddress": "",
        "RegistryConfig": {"InsecureRegistryCIDRs": [], "IndexConfigs": {}, "Mirrors": []},
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "GenericResources": [],
        "DefaultAddressPools": [],
        "DiscoveredDevices": [],
        "CDISpecDirs": [],
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": False,
            "Error": "",
            "RemoteManagers": None,
        },
    }


async def disk_usage(request: Request, backend: Backend) -> Reply:
    """What takes how much room; `type` narrows it to some kinds of things, which costs less."""
    wanted = set(request.query.all("type")) or _USAGE_TYPES
    if unknown := wanted - _USAGE_TYPES:
        raise DockerError(400, f"unknown object type: {sorted(unknown)[0]}")
    usage: dict[str, Any] = {}
    if "image" in wanted:
        usage |= await _images_usage(request, backend)
    if "container" in wanted:
        usage["Containers"] = await _containers_usage(backend)
    if "volume" in wanted:
        usage["Volumes"] = []
    if "build-cache" in wanted:
        usage["BuildCache"] = await _templates_usage(backend)
    return Reply(body=usage)


async def _images_usage(request: Request, backend: Backend) -> dict[str, Any]:
    total = await backend.storage.GetDiskUsage(storage_pb2.GetDiskUsageRequest())
    listed = await backend.storage.ListImages(storage_pb2.ListImagesRequest())
    # Nothing is shared between images: each has a disk of its own.
    images = [image_summary(image, request.api_version) | {"SharedSize": 0} for image in listed.images]
    return {"LayersSize": total.images_bytes, "Images": images}


async def _templates_usage(backend: Backend) -> list[dict[str, Any]]:
    """Templates are a cache, and Docker shows caches as those of builds. Those not made yet take no room."""
    listed = await backend.system.ListTemplates(system_pb2.ListTemplatesRequest())
    return [_cache_record(one) for one in listed.templates if one.created_unix_ns]


def _cache_record(template: system_pb2.Template) -> dict[str, Any]:
    cpus = f"{template.cpus} CPU{'' if template.cpus == 1 else 's'}"
    return {
        "ID": template.id,
        "Parents": None,
        "Type": "internal",
        "Description": f"instant clone template: {template.memory_bytes >> 20} MiB, {cpus}",
        "InUse": template.clones + template.pooled > 0,
        "Shared": False,
        "Size": template.disk_bytes,
        "CreatedAt": rfc3339(template.created_unix_ns),
        "LastUsedAt": rfc3339(template.last_used_unix_ns) if template.last_used_unix_ns else None,
        "UsageCount": template.uses,
    }


async def _containers_usage(backend: Backend) -> list[dict[str, Any]]:
    listed = await backend.execution.ListContainers(execution_pb2.ListContainersRequest())
    usage = []
    for container in listed.containers:
        try:
            size = await _writable_bytes(backend, container)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                continue  # removed meanwhile
            raise
        usage.append(summary(container) | {"SizeRw": size})
    return usage


async def _writable_bytes(backend: Backend, container: types_pb2.Container) -> int:
    response = await backend.execution.GetContainer(
        execution_pb2.GetContainerRequest(container=container.id, size=True)
    )
    return response.size_rw_bytes


async def metrics(request: Request, backend: Backend) -> Reply:
    """No endpoint of Docker's API: dockerd serves its own at this path of another address."""
    response = await backend.system.GetMetrics(system_pb2.GetMetricsRequest())
    return Reply(raw=response.text.encode(), content_type="text/plain; version=0.0.4; charset=utf-8")


ROUTES = [
    Route("GET", "/metrics", metrics),
    Route("GET", "/system/df", disk_usage),
    Route("GET", "/_ping", ping),
    Route("GET", "/version", version),
    Route("GET", "/info", info),
]
