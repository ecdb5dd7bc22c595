"""A dockerd to measure next to."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from bench.endpoints import Endpoint, EndpointError

_UP_SECONDS = 30.0
_SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Dockerd(Endpoint):
    """A container's processes are its shim and what the shim started."""

    def processes_of(self, container: str) -> list[psutil.Process]:
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or ())
            if "shim" in line and container in line:
                with suppress(psutil.NoSuchProcess):
                    found |= {one.pid: one for one in (process, *process.children(recursive=True))}
        return list(found.values())

    def settle(self) -> None:
        """It keeps nothing ready."""


@contextmanager
def dockerd(scratch: Path) -> Iterator[Endpoint]:
    """A dockerd beside whatever other runs here: no bridge, no firewall rules."""
    program = shutil.which("dockerd", path=_SEARCH)
    if program is None:
        raise EndpointError("it is not installed (Debian: docker.io)")
    if os.geteuid() != 0:
        raise EndpointError("it needs root")
    problems = []
    for driver in ("overlay2", "vfs"):
        root = scratch / f"dockerd-{driver}"
        root.mkdir()
        with _process(program, root, driver) as process:
            endpoint = Dockerd("dockerd", "", f"unix://{root}/docker.sock", scratch)
            version = _wait_until_it_serves(endpoint, process)
            if version:
                yield replace(endpoint, description=f"{version}, {driver}")
                _remove_all(endpoint)
                return
        problems.append(f"{driver}: {_last_line(root / 'log')}")
    raise EndpointError("; ".join(problems))


@contextmanager
def _process(program: str, root: Path, driver: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [program, "--data-root", root / "data", "--exec-root", root / "exec", "--pidfile", root / "pid"]
    command += ["--host", f"unix://{root}/docker.sock", "--bridge=none", "--iptables=false"]
    command += ["--storage-driver", driver]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _unmount_below(root)


def _wait_until_it_serves(endpoint: Endpoint, process: subprocess.Popen[bytes]) -> str:
    """Its version; empty when it does not come up."""
    deadline = time.monotonic() + _UP_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        done = endpoint.docker("version", "--format", "{{.Server.Version}}")
        if done.returncode == 0:
            return done.stdout.strip()
        time.sleep(0.2)
    return ""


def _remove_all(endpoint: Endpoint) -> None:
    containers = endpoint.docker("ps", "--all", "--quiet").stdout.split()
    if containers:
        endpoint.docker("rm", "--force", *containers)


def _unmount_below(root: Path) -> None:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((one for one in points if one.startswith(f"{root}/")), reverse=True):
        subprocess.run(["umount", "--lazy", point], check=False)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if lines else "it says nothing"
