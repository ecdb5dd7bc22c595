"""Templates and clones of real machines. One template is booted for all of these; each test has it in a state directory
of its own, as a port layer finds it that starts anew."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from conftest import REPOSITORY
from qemu_machines import BOOT_S, PATIENCE_S, all_ended, make_spec, own_processes

from portlayer.agent import AgentClient
from portlayer.drivers import guest_image as guest_images
from portlayer.drivers.base import Machine, Parent, PowerState, Shape, Template
from portlayer.drivers.qemu import LocalDatastore, QemuDriver, command, process
from portlayer.drivers.qemu import accelerator as accelerators
from portlayer.drivers.qemu.guest import QemuClone
from portlayer.drivers.qemu.instance import Instance
from portlayer.drivers.qemu.machine import PROCESS
from portlayer.drivers.qemu.templates import QemuTemplate
from portlayer.errors import DriverError
from portlayer.execution.process_spec import init_request
from portlayer.instantclone.rehearsal import rehearse
from portlayer.v1 import types_pb2
from tether.v1 import tether_pb2

pytestmark = pytest.mark.vm

MIB = 1 << 20
SHAPE = Shape(256 * MIB, 1)
MADE_IN_NS = 12345
SCRIBBLED = 96 * MIB
ARCHIVE = REPOSITORY / "build" / "images" / "busybox.tar"


async def make_template(state_dir: Path, guest_image: Path) -> str:
    """Boots, rehearses and freezes one; returns its id."""
    driver = QemuDriver(state_dir, guest_image, accelerator="tcg")
    await driver.open()
    assert driver.cloning is not None
    assert await driver.cloning.templates() == []
    parent = await driver.cloning.boot_parent(SHAPE)
    try:
        await rehearse(parent, 1)
        template = await parent.freeze(MADE_IN_NS)
    finally:
        await parent.discard()
    assert await driver.cloning.templates() == [template]
    assert template.made_in_ns > MADE_IN_NS
    await driver.close()
    await all_ended(state_dir)
    return template.id


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, guest_image: Path) -> Path:
    """A state directory with a template and an image disk with busybox in it."""
    state_dir = tmp_path_factory.mktemp("made")
    template_id = asyncio.run(make_template(state_dir, guest_image))
    assert os.listdir(state_dir / "templates") == [template_id]
    assert sorted(os.listdir(state_dir / "templates" / template_id)) == ["memory", "state", "template.json"]
    assert os.listdir(state_dir / "clones") == []
    subprocess.run([sys.executable, REPOSITORY / "scripts/busybox_image.py", "--output", ARCHIVE], check=True)
    tree = tmp_path_factory.mktemp("tree")
    with tarfile.open(ARCHIVE) as archive:
        (image,) = json.load(archive.extractfile("manifest.json") or io.BytesIO())
        for name in image["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(name)) as layer:
                layer.extractall(tree, filter="tar")
    disk = tree.with_suffix(".squashfs")
    subprocess.run(["mksquashfs", tree, disk, "-comp", "lz4", "-all-root", "-no-progress", "-quiet"], check=True)
    asyncio.run(LocalDatastore(state_dir).put_image_disk("image.squashfs", disk))
    return state_dir


@pytest.fixture
def copied(made: Path, state_dir: Path) -> Path:
    """That directory again; its files, which nobody writes to, are the same."""
    shutil.copytree(made, state_dir, copy_function=os.link, dirs_exist_ok=True)
    return state_dir


OpenNext = Callable[[], Awaitable[QemuDriver]]


@pytest.fixture
async def opened(copied: Path, guest_image: Path) -> AsyncIterator[OpenNext]:
    """Opens drivers on it, one after the other; at the end nothing may be left but the template."""
    drivers: list[QemuDriver] = []

    async def open_next() -> QemuDriver:
        if drivers:
            await drivers[-1].close()
        drivers.append(QemuDriver(copied, guest_image, accelerator="tcg"))
        await drivers[-1].open()
        return drivers[-1]

    try:
        yield open_next
    finally:
        for machine in await drivers[-1].list():
            await drivers[-1].destroy(machine)
        await drivers[-1].close()
        await all_ended(copied)
        assert os.listdir(copied / "machines") == []
        assert os.listdir(copied / "clones") == []
        assert [name for name in os.listdir(copied / "templates") if name.startswith(".")] == []


@pytest.fixture
async def driver(opened: OpenNext) -> QemuDriver:
    return await opened()


async def template_of(driver: QemuDriver) -> QemuTemplate:
    assert driver.cloning is not None
    (template,) = await driver.cloning.templates()
    assert isinstance(template, QemuTemplate)
    return template


async def clone_of(template: Template) -> QemuClone:
    clone = await template.clone()
    assert isinstance(clone, QemuClone)
    return clone


async def run(machine: Machine, script: str, *, kill_at_output: Callable[[], None] | None = None) -> tuple[int, str]:
    """Exit code of a container in the machine and what it has written; then the machine is off.

    With `kill_at_output` it is killed after it has written something and that was called.
    """
    command_line = types_pb2.ProcessConfig(cmd=["/bin/sh", "-c", script], env=["PATH=/bin"])
    spec = types_pb2.ContainerSpec(process=command_line, hostname=machine.spec.name)
    spec.tmpfs.append(types_pb2.TmpfsMount(target="/scribble", options="size=128m"))
    limits = {"memory_limit_bytes": 0, "cpu_limit_ns_per_s": 0}
    output = b""
    async with asyncio.timeout(BOOT_S), AgentClient(machine.open_channel) as agent:
        machine_id = secrets.token_hex(16)
        request = init_request(spec, secrets.token_hex(16), machine_id=machine_id, disks=command.DISK_NAMES, **limits)
        response = await agent.start(request, timeout_s=BOOT_S)
        assert response.pid, response
        follow = agent.follow("init", 0)
        exit_code = -1
        async for message in follow:
            if message.HasField("exited"):
                exit_code = message.exited.exit_code
                follow.acknowledge(message.exited.end_offset, exit_recorded=True)
            else:
                output += message.output.data
                if kill_at_output is not None:
                    kill_at_output()
                    await agent.signal(tether_pb2.SignalRequest(process_id="init", signal=signal.SIGKILL))
        await machine.wait_off()
    return exit_code, output.decode()


def digest(template: QemuTemplate) -> str:
    """Of the memory that all clones are made of."""
    assert template._memory is not None
    return hashlib.sha256(os.pread(template._memory.fd, SHAPE.memory_bytes, 0)).hexdigest()


# --- clones


async def test_a_clone_becomes_a_containers_machine(driver: QemuDriver, copied: Path) -> None:
    clone = await clone_of(await template_of(driver))
    assert set(clone.phases_ns) == {"machine", "restore"}
    assert len(os.listdir(copied / "clones")) == 1
    machine = await driver.create(make_spec(), b"record")
    await machine.power_on(clone)
    assert os.listdir(copied / "clones") == []
    assert await machine.power_state() is PowerState.RUNNING
    assert await run(machine, "hostname; echo of this container > /file; exit 3") == (3, "machine-1\n")
    assert await machine.power_state() is PowerState.OFF
    # And again, in another clone, with the disk that is its own.
    await machine.power_on(await clone_of(await template_of(driver)))
    assert await run(machine, "cat /file") == (0, "of this container\n")


async def test_a_machine_in_a_clone_is_found_again(driver: QemuDriver, opened: OpenNext) -> None:
    """The next driver clears waiting clones away, and not what has become a container's."""
    template = await template_of(driver)
    machine = await driver.create(make_spec(), b"record")
    await machine.power_on(await clone_of(template))
    again: QemuDriver = await opened()
    (found,) = await again.list()
    assert await found.power_state() is PowerState.RUNNING
    assert await run(found, "echo here") == (0, "here\n")


async def test_a_clone_that_waited_carries_a_container(driver: QemuDriver) -> None:
    """As the pool does it: it rehearses and is put to sleep, and nothing of that is seen afterwards."""
    clone = await clone_of(await template_of(driver))
    await clone.resume()
    await rehearse(clone, 1)
    await clone.suspend()
    assert 10 * MIB < await clone.private_bytes() < SHAPE.memory_bytes
    machine = await driver.create(make_spec(), b"record")
    await machine.power_on(clone)
    assert await run(machine, "hostname; ls /scribble; ls / | grep -c rehearsal") == (1, "machine-1\n0\n")


async def test_what_a_clone_does_to_its_memory_reaches_nobody(driver: QemuDriver, copied: Path) -> None:
    template = await template_of(driver)
    clone = await clone_of(template)
    before = digest(template)
    kept = {path.name: hashlib.sha256(path.read_bytes()).digest() for path in template._directory.iterdir()}
    machine = await driver.create(make_spec(1), b"")
    await machine.power_on(clone)
    own_memory: list[int] = []
    assert await run(
        machine,
        "yes scribble | head -c 1048576 > /scribble/one; "
        f"for n in $(seq {SCRIBBLED // MIB}); do cat /scribble/one; done > /scribble/all; echo done; sleep 1000",
        kill_at_output=lambda: own_memory.append(process.private_bytes(machine.directory / PROCESS)),
    ) == (137, "done\n")
    assert own_memory[0] > SCRIBBLED
    assert digest(template) == before
    assert {path.name: hashlib.sha256(path.read_bytes()).digest() for path in template._directory.iterdir()} == kept
    other = await driver.create(make_spec(2), b"")
    await other.power_on(await clone_of(template))
    # All that the guest has not allocated is what it was in the template, as the digest says; and nothing is mounted.
    assert await run(other, "ls -A /scribble | wc -l") == (0, "0\n")
    assert digest(template) == before


async def test_a_clone_that_dies_is_noticed_and_its_container_can_boot(driver: QemuDriver, copied: Path) -> None:
    clone = await clone_of(await template_of(driver))
    (directory,) = (copied / "clones").iterdir()
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        group.create_task(clone.wait_off())
        os.kill(int((directory / command.PID_FILE).read_text()), signal.SIGKILL)
    machine = await driver.create(make_spec(), b"")
    with pytest.raises(DriverError):
        await machine.power_on(clone)
    assert os.listdir(copied / "clones") == []
    assert await machine.power_state() is PowerState.OFF
    await machine.power_on()
    assert await machine.power_state() is PowerState.RUNNING


async def test_a_discarded_clone_leaves_nothing(driver: QemuDriver, copied: Path) -> None:
    clone = await clone_of(await template_of(driver))
    await clone.discard()
    await clone.discard()
    await all_ended(copied)
    assert os.listdir(copied / "clones") == []


async def test_a_damaged_state_makes_no_clone(driver: QemuDriver, copied: Path) -> None:
    template = await template_of(driver)
    state = template._directory / "state"
    half = state.read_bytes()[: state.stat().st_size // 2]
    state.unlink()  # it is the other tests' too
    state.write_bytes(half)
    with pytest.raises(DriverError):
        await template.clone()
    await all_ended(copied)
    assert os.listdir(copied / "clones") == []


# --- templates between the lives of a port layer


async def test_a_template_is_there_for_the_next_driver(driver: QemuDriver, opened: OpenNext) -> None:
    template = await template_of(driver)
    assert template.shape == SHAPE
    assert template.made_in_ns > MADE_IN_NS
    assert 0 < template.disk_bytes < SHAPE.memory_bytes
    assert template.resident_bytes == 0  # nobody has needed it yet
    os.utime(template._directory / "template.json", ns=(1, 1))
    assert template.last_used_unix_ns == 1
    template.note_use()
    used = template.last_used_unix_ns
    assert used > 1
    again = await template_of(await opened())
    assert again is not template
    assert (again.id, again.created_unix_ns, again.made_in_ns) == (
        template.id,
        template.created_unix_ns,
        template.made_in_ns,
    )
    assert again.last_used_unix_ns == used
    clone = await clone_of(again)
    assert 0 < again.resident_bytes < SHAPE.memory_bytes
    await clone.discard()


async def test_a_template_that_was_removed_is_gone(driver: QemuDriver, copied: Path) -> None:
    """Its clones live on."""
    template = await template_of(driver)
    machine = await driver.create(make_spec(), b"")
    clone = await clone_of(template)
    await template.remove()
    await template.remove()
    assert os.listdir(copied / "templates") == []
    assert driver.cloning is not None
    assert await driver.cloning.templates() == []
    await machine.power_on(clone)
    assert await run(machine, "echo alive") == (0, "alive\n")


def other_guest_image(patch: pytest.MonkeyPatch) -> None:
    read = guest_images.read
    patch.setattr(guest_images, "read", lambda *of: dataclasses.replace(read(*of), digest="sha256:other"))


def other_qemu(patch: pytest.MonkeyPatch) -> None:
    inspect = accelerators.inspect_qemu

    async def newer() -> accelerators.Qemu:
        return dataclasses.replace(await inspect(), version="99.0")

    patch.setattr(accelerators, "inspect_qemu", newer)


def other_machine(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(command, "MACHINE_TYPE", "pc-q35-8.0")


def other_cpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(command, "cpu_options", lambda accelerator: ["-accel", accelerator, "-cpu", "qemu64"])


@pytest.mark.parametrize("change", [other_guest_image, other_qemu, other_machine, other_cpu])
async def test_a_template_of_something_else_is_removed(
    opened: OpenNext, copied: Path, change: Callable[[pytest.MonkeyPatch], None]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        change(patch)
        driver: QemuDriver = await opened()
        assert driver.cloning is not None
        assert await driver.cloning.templates() == []
    assert os.listdir(copied / "templates") == []


def without_state(directory: Path) -> None:
    (directory / "state").unlink()


def with_short_memory(directory: Path) -> None:
    (directory / "memory").unlink()  # which the other tests have too
    (directory / "memory").write_bytes(b"short")


def without_description(directory: Path) -> None:
    (directory / "template.json").unlink()
    (directory / "template.json").write_text('{"memory_bytes": 268435456}')


@pytest.mark.parametrize("damage", [without_state, with_short_memory, without_description])
async def test_a_damaged_template_is_removed(opened: OpenNext, copied: Path, damage: Callable[[Path], None]) -> None:
    (directory,) = (copied / "templates").iterdir()
    damage(directory)
    driver: QemuDriver = await opened()
    assert driver.cloning is not None
    assert await driver.cloning.templates() == []
    assert os.listdir(copied / "templates") == []


async def test_what_a_crash_leaves_is_cleared_away(driver: QemuDriver, opened: OpenNext, copied: Path) -> None:
    """A QEMU that is to become a template, a clone that waits, and what was being removed; the template stays."""
    assert driver.cloning is not None
    template = await template_of(driver)
    parent = await driver.cloning.boot_parent(Shape(512 * MIB, 1))
    clone = await clone_of(template)
    for guest in (parent, clone):
        assert guest._own.is_running  # type: ignore[union-attr]
        await guest._own.release()  # type: ignore[union-attr]
    for name in ("templates/.trash-0-1", "templates/.new-0", "clones/0"):
        (copied / name).mkdir()
        (copied / name / "state").write_bytes(b"half")
    assert len([one for one in own_processes(copied) if "qemu-system" in one]) == 2
    again: QemuDriver = await opened()
    await all_ended(copied)
    assert os.listdir(copied / "templates") == [template.id]
    assert os.listdir(copied / "clones") == []
    await (await clone_of(await template_of(again))).discard()


@pytest.mark.parametrize(
    "step", [(process, "keeper"), (process, "spawn"), (Instance, "control")], ids=["first", "fork", "answer"]
)
async def test_a_boot_that_is_called_off_leaves_nothing(
    driver: QemuDriver, copied: Path, step: tuple[object, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the cancellation meets it: no QEMU works on in a directory that is gone."""
    assert driver.cloning is not None
    booting: asyncio.Task[Parent]
    reached = Mock(side_effect=lambda: booting.cancel())
    taken = getattr(*step)

    def called_off(*arguments: object, **named: object) -> object:
        reached()
        return taken(*arguments, **named)

    monkeypatch.setattr(*step, called_off)
    booting = asyncio.create_task(driver.cloning.boot_parent(Shape(512 * MIB, 1)))
    with pytest.raises(asyncio.CancelledError):
        await booting
    reached.assert_called_once()
    await all_ended(copied)
    assert [name for name in os.listdir(copied / "templates") if name.startswith(".")] == []
