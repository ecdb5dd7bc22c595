"""VMs that are removed: with all that is their own, and nothing that is of others, whatever step was the last."""

from __future__ import annotations

import pytest
from pyVmomi import vim
from vsphere_plain import extra, outcome
from vsphere_site import MIB, Site, make_template, spec
from vsphere_trouble import fail_task, fail_task_after
from vsphere_waiting import until

from portlayer.drivers.vsphere import extra_config
from portlayer.errors import ExhaustedError

FULL = vim.fault.NoDiskSpace(msg="LocalDS_0 is full", datastore="LocalDS_0")
STEPS = ("ReconfigVM_Task", "DeleteVirtualDisk_Task", "Destroy_Task")


def shared(site: Site) -> set[str]:
    """The files that containers have in common."""
    root = site.front.simulator.datastore_dir() / site.folder
    return {path.name for kind in ("images", "empties") for path in (root / kind).iterdir()}


async def test_the_last_container_of_an_image_leaves_the_image(site: Site, short_dial: None) -> None:
    async with site.driver() as driver:
        template = await make_template(driver)
        machine = await driver.create(spec(), b"record")
        before = shared(site)
        assert len(before) == 4  # of an image and an empty disk, descriptor and content
        await machine.power_on(await template.clone())
        await until(lambda: site.has_moved(f"web-{machine.id[:12]}"))
        assert shared(site) == before  # the VM before is gone, too
        await driver.destroy(machine)
        await template.remove()
        await until(lambda: (site.names(), site.files()) == ([], set()))
        assert shared(site) == before
        await driver.destroy(await driver.create(spec(), b"record"))
        assert site.front.calls["CreateVirtualDisk_Task"] == 2


async def test_a_creation_that_failed_after_its_work_leaves_the_image(site: Site) -> None:
    async with site.driver() as driver:
        first = await driver.create(spec(), b"record")
        before = shared(site)
        await driver.destroy(first)
        site.front.inject("CreateVM_Task", fail_task_after(FULL))
        with pytest.raises(ExhaustedError):
            await driver.create(spec(), b"record")
        await until(lambda: (site.names(), site.files()) == ([], set()))
        assert shared(site) == before


@pytest.mark.parametrize("step", STEPS)
async def test_a_removal_that_breaks_off_is_gone_on_with(site: Site, step: str) -> None:
    """By whoever asked for it, or by the next port layer."""
    for later in (False, True):
        async with site.driver() as driver:
            machine = await driver.create(spec(), b"record")
            await machine.power_on()
            before = shared(site)
            site.front.inject(step, fail_task(FULL))
            with pytest.raises(ExhaustedError):
                await driver.destroy(machine)
            vm = site.vm(f"web-{machine.id[:12]}")
            assert bool(extra(vm).get(extra_config.REMOVAL)) == (step != "ReconfigVM_Task")
            if not later or step == "ReconfigVM_Task":
                await driver.destroy(machine)
        async with site.driver() as driver:
            assert await driver.list() == []
            await until(lambda: (site.names(), site.files()) == ([], set()))
            assert shared(site) == before


async def test_disks_of_an_administrators_go_with_the_vm(site: Site) -> None:
    async with site.driver() as driver:
        machine = await driver.create(spec(), b"record")
        vm = site.vm(f"web-{machine.id[:12]}")
        controller = next(
            one.key for one in vm.config.hardware.device if isinstance(one, vim.vm.device.ParaVirtualSCSIController)
        )
        backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName="", diskMode="persistent", thinProvisioned=True
        )
        disk = vim.vm.device.VirtualDisk(
            key=-1, controllerKey=controller, unitNumber=5, capacityInKB=MIB // 1024, backing=backing
        )
        add = vim.vm.device.VirtualDeviceSpec(operation="add", fileOperation="create", device=disk)
        outcome(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[add])))
        await driver.destroy(machine)
        await until(lambda: (site.names(), site.files()) == ([], set()))


def test_a_note_comes_back() -> None:
    paths = ["[a b] x/y.vmdk", "[vms] ü.vmdk"]
    assert extra_config.read_removal(extra_config.removal(paths)[extra_config.REMOVAL]) == paths
    assert extra_config.read_removal("") == extra_config.read_removal(None) == []
