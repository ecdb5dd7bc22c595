"""What vSphere leaves of a creation that fails: it is removed, and nothing else that looks like it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pyVmomi import vim
from vsphere_front import Action, Forward, Front
from vsphere_plain import outcome
from vsphere_site import Site, spec
from vsphere_soap import Call, Reply, task_reply
from vsphere_trouble import fail_creation_half_way, fail_task, slow, unavailable
from vsphere_waiting import settled, until

from portlayer.drivers.base import MachineSpec
from portlayer.drivers.vsphere.creations import Creation
from portlayer.drivers.vsphere.driver import VsphereDriver
from portlayer.drivers.vsphere.machine import first_uuid
from portlayer.errors import AlreadyExistsError, DriverError, ExhaustedError

FULL = vim.fault.NoDiskSpace(msg="LocalDS_0 is full", datastore="LocalDS_0")


def notes(site: Site) -> list[Path]:
    return list((site.root / "state" / "creations").iterdir())


def name_of(wanted: MachineSpec) -> str:
    return f"web-{wanted.id[:12]}"


def note(site: Site, wanted: MachineSpec) -> None:
    """As a port layer leaves it that is killed while it makes the VM."""
    creation = Creation(first_uuid(wanted.id), "LocalDS_0", f"{site.folder}/disks/{wanted.id}.vmdk", name_of(wanted))
    (site.root / "state" / "creations" / wanted.id).write_bytes(msgspec.json.encode(creation))


async def fails(driver: VsphereDriver, wanted: MachineSpec) -> None:
    with pytest.raises(ExhaustedError, match="LocalDS_0 is full"):
        await driver.create(wanted, b"record")


async def test_it_is_removed_at_once(site: Site) -> None:
    async with site.driver() as driver:
        site.front.inject("CreateVM_Task", fail_creation_half_way(FULL))
        wanted = spec()
        await fails(driver, wanted)
        assert (site.files(), notes(site)) == (set(), [])
        assert not (site.front.simulator.datastore_dir() / name_of(wanted)).exists()
        await driver.create(wanted, b"record")
        assert notes(site) == []


@pytest.mark.parametrize("step", ["DeleteVirtualDisk_Task", "DeleteDatastoreFile_Task"])
async def test_what_cannot_be_removed_goes_with_the_next_creation(site: Site, step: str) -> None:
    async with site.driver() as driver:
        await driver.destroy(await driver.create(spec(), b"record"))  # what is made once is there then
        site.front.inject("CreateVM_Task", fail_creation_half_way(FULL))
        site.front.inject(step, fail_task(FULL))
        wanted = spec()
        await fails(driver, wanted)
        assert any(name_of(wanted) in path for path in site.files())
        await driver.create(wanted, b"record")
        await driver.destroy((await driver.list())[0])
        await until(lambda: (site.files(), notes(site)) == (set(), []))


async def test_what_was_begun_when_vcenter_went_away_is_removed_later(site: Site) -> None:
    async with site.driver() as driver:
        await driver.destroy(await driver.create(spec(), b"record"))
        site.front.inject("CreateVM_Task", unavailable(), times=None)
        wanted = spec()
        with pytest.raises(DriverError, match="does not answer"):
            await driver.create(wanted, b"record")
        left = site.front.simulator.datastore_dir() / site.folder / "disks" / f"{wanted.id}.vmdk"
        left.touch()  # the last of those calls came to vCenter
        site.front.clear()
        await driver.destroy(await driver.create(spec(), b"record"))
        await until(lambda: (site.files(), notes(site)) == (set(), []))


async def test_a_port_layer_that_was_killed_leaves_it_to_the_next(site: Site) -> None:
    async with site.driver() as driver:
        await driver.destroy(await driver.create(spec(), b"record"))
        site.front.inject("CreateVM_Task", fail_creation_half_way(FULL))
        site.front.inject("DeleteVirtualDisk_Task", fail_task(FULL))
        await fails(driver, spec())
        assert len(notes(site)) == 1
        (notes(site)[0].parent / "broken").write_text("{")  # it was killed before it asked for anything
    async with site.driver():
        await until(lambda: (site.files(), notes(site)) == (set(), []))


def goes_on_behind(begun: threading.Event, gate: threading.Event) -> Action:
    """A creation that ends when the test says so, however long ago whoever began it is gone."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        control = front.control
        folder: Any = control.managed("Folder", call.target)
        config, pool = call.decoded("config", vim.vm.ConfigSpec), vim.ResourcePool(call.reference("pool"))
        task = await front.controlled(control.new_task, folder)

        def work() -> None:
            gate.wait()
            control.succeed(task, control.outcome(folder.CreateVM_Task(config, pool)._moId))

        front.spawn(front.controlled(work))
        begun.set()
        return task_reply(call.method, task._moId)

    return act


async def test_a_creation_that_goes_on_is_waited_for(site: Site, request: pytest.FixtureRequest) -> None:
    """The next port layer has the container."""
    begun, gate = threading.Event(), threading.Event()
    request.addfinalizer(gate.set)
    wanted = spec()
    async with site.driver() as driver:
        await driver.destroy(await driver.create(spec(), b"record"))
        site.front.inject("CreateVM_Task", goes_on_behind(begun, gate))
        creation = asyncio.ensure_future(driver.create(wanted, b"record"))
        await asyncio.to_thread(begun.wait)
    with pytest.raises(DriverError):
        await creation
    tasks = site.front.inject("RetrievePropertiesEx", slow(0.0), when=_asks_for_tasks_of_a_folder)
    looked_at = asyncio.ensure_future(_machines(site))
    await asyncio.to_thread(tasks.hit.wait)
    gate.set()
    assert await looked_at == [wanted.id]
    assert site.names() == [name_of(wanted)]


def _asks_for_tasks_of_a_folder(call: Call) -> bool:
    return b"recentTask" in call.body and b"<type>Folder</type>" in call.body


async def _machines(site: Site) -> list[str]:
    async with site.driver() as driver:
        await until(lambda: notes(site) == [])
        return [machine.id for machine in await driver.list()]


async def test_the_directory_of_another_vm_stays(site: Site) -> None:
    async with site.driver() as driver:
        wanted = spec()
        folder = site.plain.content.searchIndex.FindByInventoryPath(site.path)
        files = vim.vm.FileInfo(vmPathName="[LocalDS_0]")
        other = vim.vm.ConfigSpec(name=name_of(wanted), memoryMB=64, numCPUs=1, files=files)
        outcome(folder.CreateVM_Task(other, site.plain.pool))
        of_other = site.files()
        assert any(path.endswith(".vmx") for path in of_other)
        with pytest.raises(AlreadyExistsError):
            await driver.create(wanted, b"record")
        assert (site.files(), notes(site)) == (of_other, [])


async def test_what_no_creation_left_stays(site: Site) -> None:
    """The disk of a VM that is unregistered for a while looks the same, but for the note."""
    async with site.driver() as driver:
        machine = await driver.create(spec(), b"record")
        kept = site.files()
        assert any(machine.id in path for path in kept)
    site.vm(f"web-{machine.id[:12]}").UnregisterVM()
    for _ in range(2):
        async with site.driver() as driver:
            await settled(driver)
            assert site.files() == kept
    for path in kept:
        (site.front.simulator.datastore_dir() / path).unlink()


@pytest.mark.parametrize("seen", [True, False])
async def test_a_note_of_a_container_that_was_made_is_none(site: Site, seen: bool) -> None:
    """A port layer may be killed between the two. `seen`: whether the next one finds the VM."""
    async with site.driver() as driver:
        wanted = spec()
        await driver.create(wanted, b"record")
        kept = site.files()
    note(site, wanted)
    if not seen:
        site.vm(name_of(wanted)).UnregisterVM()
    async with site.driver():
        await until(lambda: notes(site) == [])
        assert site.files() == kept
    if not seen:
        for path in kept:
            (site.front.simulator.datastore_dir() / path).unlink()
