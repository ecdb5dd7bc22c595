"""A VCH on a simulated vCenter whose guests are stand-ins: all of the product, and no VM."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
from prometheus_client.parser import text_string_to_metric_families

from bench.endpoints import EndpointError
from portlayer.v1 import system_pb2, system_pb2_grpc

_STAND = Path(__file__).resolve().parent.parent / "tests" / "vsphere" / "vsphere_stand.py"
_STAND_PARTS = ("vcsim", "guests")
_PROGRAM = (sys.executable, "-m", "vch")
_END_SECONDS = 60.0
_ANSWER_SECONDS = 30.0
_CALLS = "vch_vsphere_call_seconds"


@dataclass(frozen=True)
class Reading:
    """What had been used at a moment: seconds of CPU by part, and calls to vSphere by method, how many and how long."""

    cpu: dict[str, float] = field(default_factory=dict)
    calls: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def since(self, before: Reading) -> Reading:
        """What was used between the two."""
        return Reading(
            _less(self.cpu, before.cpu), _less(self.calls, before.calls), _less(self.seconds, before.seconds)
        )

    def of_the_stand(self) -> Reading:
        """What a new VCH begins with: its own parts have used nothing."""
        return Reading({name: value for name, value in self.cpu.items() if name in _STAND_PARTS})


class Site:
    """The VCH, which can be ended the hard way and brought up again."""

    def __init__(self, stand: dict[str, Any], stand_pid: int, state: Path) -> None:
        self._stand = stand
        self._stand_pid = stand_pid
        self._serial = _free_port()
        self._state = state

    def up(self) -> None:
        """Returns when it serves. Raises EndpointError."""
        self._vch("up", "--detach", "--no-clone", "--ready-timeout", "600", *self._options())
        status = json.loads(self._vch("status", "--json"))
        self.docker_host: str = status["docker_host"]
        self._grpc: str = status["grpc"]
        self._pids: dict[str, int] = status["pids"]

    def kill_port_layer(self) -> None:
        """As a crash ends it; returns when the whole VCH has ended of that."""
        vch = psutil.Process(self._pids["vch"])
        psutil.Process(self._pids["portlayer"]).kill()
        with suppress(psutil.NoSuchProcess):
            vch.wait(_END_SECONDS)

    def down(self) -> None:
        """Its containers are left to the stand, which ends with all VMs."""
        self._vch("down")

    def read(self) -> Reading:
        """Raises EndpointError when the port layer does not say."""
        parts = {name: pid for name, pid in self._pids.items() if name != "vch"}
        parts |= dict(zip(_STAND_PARTS, (self._stand["simulator_pid"], self._stand_pid), strict=True))
        times = {name: psutil.Process(pid).cpu_times() for name, pid in parts.items()}
        with grpc.insecure_channel(self._grpc.replace("unix://", "unix:", 1)) as channel:
            stub = system_pb2_grpc.SystemServiceStub(channel)
            try:
                text = stub.GetMetrics(system_pb2.GetMetricsRequest(), timeout=_ANSWER_SECONDS).text
            except grpc.RpcError as error:
                raise EndpointError(f"the port layer does not tell its metrics: {error}") from error
        found = Reading({name: used.user + used.system for name, used in times.items()})
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == f"{_CALLS}_count":
                    found.calls[sample.labels["method"]] = sample.value
                elif sample.name == f"{_CALLS}_sum":
                    found.seconds[sample.labels["method"]] = sample.value
        return found

    def memory(self) -> int:
        """Bytes that the port layer has resident."""
        return int(psutil.Process(self._pids["portlayer"]).memory_info().rss)

    def _options(self) -> tuple[str, ...]:
        stand = self._stand
        return (
            *("--target", stand["target"], "--thumbprint", stand["thumbprint"]),
            *("--password-file", stand["password_file"], "--guest-image", stand["guest_image"]),
            *("--datastore", stand["datastore"], "--bridge-network", stand["bridge_network"]),
            *("--serial-listen", f"127.0.0.1:{self._serial}", "--default-memory", "64m"),
        )

    def _vch(self, command: str, *options: str) -> str:
        words = (*_PROGRAM, command, "--state-dir", str(self._state), *options)
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise EndpointError(f"vch {command}: {done.stderr.strip()}")
        return done.stdout


@contextmanager
def site(directory: Path) -> Iterator[Site]:
    """Everything that it made ends with it."""
    stand_directory, state = directory / "stand", directory / "state"
    stand_directory.mkdir()
    command = (sys.executable, str(_STAND), str(stand_directory))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as stand:
        assert stand.stdin is not None
        assert stand.stdout is not None
        try:
            ready = stand.stdout.readline()
            if not ready:
                raise EndpointError("the simulator did not start")
            made = Site(json.loads(ready), stand.pid, state)
            try:
                made.up()
                yield made
            finally:
                made.down()
        finally:
            stand.stdin.close()
            stand.wait(_END_SECONDS)


def timed() -> Any:
    """Seconds since now, whenever it is called."""
    began = time.perf_counter()
    return lambda: time.perf_counter() - began


def _less(now: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in now.items()}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
