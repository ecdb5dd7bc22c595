"""A VCH to measure, in flavours that differ in how containers start: pooled clones, plain clones, cold boots."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import psutil

from bench.endpoints import Endpoint, EndpointError
from portlayer.v1 import system_pb2, system_pb2_grpc
from portlayer.v1.system_pb2 import Template

_READY_SECONDS = 180.0
_REFILL_SECONDS = 10.0
_ANSWER_SECONDS = 10.0
_POLL_SECONDS = 0.1
# What `vch up` has without --pool.
_POOL = 4
# A cold boot takes seconds under emulation, and its median needs no more.
_COLD_RUNS = 10
_PROGRAM = (sys.executable, "-m", "vch")


@dataclass(frozen=True)
class Vch(Endpoint):
    """A VCH whose state is all in `state_dir`."""

    state_dir: Path = Path()
    # unix://PATH of its gRPC API, which `vch status` reads too: asking there starts no process.
    grpc_address: str = ""
    # Clones that waited in its pool when that was full.
    pool: int = 0

    def templates(self) -> list[Template]:
        """What its containers are cloned from. Raises EndpointError when it does not say."""
        with grpc.insecure_channel(self.grpc_address.replace("unix://", "unix:", 1)) as channel:
            try:
                stub = system_pb2_grpc.SystemServiceStub(channel)
                answer = stub.ListTemplates(system_pb2.ListTemplatesRequest(), timeout=_ANSWER_SECONDS)
            except grpc.RpcError as error:
                raise EndpointError(f"{self.name} does not list its templates: {error}") from error
        return list(answer.templates)

    def processes_of(self, container: str) -> list[psutil.Process]:
        machine = self.state_dir / "machines" / container
        return _working_in(lambda directory: directory in (machine / "vm", machine))

    def processes_by_kind(self) -> dict[str, list[psutil.Process]]:
        """All its processes: its parts by their names, and the QEMU of containers and of others."""
        kinds = {name: [psutil.Process(pid)] for name, pid in _status(self.state_dir)["pids"].items()}
        machines = self.state_dir / "machines"
        of_containers = _working_in(lambda directory: directory.is_relative_to(machines))
        of_others = _working_in(lambda directory: directory.is_relative_to(self.state_dir))
        known = {process.pid for processes in (*kinds.values(), of_containers) for process in processes}
        return kinds | {
            "containers' QEMU": [one for one in of_containers if is_qemu(one)],
            "containers' console keepers": [one for one in of_containers if not is_qemu(one)],
            "pool, template": [one for one in of_others if one.pid not in known],
        }

    def settle(self) -> None:
        if self.pool:
            _wait(lambda: _pooled(self.templates()) >= self.pool, _REFILL_SECONDS)


def is_qemu(process: psutil.Process) -> bool:
    """False for one that has ended, too."""
    with suppress(psutil.NoSuchProcess):
        return process.name().startswith("qemu")
    return False


@contextmanager
def pooled(scratch: Path, guest_image: Path) -> Iterator[Endpoint]:
    """A VCH as `vch up` makes it."""
    with _up("vch", scratch, guest_image) as endpoint:
        _wait_for_templates(endpoint)
        # Its memory is bounded too, so it may stay smaller: what it holds after its time is what is waited for later.
        _wait(lambda: _pooled(endpoint.templates()) >= _POOL, _REFILL_SECONDS)
        yield replace(endpoint, pool=_pooled(endpoint.templates()))


@contextmanager
def cloning(scratch: Path, guest_image: Path) -> Iterator[Endpoint]:
    """A VCH without a pool: a plain clone for each start."""
    with _up("vch-clone", scratch, guest_image, "--pool", "0") as endpoint:
        _wait_for_templates(endpoint)
        yield endpoint


@contextmanager
def cold(scratch: Path, guest_image: Path) -> Iterator[Endpoint]:
    """A VCH that boots a kernel for each start."""
    with _up("vch-cold", scratch, guest_image, "--no-clone") as endpoint:
        yield replace(endpoint, most_runs=_COLD_RUNS)


@contextmanager
def _up(name: str, scratch: Path, guest_image: Path, *options: str) -> Iterator[Vch]:
    """It goes with its containers."""
    state = scratch / name
    try:
        _run(*_PROGRAM, "up", "--detach", "--state-dir", str(state), "--guest-image", str(guest_image), *options)
        status = _status(state)
        words = [status["driver"], status["driver_status"].get("Accelerator reason", ""), " ".join(options)]
        description = ", ".join(filter(None, words))
        yield Vch(name, description, status["docker_host"], scratch, state_dir=state, grpc_address=status["grpc"])
    finally:
        _run(*_PROGRAM, "down", "--force", "--state-dir", str(state))


def _wait_for_templates(endpoint: Vch) -> None:
    """Raises EndpointError when there is none, or one that is not ready."""
    _wait(lambda: _all(endpoint.templates(), Template.STATE_READY, Template.STATE_FAILED), _READY_SECONDS)
    templates = endpoint.templates()
    if not _all(templates, Template.STATE_READY):
        words = (
            ", ".join(f"{Template.State.Name(one.state)} {one.error}".strip() for one in templates) or "there is none"
        )
        raise EndpointError(f"its template is not ready: {words}")


def _all(templates: list[Template], *states: Template.State.ValueType) -> bool:
    return bool(templates) and all(one.state in states for one in templates)


def _pooled(templates: list[Template]) -> int:
    return sum(one.pooled for one in templates)


def _status(state: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(_run(*_PROGRAM, "status", "--json", "--state-dir", str(state)))
    return answer


def _wait(ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


def _working_in(wanted: Callable[[Path], bool]) -> list[psutil.Process]:
    """Processes by their working directory: a machine's QEMU is in its machine's, whatever its command line is."""
    found = []
    for pid in psutil.pids():
        with suppress(OSError, psutil.NoSuchProcess):
            if wanted(Path(os.readlink(f"/proc/{pid}/cwd"))):
                found.append(psutil.Process(pid))
    return found


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EndpointError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
