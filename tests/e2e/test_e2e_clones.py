"""Instant clone as users and administrators meet it: how a container was started, and that no two are alike."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import docker as docker_py
import psutil
import pytest
from clone_images import FACTS_PROGRAM, python_archive, shared, without_reseed
from conftest import BUSYBOX, CALL_TIMEOUT_S, GUEST_IMAGE, Docker, Vch, await_template, eventually, machines, templates

pytestmark = pytest.mark.vm
CLONES = 20


def how_started(docker: Docker, container: str) -> str:
    return docker("inspect -f {{.VirtualMachine.StartMethod}}", container).out.strip()


@contextmanager
def other_vch(*options: str, guest_image: Path = GUEST_IMAGE) -> Iterator[tuple[Vch, docker_py.DockerClient]]:
    """A VCH of its own with busybox in it; nothing of it may be left."""
    state = Path(tempfile.mkdtemp(prefix="vch-clone-"))
    vch = Vch(state, f"unix://{state}/docker.sock", f"unix://{state}/portlayer.sock")
    up(vch, *options, guest_image=guest_image)
    client = docker_py.DockerClient(base_url=vch.docker_host, version="1.43", timeout=CALL_TIMEOUT_S)
    try:
        client.images.load(BUSYBOX.read_bytes())
        yield vch, client
        vch.run("down", "--force")
        eventually(lambda: not machines(state))
        assert not list((state / "clones").iterdir())
        assert not [path for path in (state / "templates").iterdir() if path.name.startswith(".")]
    finally:
        client.close()
        vch.run("down", "--force", check=False)
        for process in machines(state):
            process.kill()
        shutil.rmtree(state)


def up(vch: Vch, *options: str, guest_image: Path = GUEST_IMAGE) -> None:
    vch.run("up", "--detach", "--guest-image", str(guest_image), "--default-memory", "256m", "--pool", "4", *options)


def test_containers_are_clones_and_say_so(docker: Docker, loaded: Vch, forget: None) -> None:
    await_template(loaded)
    eventually(lambda: templates(loaded)[0].pooled > 0)
    begin = int(time.time())  # whole seconds, downwards: a start takes less than the half that rounding may add
    docker("run --name quick busybox true")
    assert how_started(docker, "quick") == "pooled"
    phases = json.loads(docker("inspect quick -f", "{{json .VirtualMachine.StartPhases}}").out)
    assert phases.keys() == {"machine", "restore", "disks", "agent", "exec"}
    events = docker(
        f"events --since {begin} --until {int(time.time()) + 1} --filter event=start --format", "{{json .}}"
    )
    attributes = json.loads(events.out.splitlines()[-1])["Actor"]["Attributes"]
    assert (attributes["startMethod"], float(attributes["startMilliseconds"]) > 0) == ("pooled", True)
    docker("start quick")
    assert how_started(docker, "quick") in ("pooled", "clone")
    docker("run --name own --runtime vm-cold-boot busybox true")
    assert how_started(docker, "own") == "cold-boot"


def test_what_was_written_before_is_there_after_a_start_in_another_clone(docker: Docker, forget: None) -> None:
    docker("run --name keeper busybox", "sh", "-c", "cat /file; echo kept > /file")
    assert docker("start -a keeper").out == "kept\n"
    assert docker("run --rm busybox cat /file", code=1).out == ""


def test_no_two_clones_are_alike(docker: Docker, client: docker_py.DockerClient, loaded: Vch, forget: None) -> None:
    await_template(loaded)
    client.api.import_image_from_data(python_archive(), repository="python", tag="guest")

    def run(_: int) -> str:
        return docker("run -d python:guest /usr/bin/python3 -c", FACTS_PROGRAM).out.strip()

    with ThreadPoolExecutor(2) as pool:
        containers = list(pool.map(run, range(CLONES)))
    facts = []
    for container in containers:
        assert docker("wait", container).out == "0\n", docker("logs", container)
        assert how_started(docker, container) in ("pooled", "clone")
        facts.append(json.loads(docker("logs", container).out))
    assert shared(facts) == set()
    for container, one in zip(containers, facts, strict=True):
        began, uptime, ended = one["clock"]
        assert one["machine-id"] == container[:32]
        assert abs(began - time.time()) < CALL_TIMEOUT_S * 5
        assert 0 <= ended - began < CALL_TIMEOUT_S
        assert uptime > 0


@pytest.mark.timeout(1800)  # as most take one VCH, and others several
def test_the_comparison_finds_an_agent_that_does_not_reseed(tmp_path: Path) -> None:
    guest_image = without_reseed(GUEST_IMAGE, tmp_path / "guest-image")
    # The kernel's generator also reseeds itself, at a moment that depends on when the template was frozen.
    assert any(shared(_generators(guest_image)) for _ in range(4))


def _generators(guest_image: Path) -> list[dict[str, object]]:
    """What the kernel's generator gives in clones of one template."""
    program = 'printf "%s %s\\n" $(cat /proc/sys/kernel/random/uuid) $(cat /proc/sys/kernel/random/boot_id)'
    with other_vch("--pool", "0", guest_image=guest_image) as (vch, client):
        await_template(vch)
        outputs = [client.containers.run("busybox", ["sh", "-c", program], remove=True) for _ in range(3)]
    return [dict(zip(("kernel uuid", "boot_id"), output.decode().split(), strict=True)) for output in outputs]


def test_without_clones_every_start_boots() -> None:
    with other_vch("--no-clone") as (vch, client):
        container = client.containers.run("busybox", ["true"], detach=True)
        container.wait()
        container.reload()
        assert container.attrs["VirtualMachine"]["StartMethod"] == "cold-boot"
        assert templates(vch) == []
        assert not list((vch.state / "templates").iterdir())


def exists(state: Path, pattern: str) -> bool:
    return next(state.glob(pattern), None) is not None


@pytest.mark.slow
@pytest.mark.timeout(1800)  # seven times as long as a VM takes to boot
def test_a_port_layer_killed_at_any_step_leaves_nothing_half_made() -> None:
    """Killed while it makes a template, clones, rehearses, fills the pool; each next one clears up and begins again."""
    steps = (
        "templates/.new-*",  # QEMU is being started
        "templates/.new-*/practice.img",  # the guest rehearses
        "templates/.new-*/state",  # it is frozen
        "templates/[0-9a-f]*/template.json",  # the template is there
        "clones/*",  # a clone is being made
        "clones/*/practice.img",  # it rehearses
    )
    with other_vch() as (vch, client):
        for step in steps:
            kill(vch)
            if step.startswith("templates"):
                forget_templates(vch)
            up(vch)
            # Some last for moments.
            eventually(lambda step=step: exists(vch.state, step), within_s=300, pause_s=0.005)  # type: ignore[misc]
        kill(vch)
        up(vch)
        eventually(lambda: templates(vch)[0].pooled == 4, within_s=300)
        assert len(list((vch.state / "clones").iterdir())) == len(machines(vch.state)) == 4
        assert len(list((vch.state / "templates").iterdir())) == 1
        container = client.containers.run("busybox", ["true"], detach=True)
        container.wait()
        container.reload()
        assert container.attrs["VirtualMachine"]["StartMethod"] == "pooled"


def kill(vch: Vch) -> None:
    """SIGKILL for the port layer; its supervisor ends then."""
    main = psutil.Process(vch.main_pid)
    os.kill(vch.pid("portlayer"), signal.SIGKILL)
    main.wait(CALL_TIMEOUT_S)


def forget_templates(vch: Vch) -> None:
    for path in (vch.state / "templates").glob("[0-9a-f]*"):
        shutil.rmtree(path)
