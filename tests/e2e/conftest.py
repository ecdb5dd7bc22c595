"""A real VCH for the whole session, driven by the stock docker CLI and by docker-py.

It is on QEMU, or on vSphere's simulator with real guests (e2e_vsphere.py). What holds on either is marked `everywhere`:

    VCH_E2E_HYPERVISOR=vsphere pytest -m everywhere tests/e2e
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import docker as docker_py
import grpc
import psutil
import pytest
from e2e_vsphere import vsphere

from portlayer.v1 import system_pb2, system_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
GUEST_IMAGE = ROOT / "build/photon-image"
BUSYBOX = ROOT / "build/images/busybox.tar"
VCH = Path(sys.executable).parent / "vch"
# Programs that the machine does not bring (see scripts/test_tools.py).
os.environ["PATH"] += f"{os.pathsep}{ROOT / 'build/tools/bin'}"
# On a machine that is busy with other things an emulated serial port carries less than 10 KB/s.
CALL_TIMEOUT_S = 300
ON_VSPHERE = os.environ.get("VCH_E2E_HYPERVISOR") == "vsphere"


@dataclass(frozen=True)
class Done:
    """How a program ended."""

    code: int
    out: str
    err: str


Docker = Callable[..., Done]


@dataclass
class Vch:
    """A VCH that serves."""

    state: Path
    docker_host: str
    grpc: str

    def run(self, *args: str, check: bool = True) -> Done:
        done = subprocess.run(
            [VCH, args[0], "--state-dir", self.state, *args[1:]],
            capture_output=True,
            text=True,
            timeout=CALL_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def pid(self, part: str) -> int:
        """Process id of "portlayer" or "personality"."""
        for process in psutil.Process(self.main_pid).children():
            if f"{part}.main" in " ".join(process.cmdline()):
                return process.pid
        raise AssertionError(f"{part} does not run")

    @property
    def main_pid(self) -> int:
        return int(json.loads(self.run("status", "--json").out)["pids"]["vch"])


def machines(state: Path) -> list[psutil.Process]:
    """The QEMU processes of a VCH."""
    found = []
    for process in psutil.process_iter():
        try:
            if (
                "qemu" in process.name()
                and str(state) in " ".join([process.cwd(), *process.cmdline()])
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def vm_pid(vch: Vch, docker: Docker, container: str) -> int:
    """The QEMU process of a running container."""
    directory = vch.state / "machines" / docker(f"inspect -f {{{{.Id}}}} {container}").out.strip()
    return int((directory / "vm" / "qemu.pid").read_text())


def bring_up(state: Path, *options: str) -> Vch:
    subprocess.run([sys.executable, ROOT / "photon-image/build.py", "--output", GUEST_IMAGE], check=True)
    subprocess.run([sys.executable, ROOT / "scripts/busybox_image.py", "--output", BUSYBOX], check=True)
    vch = Vch(state, f"unix://{state}/docker.sock", f"unix://{state}/portlayer.sock")
    vch.run("up", "--detach", "--guest-image", str(GUEST_IMAGE), "--default-memory", "256m", "--pool", "4", *options)
    return vch


@pytest.fixture(scope="session")
def vch() -> Iterator[Vch]:
    # Not pytest's directory: the paths of sockets must be short.
    state = Path(tempfile.mkdtemp(prefix="vch-e2e-"))
    try:
        with vsphere() if ON_VSPHERE else nullcontext(()) as options:
            vch = bring_up(state, *options)
            yield vch
            vch.run("down", "--force")
        eventually(lambda: not machines(state))
        assert not list((state / "machines").iterdir())
        assert not list(state.glob("*.sock"))
    finally:
        for process in machines(state):
            process.send_signal(signal.SIGKILL)
        shutil.rmtree(state)


@pytest.fixture(scope="session")
def loaded(vch: Vch) -> Vch:
    """The VCH with busybox:latest in it."""
    client = docker_py.DockerClient(base_url=vch.docker_host, version="auto", timeout=CALL_TIMEOUT_S)
    try:
        client.images.load(BUSYBOX.read_bytes())
    finally:
        client.close()
    return vch


@pytest.fixture(scope="session")
def client(loaded: Vch) -> Iterator[docker_py.DockerClient]:
    client = docker_py.DockerClient(base_url=loaded.docker_host, version="auto", timeout=CALL_TIMEOUT_S)
    yield client
    client.close()


@pytest.fixture(scope="session")
def environment(loaded: Vch) -> dict[str, str]:
    return {**os.environ, "DOCKER_HOST": loaded.docker_host, "DOCKER_CLI_HINTS": "false"}


@pytest.fixture(scope="session")
def docker(environment: dict[str, str]) -> Docker:
    """Runs the docker CLI; skips on machines without."""
    program = shutil.which("docker")
    if program is None:
        pytest.skip("no docker CLI on this machine: `make test` brings it")

    def run(command: str, *more: str, input: str = "", code: int | None = 0) -> Done:
        """`command` is split at blanks, `more` is passed as it is."""
        done = subprocess.run(
            [program, *command.split(), *more],
            input=input,
            env=environment,
            capture_output=True,
            text=True,
            timeout=CALL_TIMEOUT_S,
            check=False,
        )
        assert code is None or done.returncode == code, f"{command} {more}: {done}"
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def box(docker: Docker) -> Iterator[str]:
    """A container that runs for as long as the tests do."""
    docker(
        "run -d --name box --hostname boxhost -e FROM=box -l role=box busybox sleep 1000000",
    )
    yield "box"
    docker("rm -f box")


@pytest.fixture
def forget(docker: Docker) -> Iterator[None]:
    """Removes the containers that a test made, whatever became of it."""
    before = set(docker("ps -aq").out.split())
    yield
    made = set(docker("ps -aq").out.split()) - before
    if made:
        docker("rm -f", *made)


def eventually(condition: Callable[[], object], within_s: float = CALL_TIMEOUT_S, pause_s: float = 0.05) -> None:
    """Waits for something that has no event to wait for; looks every `pause_s`."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(pause_s)


def templates(vch: Vch) -> list[system_pb2.Template]:
    with grpc.insecure_channel(vch.grpc) as channel:
        answer = system_pb2_grpc.SystemServiceStub(channel).ListTemplates(system_pb2.ListTemplatesRequest())
    return list(answer.templates)


def await_template(vch: Vch) -> None:
    eventually(lambda: any(one.state == system_pb2.Template.STATE_READY for one in templates(vch)), within_s=300)
