"""The driver as the port layer uses it, on vcsim, without guests: what becomes of VMs, what a new port layer finds."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import secrets
import threading

import pytest
from pyVmomi import vim
from vsphere_esxi_port import EsxiPort
from vsphere_front import Forward, Front
from vsphere_plain import extra, outcome
from vsphere_sessions import denied
from vsphere_site import IMAGE, Site, make_template, spec
from vsphere_soap import Call, Reply
from vsphere_trouble import held, raise_fault, unavailable
from vsphere_waiting import PATIENCE_S, everything_below, until

from portlayer.drivers.base import Capacity, Change, PowerState
from portlayer.drivers.vsphere import (
    background,
    cloning,
    extension,
    extra_config,
    privileges,
    session,
    updates,
    vch_surroundings,
)
from portlayer.drivers.vsphere.driver import VsphereDriver
from portlayer.errors import ConflictError, DriverError, ExhaustedError


async def test_an_administrator_sees_what_the_vm_is(site: Site) -> None:
    async with site.driver() as driver:
        machine = await driver.create(dataclasses.replace(spec(), owner="Anna of Ops"), b"record")
        vm = site.vm(f"web-{machine.id[:12]}")
        assert "owner: Anna of Ops\n" in vm.config.annotation
        assert "Container web of the virtual container host lab" in vm.config.annotation
        assert "image: nginx:latest" in vm.config.annotation
        assert machine.id in vm.config.annotation
        assert vm.config.managedBy.extensionKey == extension.KEY
        assert (vm.config.hardware.memoryMB, vm.config.hardware.numCPU) == (512, 2)
        assert extra(vm)[extra_config.ID] == machine.id
        assert vm.resourcePool.name == site.folder
        assert machine.location == f"vSphere VM {vm.name}"
        disks = {
            one.unitNumber: one.backing
            for one in vm.config.hardware.device
            if isinstance(one, vim.vm.device.VirtualDisk)
        }
        assert disks[0].parent.fileName.endswith(f"/images/{IMAGE}.vmdk")
        assert (disks[0].diskMode, disks[1].diskMode) == ("independent_nonpersistent", "independent_persistent")
        await driver.destroy(machine)
        assert site.names() == []
        await until(lambda: site.files() == set())


@pytest.mark.slow
async def test_a_console_goes_before_its_vm(site: Site, short_dial: None) -> None:
    """vSphere removes a VM's directory if nothing is left there, and leaves the files of serial ports."""
    root, left = site.front.simulator.datastore_dir(), []

    async def look(front: Front, call: Call, forward: Forward) -> Reply:
        left.extend(path for path in everything_below(root) if path.name == "console.log")
        return await forward()

    async with site.driver() as driver:
        template = await make_template(driver)
        machine = await driver.create(spec(), b"record")
        clone = await template.clone()
        directories = [directory for directory in root.iterdir() if (directory / f"{directory.name}.vmx").exists()]
        assert {directory.name for directory in directories} >= set(site.names())
        for directory in directories:
            (directory / "console.log").write_text("booted")
        site.front.inject("Destroy_Task", look, times=None)
        await machine.power_on(clone)
        await until(lambda: site.has_moved(f"web-{machine.id[:12]}"))
        for _ in range(2):
            await driver.destroy(machine)
        await template.remove()
    mine = [path for path in left if path.parent.name.startswith(("web-", cloning.CLONE_NAME, cloning.TEMPLATE_NAME))]
    assert site.names() == []
    assert len(mine) == 3, mine  # of the two others when the first of three VMs goes, then of one


async def test_an_account_that_may_not_mark_vms_makes_them_unmarked(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    denied(monkeypatch, privileges.MARK)
    refusal = raise_fault(vim.fault.NoPermission(privilegeId=privileges.MARK, object=site.plain.folder))
    site.front.inject("CreateVM_Task", refusal, times=None, when=lambda call: b"managedBy" in call.body)
    async with site.driver() as driver:
        machine = await driver.create(spec(), b"record")
        assert site.vm(f"web-{machine.id[:12]}").config.managedBy is None


async def test_hosts_that_dial_while_a_port_layer_comes_up_are_not_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site.driver() as driver:
        machine = await driver.create(spec(), b"")
        vm = site.vm(f"web-{machine.id[:12]}")
        token, uuid = extra(vm)[extra_config.TOKEN], str(vm.config.instanceUuid)
    host = EsxiPort("127.0.0.1", site.serial_port, f"vch://{token}", uuid, "web")
    dialling: list[asyncio.Task[None]] = []
    load = VsphereDriver._load

    async def dialled_before(driver: VsphereDriver) -> None:
        dialling.append(asyncio.create_task(host.open()))
        await until(lambda: host._writer)
        await load(driver)

    monkeypatch.setattr(VsphereDriver, "_load", dialled_before)
    async with asyncio.timeout(60), site.driver() as driver:
        await dialling[0]
        assert driver.around.lines.is_connected(uuid)
        await host.close()


@pytest.mark.parametrize("page", [1, 500])
async def test_a_new_port_layer_finds_everything(site: Site, page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On whatever page of the inventory it is. vcsim has what is not set on all but the first, without a value."""
    monkeypatch.setattr(session, "_PAGE", page)
    big = secrets.token_bytes(100_000)
    async with site.driver() as driver:
        first, second = await driver.create(spec("one"), b"first"), await driver.create(spec("two"), big)
        await first.power_on()
        await first.write_record(b"newer")
    async with site.driver() as driver:
        found = {machine.id: machine for machine in await driver.list()}
        assert found.keys() == {first.id, second.id}
        assert [await found[one.id].read_record() for one in (first, second)] == [b"newer", big]
        assert [await found[one.id].power_state() for one in (first, second)] == [PowerState.RUNNING, PowerState.OFF]
        assert found[first.id].spec == first.spec
        await found[first.id].write_record(b"newest")
        assert await found[first.id].read_record() == b"newest"


async def test_a_new_port_layer_writes_no_file_that_is_as_it_should_be(site: Site) -> None:
    """There may be hundreds of containers, each with a file that says where its VM is."""
    async with site.driver() as driver:
        right, wrong = [await driver.create(spec(), b"record") for _ in range(2)]
        files = [machine.directory / "instance-uuid" for machine in (right, wrong)]
    kept = files[0].read_text()
    files[1].write_bytes(b"\xff")
    for file in files:
        os.utime(file, ns=(1, 1))
    async with site.driver():
        assert files[0].stat().st_mtime_ns == 1
        assert files[0].read_text() == kept
        assert len(files[1].read_text()) == len(kept)


async def test_a_record_that_somebody_else_wrote_is_not_overwritten(site: Site) -> None:
    async with site.driver() as driver:
        machine = await driver.create(spec(), b"record")
        vm = site.vm(f"web-{machine.id[:12]}")
        await machine.write_record(b"longer" * 20_000)
        outcome(vm.ReconfigVM_Task(vim.vm.ConfigSpec(annotation="an administrator's note")))
        await machine.write_record(b"ours")  # a change of something else is no matter
        options = [
            vim.option.OptionValue(key=key, value=value) for key, value in extra_config.record(b"theirs").items()
        ]
        outcome(vm.ReconfigVM_Task(vim.vm.ConfigSpec(extraConfig=options)))
        with pytest.raises(ConflictError, match="is there another VCH"):
            await machine.write_record(b"ours again")
        assert extra_config.read_record(extra(vm)) == b"theirs"


@pytest.mark.slow
async def test_vms_of_others_and_broken_ones_are_left_alone(site: Site) -> None:
    async with site.driver() as driver:
        machine = await driver.create(spec(), b"record")
    folder = site.plain.content.searchIndex.FindByInventoryPath(site.path)
    other = vim.vm.ConfigSpec(name="other", memoryMB=64, numCPUs=1, files=vim.vm.FileInfo(vmPathName="[LocalDS_0]"))
    outcome(folder.CreateVM_Task(other, site.plain.pool))
    broken = vim.option.OptionValue(key=extra_config.SPEC, value="{}")
    name = f"web-{machine.id[:12]}"
    outcome(site.vm(name).ReconfigVM_Task(vim.vm.ConfigSpec(extraConfig=[broken])))
    async with site.driver() as driver:
        assert await driver.list() == []
    assert site.names() == ["other", name]


async def out_of_reach(front: Front, call: Call, forward: Forward) -> Reply:
    """As vSphere answers of VMs whose datastore no host can read: it has their names, and no configuration."""
    reply = await forward()
    body = re.sub(rb"<propSet><name>config\..*?</propSet>", b"", reply.body, flags=re.DOTALL)
    return Reply(reply.status, body, reply.headers)


async def test_logs_stay_while_a_datastore_is_out_of_reach(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    async with site.driver() as driver:
        machine = await driver.create(spec(), b"record")
        log = machine.directory / "log"
        log.write_bytes(b"said")
    name = f"web-{machine.id[:12]}"
    away = site.front.inject(
        "RetrievePropertiesEx", out_of_reach, times=None, when=lambda call: b"extraConfig" in call.body
    )
    async with site.driver() as driver:
        assert away.hits
        assert await driver.list() == []
        assert f"the VM {name} cannot be read" in caplog.text
    site.front.clear()
    async with site.driver() as driver:
        assert [found.id for found in await driver.list()] == [machine.id]
        assert log.read_bytes() == b"said"


@pytest.mark.slow
async def test_power_and_who_waits_for_its_end(site: Site) -> None:
    async with site.driver() as driver:
        machine = await driver.create(spec(), b"record")
        await machine.wait_off()
        await machine.power_on()
        await machine.power_on()
        waiting = asyncio.ensure_future(machine.wait_off())
        await machine.pause()
        assert await machine.power_state() is PowerState.PAUSED
        await machine.resume()
        assert not waiting.done()
        outcome(site.vm(f"web-{machine.id[:12]}").PowerOffVM_Task())  # by somebody else
        async with asyncio.timeout(PATIENCE_S):
            await waiting
        await machine.power_off()
        await until(lambda: Change.POWERED_OFF in [change.kind for change in site.told])
        assert {change.machine_id for change in site.told} == {machine.id}


@pytest.mark.slow
async def test_views_that_are_not_followed_any_more_are_ended(site: Site) -> None:
    async with site.driver() as driver:
        machine = await driver.create(spec(), b"record")
        for _ in range(3):  # the connection breaks, the session does not
            for followed in (driver.around.session.updates, driver.around.session.tasks._updates):
                lost = followed._collector
                await driver.around.session.call(lost.DestroyPropertyCollector, what="as a crash does")
                # Until all that is followed has been told of anew.
                await until(lambda at=followed, lost=lost: at._collector not in (None, lost) and not at._first)
            await machine.power_on()
            await machine.power_off()
        calls = site.front.calls
        assert calls["CreateListView"] == 8
        assert calls["CreateListView"] + calls["CreateContainerView"] - calls["DestroyView"] == 3


@pytest.mark.slow
async def test_who_waits_for_the_end_waits_on_while_vcenter_is_away(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vch_surroundings, "_ASK_AGAIN_S", 0.01)
    async with site.driver() as driver:
        machine = await driver.create(spec(), b"record")
        await machine.power_on()
        driver.around.session.delays_s = ()
        away = site.front.inject("RetrievePropertiesEx", unavailable(), times=3)
        waiting = asyncio.ensure_future(machine.wait_off())
        await asyncio.sleep(0)
        assert not waiting.done()
        outcome(site.vm(f"web-{machine.id[:12]}").PowerOffVM_Task())
        async with asyncio.timeout(PATIENCE_S):
            await waiting
        assert away.hits == 3


@pytest.mark.slow
async def test_a_machine_has_the_memory_of_the_largest_host_at_most(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site.driver() as driver:
        sizes = [host.hardware.memorySize for host in site.cluster.host]
        assert await driver.capacity() == Capacity(2, sum(sizes), max(sizes))
        told: list[dict[str, int]] = [{"hardware.memorySize": 3}, {"hardware.memorySize": 5}]

        async def read(objects: object, paths: object) -> dict[int, dict[str, int]]:
            return dict(enumerate(told))

        with monkeypatch.context() as patch:
            patch.setattr(driver.around.session, "read", read)
            assert await driver.capacity() == Capacity(1, 8, 5)
            told.append({})  # a host that says nothing may be larger
            assert await driver.capacity() == Capacity(1, 8, 0)


@pytest.mark.slow
async def test_the_capacity_is_as_it_was_while_vcenter_is_away(site: Site) -> None:
    async with site.driver() as driver:
        known = await driver.capacity()
        driver.around.session.delays_s = ()
        site.front.inject("RetrievePropertiesEx", unavailable())
        assert await driver.capacity() == known


@pytest.mark.slow
async def test_a_vcenter_that_does_not_answer_does_not_keep_the_port_layer(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, patience in ((background, "_CLOSE_S"), (updates, "_LAST_ANSWER_S"), (session, "_LAST_ANSWER_S")):
        monkeypatch.setattr(module, patience, 0.1)
    gate = threading.Event()
    try:
        async with asyncio.timeout(60):  # far less than a connection is given to answer
            async with site.driver() as driver:
                machine = await driver.create(spec(), b"record")
                for method in ("RetrievePropertiesEx", "DestroyPropertyCollector", "Logout", "Rename_Task"):
                    site.front.inject(method, held(gate), times=None)
                asking = asyncio.ensure_future(machine.power_state())
                turning_on = asyncio.ensure_future(machine.power_off())
                driver.around.later(machine.rename_as("other"), "renaming")
                await until(lambda: site.front.calls["Rename_Task"] == 1)
                turning_on.cancel()
            with pytest.raises(DriverError, match="is closed"):
                await asking
    finally:
        gate.set()
        site.front.drop_sessions()  # which ends the long poll
        for thread in threading.enumerate():
            if thread.name == "vsphere":
                await asyncio.to_thread(thread.join)


async def test_a_vm_that_somebody_removes_is_gone(site: Site) -> None:
    async with site.driver() as driver:
        machine = await driver.create(spec(), b"record")
        waiting = asyncio.ensure_future(machine.wait_off())
        # One that came and went between two answers of the long poll was never there.
        await until(lambda: bool(driver.around.vms.known(site.vm(f"web-{machine.id[:12]}"), "name")))
        outcome(site.vm(f"web-{machine.id[:12]}").Destroy_Task())
        async with asyncio.timeout(PATIENCE_S):
            await waiting
        await until(lambda: Change.GONE in [change.kind for change in site.told])
        assert await driver.list() == []
        await until(lambda: not machine.directory.exists())
        await driver.destroy(machine)


@pytest.mark.slow
async def test_in_a_cluster_without_drs_vms_are_made_on_a_host(site: Site) -> None:
    """Which vCenter wants there."""
    asked = []

    async def look(front: Front, call: Call, forward: Forward) -> Reply:
        asked.append(call.reference("host"))
        return await forward()

    site.front.inject("CreateVM_Task", look, times=None)
    for enabled in (False, True):
        drs = vim.cluster.ConfigSpecEx(drsConfig=vim.cluster.DrsConfigInfo(enabled=enabled))
        outcome(site.cluster.ReconfigureComputeResource_Task(drs, True))
        async with site.driver() as driver:
            machine = await driver.create(spec(), b"record")
            await machine.power_on()
            host = site.vm(f"web-{machine.id[:12]}").runtime.host
            await driver.destroy(machine)
            assert host in site.cluster.host
            assert asked.pop() == (None if enabled else host._moId)


@pytest.mark.slow
async def test_on_a_host_that_was_named_vms_are_powered_on_there(site: Site) -> None:
    """A cluster with DRS would choose another one, if it were left out."""
    asked = []

    async def look(front: Front, call: Call, forward: Forward) -> Reply:
        asked.append(call.reference("host"))
        return await forward()

    host = site.cluster.host[1]
    site.compute_resource = host.name
    site.front.inject("CreateVM_Task", look, times=None)
    site.front.inject("PowerOnVM_Task", look, times=None)
    async with site.driver() as driver:
        machine = await driver.create(spec(), b"record")
        await machine.power_on()
    assert asked == [host._moId, host._moId]


async def test_a_cluster_that_admits_no_more_is_exhausted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site.driver() as driver:
        machine = await driver.create(spec(), b"record")
        vm = site.vm(f"web-{machine.id[:12]}")
        fault = vim.fault.InsufficientFailoverResourcesFault(msg="Insufficient resources to satisfy HA failover level")
        refused = vim.cluster.PowerOnVmResult(notAttempted=[vim.cluster.NotAttemptedVmInfo(vm=vm, fault=fault)])

        async def run(*args: object, **options: object) -> object:
            return refused

        with monkeypatch.context() as patch:
            patch.setattr(driver.around.session, "run", run)
            with pytest.raises(ExhaustedError, match=f"powering on the VM {vm.name}: Insuff.*failover level"):
                await machine.power_on()


async def test_what_people_chose_stays_on_its_line(site: Site) -> None:
    async with site.driver() as driver:
        machine = await driver.create(dataclasses.replace(spec(), owner="Eve\nowner: Anna\x0b"), b"record")
        annotation = site.vm(f"web-{machine.id[:12]}").config.annotation
        assert [line for line in annotation.splitlines() if line.startswith("owner: ")] == ["owner: Eve owner: Anna "]


async def test_a_vch_that_is_dismantled_leaves_images_only(site: Site) -> None:
    async with site.driver() as driver:
        await make_template(driver)
        machine = await driver.create(spec(), b"record")
        stays = await driver.dismantle()
        assert [words.partition(":")[0] for words in stays] == [
            f"the VM folder {site.folder}",
            f"the resource pool {site.folder}",
        ]
        await driver.destroy(machine)
        assert await driver.dismantle() == []
    find = site.plain.content.searchIndex.FindByInventoryPath
    assert find(site.path) is None
    assert find(f"/DC0/host/DC0_C0/Resources/{site.folder}") is None
    await until(lambda: site.files() == set())
