"""What is measured: a VCH and a dockerd, each with directories and sockets of its own, gone afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_COMMAND_SECONDS = 300.0
_DOCKERD_SECONDS = 30.0
_SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class EndpointError(Exception):
    """It cannot be brought up here."""


@dataclass(frozen=True)
class Endpoint:
    """A Docker endpoint, spoken to with the docker CLI."""

    name: str
    description: str
    address: str
    # Without the contexts, plug-ins and credentials of whoever runs this.
    config_dir: Path
    # Processes that exist for the sake of one container, by its id.
    processes_of: Callable[[str], list[psutil.Process]]

    @property
    def environment(self) -> dict[str, str]:
        """Makes the docker CLI speak to it."""
        return {**os.environ, "DOCKER_HOST": self.address, "DOCKER_CONFIG": str(self.config_dir)}

    def docker(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the docker CLI to its end."""
        return subprocess.run(
            ["docker", *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )


def load_image(endpoint: Endpoint, archive: Path) -> None:
    """Raises EndpointError when it does not take the image."""
    done = endpoint.docker("load", "--input", str(archive))
    if done.returncode != 0:
        raise EndpointError(f"{endpoint.name} does not load {archive}: {done.stderr.strip()}")


@contextmanager
def vch(scratch: Path, guest_image: Path) -> Iterator[Endpoint]:
    """A VCH; it goes with its containers."""
    state = scratch / "vch"
    program = [sys.executable, "-m", "vch"]
    try:
        _run(*program, "up", "--detach", "--state-dir", str(state), "--guest-image", str(guest_image))
        status = json.loads(_run(*program, "status", "--json", "--state-dir", str(state)))

        def processes_of(container: str) -> list[psutil.Process]:
            return _with_words(str(state), container)

        accelerator = status["driver_status"].get("Accelerator reason", "")
        description = f"{status['driver']}, {accelerator}"
        yield Endpoint("vch", description, status["docker_host"], scratch, processes_of)
    finally:
        _run(*program, "down", "--force", "--state-dir", str(state))


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
        with _dockerd_process(program, root, driver) as process:
            address = f"unix://{root}/docker.sock"
            endpoint = Endpoint("dockerd", "", address, scratch, lambda container: _with_words("shim", container))
            version = _wait_until_it_serves(endpoint, process)
            if version:
                yield Endpoint("dockerd", f"{version}, {driver}", address, scratch, endpoint.processes_of)
                _remove_all(endpoint)
                return
        problems.append(f"{driver}: {_last_line(root / 'log')}")
    raise EndpointError("; ".join(problems))


@contextmanager
def _dockerd_process(program: str, root: Path, driver: str) -> Iterator[subprocess.Popen[bytes]]:
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
    deadline = time.monotonic() + _DOCKERD_SECONDS
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


def _with_words(*words: str) -> list[psutil.Process]:
    """Processes whose command line has all the words, and their descendants."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if all(word in line for word in words):
            with suppress(psutil.NoSuchProcess):
                found |= {one.pid: one for one in (process, *process.children(recursive=True))}
    return list(found.values())


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if lines else "it says nothing"


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EndpointError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
