"""VMs that are made: once, wholly or not at all, from the newest guest image."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pyVmomi import vim
from vsphere_plain import outcome
from vsphere_site import Site, make_guest_image, spec
from vsphere_trouble import cut_after, fail_task
from vsphere_waiting import PATIENCE_S, settled, until

from portlayer.drivers import uninterrupted
from portlayer.errors import AlreadyExistsError, DriverError, ExhaustedError, NotFoundError


async def test_a_creation_whose_answer_is_lost_is_made_once(site: Site) -> None:
    async with site.driver() as driver:
        site.front.inject("CreateVM_Task", cut_after())
        machine = await driver.create(spec(), b"record")
        assert site.front.calls["CreateVM_Task"] == 2
        assert site.names() == [f"web-{machine.id[:12]}"]
        assert await machine.read_record() == b"record"
        await machine.power_on()


async def test_a_name_that_another_vm_has_is_refused(site: Site) -> None:
    async with site.driver() as driver:
        wanted = spec()
        folder = site.plain.content.searchIndex.FindByInventoryPath(site.path)
        name = f"web-{wanted.id[:12]}"
        other = vim.vm.ConfigSpec(name=name, memoryMB=64, numCPUs=1, files=vim.vm.FileInfo(vmPathName="[LocalDS_0]"))
        outcome(folder.CreateVM_Task(other, site.plain.pool))
        with pytest.raises(AlreadyExistsError, match=name):
            await driver.create(wanted, b"record")
        assert await driver.list() == []


async def test_a_creation_that_fails_leaves_nothing(site: Site) -> None:
    async with site.driver() as driver:
        await driver.destroy(await driver.create(spec(), b"record"))  # what is made once is there then
        full = vim.fault.NoDiskSpace(msg="LocalDS_0 is full", datastore="LocalDS_0")
        site.front.inject("CreateVM_Task", fail_task(full))
        wanted = spec()
        with pytest.raises(ExhaustedError, match="LocalDS_0 is full"):
            await driver.create(wanted, b"record")
        assert await driver.list() == []
        await until(lambda: (site.names(), site.files()) == ([], set()))
        with pytest.raises(DriverError, match="not admitted"):
            await driver.around.lines.connect(wanted.id[:32])
        await driver.create(wanted, b"record")


async def test_what_somebody_removed_of_a_datastore_is_brought_anew(site: Site) -> None:
    """The guest image, and empty disks: vCenter itself removes one with the last VM that an administrator removes."""
    root = site.front.simulator.datastore_dir() / site.folder
    async with site.driver() as driver:
        await driver.destroy(await driver.create(spec(), b"record"))
        for shared in ("guest", "empties"):
            for path in (root / shared).iterdir():
                path.unlink()
        site.front.inject("CreateVM_Task", fail_task(vim.fault.FileNotFound(msg="no such file", file="[LocalDS_0] x")))
        await driver.create(spec(), b"record")
        assert all(any((root / shared).iterdir()) for shared in ("guest", "empties"))
        missing = fail_task(vim.fault.FileNotFound(msg="no such file", file="[LocalDS_0] x"))
        site.front.inject("CreateVM_Task", missing, times=2)
        with pytest.raises(NotFoundError, match="no such file"):
            await driver.create(spec(), b"record")
        assert len(await driver.list()) == 1


async def test_a_cancelled_creation_leaves_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uninterrupted, "_PATIENCE_S", PATIENCE_S)
    async with site.driver() as driver:
        for wait_s in (0.0, 0.02, 0.05, 0.1):
            creation = asyncio.ensure_future(driver.create(spec(), b"record"))
            await asyncio.wait([creation], timeout=wait_s)
            if not creation.cancel():
                await driver.destroy(creation.result())
                continue
            with pytest.raises(asyncio.CancelledError):
                await creation
        assert await driver.list() == []
        await until(lambda: (site.names(), site.files()) == ([], set()))


async def test_a_new_guest_image_is_booted_from_then_on_and_the_old_one_goes(site: Site) -> None:
    async with site.driver() as driver:
        machine = await driver.create(spec(), b"record")
        await machine.power_on()
    make_guest_image(site.guest_image, b"newer")
    async with site.driver() as driver:
        await settled(driver)
        [machine] = await driver.list()
        assert len(isos(site)) == 1  # the VM that runs still has it
        await machine.power_off()
        await machine.power_on()
        vm = site.vm(f"web-{machine.id[:12]}")
        booted = next(
            one.backing.fileName for one in vm.config.hardware.device if isinstance(one, vim.vm.device.VirtualCdrom)
        )
        assert {Path(booted).stem} < isos(site)
    async with site.driver() as driver:
        await settled(driver)
        assert {Path(booted).stem} == isos(site)


def isos(site: Site) -> set[str]:
    return {path.stem for path in (site.front.simulator.datastore_dir() / site.folder / "guest").glob("*.iso")}


async def test_a_creation_that_fails_keeps_no_other_waiting(site: Site) -> None:
    """It looks at all that was begun in the folder, which others wait for."""
    async with site.driver() as driver:
        await driver.destroy(await driver.create(spec(), b"record"))
        full = vim.fault.NoDiskSpace(msg="LocalDS_0 is full", datastore="LocalDS_0")
        site.front.inject("CreateVM_Task", fail_task(full), skip=2, times=2)
        async with asyncio.timeout(60):
            made = await asyncio.gather(*(driver.create(spec(), b"record") for _ in range(8)), return_exceptions=True)
        assert sum(isinstance(one, ExhaustedError) for one in made) == 2
        assert len(await driver.list()) == len(site.names()) == 6
