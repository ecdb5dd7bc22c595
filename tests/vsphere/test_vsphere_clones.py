"""Templates and instant clones on vcsim, without guests, and containers that move into clones."""

from __future__ import annotations

import pytest
from pyVmomi import vim
from vsphere_esxi_port import EsxiPort
from vsphere_plain import extra, outcome
from vsphere_site import MIB, Site, make_template, spec, writable
from vsphere_trouble import cut_after, fail_task, fail_task_after, unavailable
from vsphere_waiting import until

from portlayer.drivers.base import PowerState, Shape
from portlayer.drivers.vsphere import cloning, config_spec, extension, extra_config
from portlayer.drivers.vsphere import machine as machine_module
from portlayer.errors import ConflictError, DriverError, ExhaustedError, PortLayerError


async def test_a_container_moves_into_a_clone_and_stays_what_it_is(site: Site, short_dial: None) -> None:
    async with site.driver() as driver:
        template = await make_template(driver)
        machine = await driver.create(spec(), b"record")
        name = f"web-{machine.id[:12]}"
        before, disk = site.vm(name)._moId, writable(site.vm(name))
        await machine.power_on(await template.clone())
        await until(lambda: site.has_moved(name))
        after = site.vm(name)
        assert after._moId != before
        assert writable(after) == disk
        ports = [one for one in after.config.hardware.device if isinstance(one, vim.vm.device.VirtualSerialPort)]
        assert ports[0].backing.fileName.startswith(f"[LocalDS_0] {cloning.CLONE_NAME}")  # not the template's
        assert after.runtime.powerState == "poweredOn"
        assert extra(after)[extra_config.ID] == machine.id
        assert not extra(after).get(extra_config.CLONE)
        assert after.config.managedBy.extensionKey == extension.KEY
        assert await machine.power_state() is PowerState.RUNNING
        await machine.write_record(b"newer")
        assert [await one.read_record() for one in await driver.list()] == [b"newer"]
    async with site.driver() as driver:  # and a new port layer takes it, and the template, up
        assert driver.cloning is not None
        assert [one.id for one in await driver.cloning.templates()] == [template.id]
        [machine] = await driver.list()
        await machine.power_off()
        [again] = await driver.cloning.templates()
        await machine.power_on(await again.clone())
        assert await machine.power_state() is PowerState.RUNNING
        await until(lambda: site.has_moved(name))
        await driver.destroy(machine)
        await again.remove()
    await until(lambda: (site.names(), site.files()) == ([], set()))


@pytest.mark.parametrize("how", ["off", "removed", "off between port layers"])
async def test_a_template_that_does_not_run_any_more_is_none(site: Site, short_dial: None, how: str) -> None:
    """A host that crashes takes its templates along; containers would boot for ever."""
    async with site.driver() as driver:
        template = await make_template(driver)
        [name] = site.names()
        if how != "off between port layers":
            outcome(site.vm(name).PowerOffVM_Task())
            if how == "removed":
                outcome(site.vm(name).Destroy_Task())
            with pytest.raises(PortLayerError):
                await template.clone()
            assert driver.cloning is not None
            assert await driver.cloning.templates() == []
    if how == "off between port layers":
        outcome(site.vm(name).PowerOffVM_Task())
        async with site.driver() as driver:
            assert driver.cloning is not None
            assert await driver.cloning.templates() == []
    assert site.names() == []


@pytest.mark.parametrize("how", ["cut", "fault"])
async def test_a_move_whose_answer_is_lost_costs_no_data(site: Site, short_dial: None, how: str) -> None:
    """The clone has the container's disk by then: whoever removes the clone removes what the container has written."""
    trouble = {"cut": cut_after(), "fault": fail_task_after(vim.fault.GenericVmConfigFault(msg="in vain"))}[how]
    async with site.driver() as driver:
        template = await make_template(driver)
        machine = await driver.create(spec(), b"record")
        disk = writable(site.vm(f"web-{machine.id[:12]}"))
        clone = await template.clone()
        site.front.inject("ReconfigVM_Task", trouble, when=lambda call: call.target == clone.vm._moId)
        await machine.power_on(clone)
        await until(lambda: site.has_moved(f"web-{machine.id[:12]}"))
        assert writable(site.vm(f"web-{machine.id[:12]}")) == disk
        assert any(disk.endswith(path) for path in site.files() if path)
        assert [await one.read_record() for one in await driver.list()] == [b"record"]


async def test_a_clone_that_may_have_the_disk_is_not_removed(site: Site, short_dial: None) -> None:
    async with site.driver() as driver:
        template = await make_template(driver)
        machine = await driver.create(spec(), b"record")
        disk = writable(site.vm(f"web-{machine.id[:12]}"))
        clone = await template.clone()
        trouble = fail_task_after(vim.fault.GenericVmConfigFault(msg="in vain"))
        site.front.inject("ReconfigVM_Task", trouble, when=lambda call: call.target == clone.vm._moId)
        driver.around.session.delays_s = ()
        broken = site.front.inject(
            "RetrievePropertiesEx",
            unavailable(),
            times=None,
            when=lambda call: clone.vm._moId.encode() in call.body and b"extraConfig" in call.body,
        )
        with pytest.raises(DriverError):
            await machine.power_on(clone)
        assert broken.hits
        site.front.clear()
        assert clone.name in site.names()
    async with site.driver() as driver:
        [machine] = await driver.list()
        assert await machine.power_state() is PowerState.RUNNING
        await until(lambda: len(site.names()) == 2)
        assert writable(site.vm(f"web-{machine.id[:12]}")) == disk


async def test_the_serial_port_of_a_clone_is_the_machines(site: Site, short_dial: None) -> None:
    async with site.driver() as driver:
        template = await make_template(driver)
        machine = await driver.create(spec(), b"record")
        clone = await template.clone()
        await machine.power_on(clone)
        host, port = driver.around.lines.address
        line = EsxiPort(host, port, f"vch://{clone.token}", clone.uuid, "clone")
        await line.open()
        reader, writer = await machine.open_channel()
        line.write(b"from the guest")
        assert await reader.readexactly(14) == b"from the guest"
        writer.close()
        await line.close()


async def test_a_serial_port_is_plugged_in_anew_where_the_vm_runs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is suspended cannot be reconfigured, and dials when it goes on. One that does not dial for all that is
    let alone for some time.
    """
    monkeypatch.setattr(machine_module, "_DIAL_S", 0.05)
    monkeypatch.setattr(machine_module, "_PATIENCE_S", 0.05)
    async with site.driver() as driver:
        machine = await driver.create(spec(), b"record")
        await machine.power_on()
        for step, edits in (("it runs", 2), ("in vain", 0), ("it dialled", 2), ("paused", 0)):
            if step == "it dialled":
                token = extra(site.vm(f"web-{machine.id[:12]}"))[extra_config.TOKEN]
                line = EsxiPort(*driver.around.lines.address, f"vch://{token}", None, "web")
                await line.open()
                await machine.open_channel()
                await line.close()
                await driver.around.lines.wait_disconnected(machine.vc_uuid)
            elif step == "paused":
                machine._replug.dialled()
                await machine.pause()
            before = site.front.calls["ReconfigVM_Task"]
            with pytest.raises(TimeoutError):
                await machine.open_channel()
            assert site.front.calls["ReconfigVM_Task"] - before == edits


async def test_a_vm_that_runs_is_told_where_to_dial_now(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "_DIAL_S", 0.05)
    monkeypatch.setattr(machine_module, "_PATIENCE_S", 0.05)
    async with site.driver() as driver:
        await (await driver.create(spec(), b"record")).power_on()
    site.serial_port = site.another_port()
    async with site.driver() as driver:
        [machine] = await driver.list()
        with pytest.raises(TimeoutError):
            await machine.open_channel()
        devices = site.vm(f"web-{machine.id[:12]}").config.hardware.device
        [channel] = [one for one in devices if config_spec.is_channel(one)]
        assert channel.backing.proxyURI == driver.around.lines.uri
        assert channel.connectable.connected


async def test_a_vm_with_limits_of_an_administrators_boots(site: Site, short_dial: None) -> None:
    async with site.driver() as driver:
        template = await make_template(driver)
        machine = await driver.create(spec(), b"record")
        limited = vim.vm.ConfigSpec(cpuAllocation=vim.ResourceAllocationInfo(limit=500))
        outcome(site.vm(f"web-{machine.id[:12]}").ReconfigVM_Task(limited))
        with pytest.raises(ConflictError, match="changed by an administrator"):
            await machine.power_on(await template.clone())
        await machine.power_on()
        vm = site.vm(f"web-{machine.id[:12]}")
        assert (vm.config.cpuAllocation.limit, vm.runtime.powerState) == (500, "poweredOn")
        assert len(site.names()) == 2  # the clone is gone


async def test_a_container_stays_in_the_group_when_it_moves_into_a_clone(site: Site, short_dial: None) -> None:
    site.affinity_group = True
    async with site.driver() as driver:
        template = await make_template(driver)
        machine = await driver.create(spec(), b"record")
        await until(lambda: site.group() == site.ids())
        before = site.ids()
        await machine.power_on(await template.clone())
        await until(lambda: len(site.ids()) == 2 and site.ids() != before and site.ids() <= site.group())
    empty = vim.cluster.GroupSpec(operation="edit", info=vim.cluster.VmGroup(name=site.folder, vm=[]))
    outcome(site.cluster.ReconfigureComputeResource_Task(vim.cluster.ConfigSpecEx(groupSpec=[empty]), True))
    async with site.driver() as driver:  # as after a port layer that was killed before it had told the group
        await until(lambda: site.vm(f"web-{machine.id[:12]}")._moId in site.group())
        assert driver.cloning is not None
        [again] = await driver.cloning.templates()
        await again.remove()
        for one in await driver.list():
            await driver.destroy(one)
        assert await driver.dismantle() == []


async def test_a_move_that_breaks_off_anywhere_is_one_container(site: Site, short_dial: None) -> None:
    """It dies at each reconfiguration of a move: the next port layer has one VM with the disk, and can start it."""
    for step in (1, 2):
        async with site.driver() as driver:
            template = await make_template(driver)
            machine = await driver.create(spec(), b"record")
            disk = writable(site.vm(f"web-{machine.id[:12]}"))
            clone = await template.clone()
            refused = fail_task(vim.fault.NoDiskSpace(msg="full", datastore="LocalDS_0"))
            site.front.inject("ReconfigVM_Task", refused, times=99, skip=step - 1)
            site.front.inject("Destroy_Task", refused, times=99)
            with pytest.raises(ExhaustedError):
                await machine.power_on(clone)
        site.front.clear()
        async with site.driver() as driver:
            [machine] = await driver.list()
            assert await machine.read_record() == b"record"
            await machine.power_on()
            assert writable(site.vm(f"web-{machine.id[:12]}")) == disk
            await driver.destroy(machine)
            assert driver.cloning is not None
            for one in await driver.cloning.templates():
                await one.remove()
            await until(lambda: (site.names(), site.files()) == ([], set()))


async def test_what_is_out_of_date_or_half_made_is_removed(site: Site, short_dial: None) -> None:
    async with site.driver() as driver:
        template = await make_template(driver)
        await template.clone()
        assert driver.cloning is not None
        await driver.cloning.boot_parent(Shape(256 * MIB, 1))  # and the port layer dies
        assert len(site.names()) == 3
    site.serial_port = site.another_port()  # no clone could reach the concentrator now
    async with site.driver() as driver:
        assert driver.cloning is not None
        left = await driver.cloning.templates()
    assert (left, site.names()) == ([], [])
