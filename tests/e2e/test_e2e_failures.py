"""What goes wrong around real VMs: killed, hung, out of disk; port layers killed at any moment. Nobody else suffers."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from conftest import (
    BUSYBOX,
    CALL_TIMEOUT_S,
    GUEST_IMAGE,
    Docker,
    Vch,
    await_template,
    bring_up,
    eventually,
    machines,
    vm_pid,
)

from portlayer.v1 import execution_pb2 as ex
from portlayer.v1 import execution_pb2_grpc, types_pb2

pytestmark = pytest.mark.vm
MIB = 1 << 20
KILLS = 10


@pytest.mark.usefixtures("forget")
def test_a_killed_vm_is_a_killed_container(docker: Docker, loaded: Vch) -> None:
    docker("run -d --name victim busybox sleep 100000")
    os.kill(vm_pid(loaded, docker, "victim"), signal.SIGKILL)
    assert docker("wait victim").out == "137\n"
    (state,) = (one["State"] for one in json.loads(docker("inspect victim").out))
    assert (state["Status"], state["ExitCode"], state["OOMKilled"]) == ("exited", 137, False)
    assert "VM" in state["Error"]
    docker("start victim")
    assert docker("exec victim echo again").out == "again\n"


@pytest.mark.usefixtures("forget")
def test_a_hung_vm_hangs_nobody(docker: Docker, loaded: Vch, box: str, environment: dict[str, str]) -> None:
    docker("run -d --name hung busybox sleep 100000")
    os.kill(vm_pid(loaded, docker, "hung"), signal.SIGSTOP)
    waiting = subprocess.Popen(["docker", "exec", "hung", "true"], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert "hung" in docker("ps --format {{.Names}}").out.split()
        assert docker("inspect -f {{.State.Status}} hung").out == "running\n"
        assert docker(f"exec {box} echo well").out == "well\n"
        docker("stop -t 1 hung")
        assert docker("inspect -f {{.State.ExitCode}} hung").out == "137\n"
        assert waiting.wait(CALL_TIMEOUT_S) != 0
    finally:
        waiting.kill()
        waiting.communicate()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of its own with 512 MiB."""
    directory = Path(tempfile.mkdtemp(prefix="vch-full-"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "vch-test", directory], capture_output=True)
    if mounted.returncode != 0:
        directory.rmdir()
        pytest.skip(f"no right to mount a small file system: {mounted.stderr.decode().strip()}")
    try:
        yield directory
    finally:
        eventually(lambda: subprocess.run(["umount", directory], capture_output=True).returncode == 0)
        directory.rmdir()


def containers(state: Path) -> list[psutil.Process]:
    """Those of its QEMU processes that are containers, and not clones that wait."""
    return machines(state / "machines")


@contextmanager
def own_vch(state: Path, *options: str) -> Iterator[Vch]:
    vch = bring_up(state, *options)
    try:
        yield vch
        eventually(lambda: not containers(state))
        eventually(lambda: not list((state / "machines").iterdir()))
    finally:
        vch.run("down", "--force", check=False)
        for process in machines(state):
            process.kill()
            process.wait(CALL_TIMEOUT_S)


def filled(ballast: Path, leave: int) -> bool:
    """Takes all but `leave` bytes of the file system, if nobody else takes of them at the same moment."""
    with ballast.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(ballast.parent).free - leave)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return False
    return True


def test_a_full_disk_stops_guests_and_is_survived(small_disk: Path) -> None:
    """The writer waits and goes on; what is made meanwhile fails as a whole; removing works."""
    with own_vch(small_disk / "s", "--pool", "0") as vch:
        await_template(vch)  # nothing is written in the background from here on

        def docker(*words: str, code: int = 0) -> str:
            environment = {**os.environ, "DOCKER_HOST": vch.docker_host, "DOCKER_CLI_HINTS": "false"}
            done = subprocess.run(
                ["docker", *words], env=environment, capture_output=True, text=True, timeout=CALL_TIMEOUT_S, check=False
            )
            assert done.returncode == code, f"{words}: {done}"
            return done.stdout + done.stderr

        docker("load", "-i", str(BUSYBOX))
        write = "dd if=/dev/urandom of=/big bs=1M count=64 2>/dev/null; sync; echo written; sleep 100000"
        told = "until [ -e /told ]; do sleep 0.1; done; "
        writer = docker("run", "-d", "busybox", "sh", "-c", told + write).strip()
        ballast = small_disk / "ballast"
        eventually(lambda: filled(ballast, leave=24 * MIB))
        docker("exec", writer, "touch", "/told")
        eventually(lambda: writer[:12] in docker("info", "-f", "{{json .DriverStatus}}"))
        assert "Up" in docker("ps", "--format", "{{.Status}}")
        before = set((small_disk / "s/machines").iterdir())
        assert "no space" in docker("create", "busybox", code=1).lower()
        assert set((small_disk / "s/machines").iterdir()) == before
        assert len(docker("ps", "-aq").split()) == 1
        assert "written" not in docker("logs", writer)
        ballast.unlink()
        eventually(lambda: "written" in docker("logs", writer))
        eventually(lambda: filled(ballast, leave=0))
        docker("rm", "-f", writer)
        assert docker("ps", "-aq") == ""


class PortLayer:
    """A port layer alone, on a state directory that others have had before."""

    def __init__(self, state: Path) -> None:
        self.address = f"unix://{state}/portlayer.sock"
        read, write = os.pipe()
        arguments = ["--state-dir", state, "--grpc", self.address, "--guest-image", GUEST_IMAGE]
        more = ["--default-memory", "256m", "--ready-fd", str(write)]
        command = [sys.executable, "-P", "-m", "portlayer.main", *arguments, *more]
        self.process = subprocess.Popen(command, pass_fds=(write,), stderr=subprocess.DEVNULL)
        os.close(write)
        with os.fdopen(read) as ready:
            assert ready.readline() == "ready\n"
        self.channel = grpc.insecure_channel(self.address)
        self.execution = execution_pb2_grpc.ExecutionServiceStub(self.channel)

    def __enter__(self) -> PortLayer:
        return self

    def __exit__(self, *_: object) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()
        self.channel.close()

    def create(self, name: str) -> str:
        process = types_pb2.ProcessConfig(cmd=["sleep", "100000"])
        spec = types_pb2.ContainerSpec(image="busybox", process=process)
        request = ex.CreateContainerRequest(request_id=uuid.uuid4().hex, name=name, spec=spec)
        return self.execution.CreateContainer(request, timeout=CALL_TIMEOUT_S).container.id

    def names(self) -> dict[str, str]:
        listed = self.execution.ListContainers(ex.ListContainersRequest(), timeout=CALL_TIMEOUT_S).containers
        return {one.name: types_pb2.ContainerStatus.Name(one.state.status) for one in listed}

    def remove(self, name: str) -> None:
        self.execution.RemoveContainer(ex.RemoveContainerRequest(container=name, force=True), timeout=CALL_TIMEOUT_S)


@pytest.mark.timeout(1800)  # ten lives
def test_a_port_layer_killed_at_any_moment_leaves_nothing_half_made() -> None:
    """Making, starting and removing, cut short ten times: what was promised is there, what is there is whole."""
    state = Path(tempfile.mkdtemp(prefix="vch-kill-"))
    chance = random.Random(2)
    try:
        with own_vch(state) as vch:
            environment = {**os.environ, "DOCKER_HOST": vch.docker_host}
            subprocess.run(["docker", "load", "-i", BUSYBOX], env=environment, check=True, stdout=subprocess.DEVNULL)
            vch.run("down")
            promised: set[str] = set()
            for turn in range(KILLS):
                promised = _interrupted(state, turn, promised, chance.uniform(0.0, 0.4))
            with PortLayer(state) as layer:
                assert set(layer.names()) >= promised
                for name in layer.names():
                    layer.remove(name)
                eventually(lambda: not list((state / "machines").iterdir()))
    finally:
        shutil.rmtree(state)


def _interrupted(state: Path, turn: int, promised: set[str], after_s: float) -> set[str]:
    """One life of a port layer, that ends `after_s` into its work; the containers that must be there after it."""
    with PortLayer(state) as layer:
        found = layer.names()
        assert promised <= set(found)
        assert not [path for path in (state / "machines").iterdir() if path.name.startswith(".new-")]
        # Half done starts and removals are finished; nothing runs but what is known to run.
        half_done = {"CONTAINER_STATUS_STARTING", "CONTAINER_STATUS_REMOVING"}
        eventually(lambda: not half_done & set(layer.names().values()))
        eventually(lambda: len(list((state / "machines").iterdir())) == len(layer.names()))
        eventually(lambda: len(containers(state)) == list(layer.names().values()).count("CONTAINER_STATUS_RUNNING"))
        removals = [ex.RemoveContainerRequest(container=name, force=True) for name in layer.names()]
        began = time.monotonic()
        calls = [layer.execution.RemoveContainer.future(request) for request in removals]
        name = f"turn-{turn}"
        layer.create(name)
        calls.append(layer.execution.StartContainer.future(ex.StartContainerRequest(container=name)))
        time.sleep(max(0.0, began + after_s - time.monotonic()))
    for call in calls:
        call.cancel()
    return {name}
