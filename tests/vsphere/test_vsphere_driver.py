"""The driver as the port layer uses it, on vcsim, without guests: what becomes of VMs, what a new port layer finds."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import secrets
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim
from vsphere_esxi_port import EsxiPort
from vsphere_front import Forward, Front
from vsphere_plain import Plain, by_name, extra, outcome
from vsphere_sessions import denied
from vsphere_simulator import HOST
from vsphere_soap import Call, Reply
from vsphere_trouble import cut_after, fail_task, fail_task_after, held, raise_fault, unavailable

from portlayer.drivers.base import Change, MachineChange, MachineSpec, PowerState, Shape
from portlayer.drivers.vsphere import cloning, extension, extra_config, privileges, site_driver
from portlayer.drivers.vsphere import driver as driver_module
from portlayer.drivers.vsphere import machine as machine_module
from portlayer.drivers.vsphere.driver import VsphereDriver
from portlayer.drivers.vsphere.endpoint import Credentials, Endpoint
from portlayer.drivers.vsphere.settings import SerialSettings, VsphereSettings
from portlayer.errors import (
    AlreadyExistsError,
    ConflictError,
    DriverError,
    ExhaustedError,
    NotFoundError,
    PortLayerError,
)
from portlayer.identity import Identity

MIB = 1 << 20
IMAGE = "sha256-" + "1" * 64


class Site:
    """A VCH's place on the simulator: what outlives a port layer."""

    def __init__(self, front: Front, root: Path, plain: Plain) -> None:
        self.front = front
        self.root = root
        self.plain = plain
        self.who = Identity(secrets.token_hex(16), "lab", 0)
        self.told: list[MachineChange] = []
        self.serial_port = free_port()
        self.container_networks: tuple[tuple[str, str], ...] = ()
        self.affinity_group = False
        self.guest_image = root / "guest"
        _make_guest_image(self.guest_image)

    @contextlib.asynccontextmanager
    async def driver(self) -> AsyncIterator[VsphereDriver]:
        """A port layer's life."""
        simulator = self.front.simulator
        settings = VsphereSettings(
            Endpoint(HOST, self.front.port, thumbprint=simulator.thumbprint),
            Credentials(simulator.user, simulator.password),
            datastore="LocalDS_0",
            bridge_network="VM Network",
            container_networks=self.container_networks,
            affinity_group=self.affinity_group,
            serial=SerialSettings(HOST, self.serial_port),
        )
        async with site_driver.opened(settings, self.who, self.root / "state", self.guest_image) as (driver, store):
            if not await store.has_image_disk(IMAGE):
                disk = self.root / "image.squashfs"
                disk.write_bytes(secrets.token_bytes(MIB))
                await store.put_image_disk(IMAGE, disk)
            driver.on_change(self.told.append)
            yield driver

    def vm(self, name: str) -> Any:
        """The VM of that name, past front and driver."""
        return self.plain.content.searchIndex.FindByInventoryPath(f"/DC0/vm/{self.folder}/{name}")

    def names(self) -> list[str]:
        return sorted(by_name(self.plain.content.searchIndex.FindByInventoryPath(self.path).childEntity))

    @property
    def cluster(self) -> Any:
        return self.plain.content.searchIndex.FindByInventoryPath("/DC0/host/DC0_C0")

    def ids(self) -> set[str]:
        """Of the VMs of the VCH, those that just go among them."""
        return {vm._moId for vm in self.plain.content.searchIndex.FindByInventoryPath(self.path).childEntity}

    def group(self) -> set[str]:
        """The ids of the VMs in the affinity group."""
        groups = self.cluster.configurationEx.group
        return {vm._moId for group in groups if group.name == self.folder for vm in group.vm}

    @property
    def folder(self) -> str:
        return f"lab-{self.who.id[:12]}"

    @property
    def path(self) -> str:
        return f"/DC0/vm/{self.folder}"

    def files(self) -> set[str]:
        """Everything on the datastore that is a VM's or a container's."""
        root = self.front.simulator.datastore_dir()
        kept = (f"{self.folder}/images", f"{self.folder}/empties", f"{self.folder}/guest", f"{self.folder}/incoming")
        found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        return {path for path in found if not path.startswith(kept)}


def free_port() -> int:
    """One that a concentrator can have again and again."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _make_guest_image(directory: Path, kind: bytes = b"first") -> None:
    directory.mkdir(exist_ok=True)
    sizes = {}
    for name in ("vmlinuz", "initramfs", "guest.iso"):
        (directory / name).write_bytes(kind * 1000)
        sizes[name] = (directory / name).stat().st_size
    iso = hashlib.sha256((directory / "guest.iso").read_bytes()).hexdigest()
    manifest = {"digest": "sha256:" + "ab" * 32, "kernel_version": "6.1", "sizes": sizes}
    (directory / "manifest.json").write_text(json.dumps(manifest | {"iso": {"file": "guest.iso", "sha256": iso}}))


@pytest.fixture
def site(front: Front, tmp_path: Path) -> Any:
    with front.simulator.connected() as instance:
        site = Site(front, tmp_path, Plain(instance))
        yield site
        front.clear()
        folder = site.plain.content.searchIndex.FindByInventoryPath(site.path)
        for vm in folder.childEntity if folder else ():
            if vm.runtime.powerState != "poweredOff":
                outcome(vm.PowerOffVM_Task())
            outcome(vm.Destroy_Task())
        if folder:
            outcome(folder.Destroy_Task())
        shutil.rmtree(front.simulator.datastore_dir() / site.folder)


def spec(name: str = "web", **other: Any) -> MachineSpec:
    return MachineSpec(secrets.token_hex(32), name, 512 * MIB, 2, IMAGE, 64 * MIB, "nginx:latest", **other)


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.01)


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
        assert site.files() == set()


async def test_a_console_goes_before_its_vm(site: Site, short_dial: None) -> None:
    """vSphere removes a VM's directory if nothing is left there, and leaves the files of serial ports."""
    root, left = site.front.simulator.datastore_dir(), []

    async def look(front: Front, call: Call, forward: Forward) -> Reply:
        left.extend(root.rglob("console.log"))
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
        await until(lambda: len(site.names()) == 2 and f"web-{machine.id[:12]}" in site.names())
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


async def test_a_new_port_layer_finds_everything(site: Site) -> None:
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
        async with asyncio.timeout(10):
            await waiting
        await machine.power_off()
        await until(lambda: Change.POWERED_OFF in [change.kind for change in site.told])
        assert {change.machine_id for change in site.told} == {machine.id}


async def test_views_that_are_not_followed_any_more_are_ended(site: Site) -> None:
    async with site.driver() as driver:
        machine = await driver.create(spec(), b"record")
        for _ in range(3):  # the connection breaks, the session does not
            for followed in (driver.session.updates, driver.session.tasks._updates):
                lost = followed._collector
                await driver.session.call(lost.DestroyPropertyCollector, what="as a crash does")
                await until(lambda followed=followed, lost=lost: followed._collector not in (None, lost))
            await machine.power_on()
            await machine.power_off()
        calls = site.front.calls
        assert calls["CreateListView"] == 8
        assert calls["CreateListView"] + calls["CreateContainerView"] - calls["DestroyView"] == 3


async def test_who_waits_for_the_end_waits_on_while_vcenter_is_away(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "_ASK_AGAIN_S", 0.01)
    async with site.driver() as driver:
        machine = await driver.create(spec(), b"record")
        await machine.power_on()
        driver.session.delays_s = ()
        away = site.front.inject("RetrievePropertiesEx", unavailable(), times=3)
        waiting = asyncio.ensure_future(machine.wait_off())
        await asyncio.sleep(0)
        assert not waiting.done()
        outcome(site.vm(f"web-{machine.id[:12]}").PowerOffVM_Task())
        async with asyncio.timeout(20):
            await waiting
        assert away.hits == 3


@pytest.mark.slow
async def test_the_capacity_is_as_it_was_while_vcenter_is_away(site: Site) -> None:
    async with site.driver() as driver:
        known = await driver.capacity()
        driver.session.delays_s = ()
        site.front.inject("RetrievePropertiesEx", unavailable())
        assert await driver.capacity() == known


async def test_a_vcenter_that_does_not_answer_does_not_keep_the_port_layer(site: Site) -> None:
    gate = threading.Event()
    try:
        async with asyncio.timeout(60):  # far less than a connection is given to answer
            async with site.driver() as driver:
                machine = await driver.create(spec(), b"record")
                for method in ("RetrievePropertiesEx", "DestroyPropertyCollector", "Logout", "Rename_Task"):
                    site.front.inject(method, held(gate), times=None)
                asking = asyncio.ensure_future(machine.power_state())
                turning_on = asyncio.ensure_future(machine.power_off())
                driver.later(machine.rename_as("other"), "renaming")
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
        await until(lambda: bool(driver.vms.known(site.vm(f"web-{machine.id[:12]}"), "name")))
        outcome(site.vm(f"web-{machine.id[:12]}").Destroy_Task())
        async with asyncio.timeout(10):
            await waiting
        await until(lambda: Change.GONE in [change.kind for change in site.told])
        assert await driver.list() == []
        await until(lambda: not machine.directory.exists())
        await driver.destroy(machine)


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
        assert (await driver.list(), site.names(), site.files()) == ([], [], set())
        with pytest.raises(DriverError, match="not admitted"):
            await driver.lines.connect(wanted.id[:32])
        await driver.create(wanted, b"record")


async def test_a_cancelled_creation_leaves_nothing(site: Site) -> None:
    async with site.driver() as driver:
        for wait_s in (0.0, 0.02, 0.05, 0.1):
            creation = asyncio.ensure_future(driver.create(spec(), b"record"))
            await asyncio.wait([creation], timeout=wait_s)
            if not creation.cancel():
                await driver.destroy(creation.result())
                continue
            with pytest.raises(asyncio.CancelledError):
                await creation
        assert (await driver.list(), site.names(), site.files()) == ([], [], set())


@pytest.mark.slow
async def test_a_new_guest_image_is_booted_from_then_on_and_the_old_one_goes(site: Site) -> None:
    async with site.driver() as driver:
        machine = await driver.create(spec(), b"record")
        await machine.power_on()
    _make_guest_image(site.guest_image, b"newer")
    async with site.driver() as driver:
        await driver.close()  # what nobody waits for is done
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
        await driver.close()
        assert {Path(booted).stem} == isos(site)


def isos(site: Site) -> set[str]:
    return {path.stem for path in (site.front.simulator.datastore_dir() / site.folder / "guest").glob("*.iso")}


@pytest.mark.slow
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


# --- instant clone


@pytest.fixture
def short_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloning, "_DIAL_S", 0.05)  # there are no guests to dial in


async def make_template(driver: VsphereDriver) -> Any:
    assert driver.cloning is not None
    shape = driver.cloning.shape_for(512 * MIB, 2)
    assert shape == Shape(512 * MIB, 2)
    parent = await driver.cloning.boot_parent(shape)
    return await parent.freeze(7)


async def test_a_container_moves_into_a_clone_and_stays_what_it_is(site: Site, short_dial: None) -> None:
    async with site.driver() as driver:
        template = await make_template(driver)
        machine = await driver.create(spec(), b"record")
        name = f"web-{machine.id[:12]}"
        before, disk = site.vm(name)._moId, writable(site.vm(name))
        await machine.power_on(await template.clone())
        await until(lambda: name in site.names() and site.vm(name)._moId != before and len(site.names()) == 2)
        after = site.vm(name)
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
        await until(lambda: len(site.names()) == 2 and name in site.names())
        await driver.destroy(machine)
        await again.remove()
    assert (site.names(), site.files()) == ([], set())


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
        await until(lambda: f"web-{machine.id[:12]}" in site.names() and len(site.names()) == 2)
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
        driver.session.delays_s = ()
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
        host, port = driver.lines.address
        line = EsxiPort(host, port, f"vch://{clone.token}", clone.uuid, "clone")
        await line.open()
        reader, writer = await machine.open_channel()
        line.write(b"from the guest")
        assert await reader.readexactly(14) == b"from the guest"
        writer.close()
        await line.close()


async def test_a_serial_port_is_plugged_in_anew_where_the_vm_runs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is suspended cannot be reconfigured, and dials when it goes on."""
    monkeypatch.setattr(machine_module, "_DIAL_S", 0.05)
    monkeypatch.setattr(machine_module, "_PATIENCE_S", 0.05)
    async with site.driver() as driver:
        machine = await driver.create(spec(), b"record")
        await machine.power_on()
        for pause, edits in ((False, 2), (True, 0)):
            if pause:
                await machine.pause()
            before = site.front.calls["ReconfigVM_Task"]
            with pytest.raises(TimeoutError):
                await machine.open_channel()
            assert site.front.calls["ReconfigVM_Task"] - before == edits


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
            assert (site.names(), site.files()) == ([], set())


async def test_what_is_out_of_date_or_half_made_is_removed(site: Site, short_dial: None) -> None:
    async with site.driver() as driver:
        template = await make_template(driver)
        await template.clone()
        assert driver.cloning is not None
        await driver.cloning.boot_parent(Shape(256 * MIB, 1))  # and the port layer dies
        assert len(site.names()) == 3
    site.serial_port = free_port()  # no clone could reach the concentrator now
    async with site.driver() as driver:
        assert driver.cloning is not None
        left = await driver.cloning.templates()
    assert (left, site.names()) == ([], [])


def writable(vm: Any) -> str:
    """Where the writable disk of a VM is."""
    disks = [one for one in vm.config.hardware.device if isinstance(one, vim.vm.device.VirtualDisk)]
    return next(str(disk.backing.fileName) for disk in disks if disk.unitNumber == 1)


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
    assert site.files() == set()


# --- networks

WEB = ("web", "DC0_DVPG0")


def card_networks(vm: Any) -> list[str]:
    """Names of the networks that a VM's cards are on, by the inventory."""
    backings = [one.backing for one in vm.config.hardware.device if isinstance(one, vim.vm.device.VirtualVmxnet3)]
    groups = {
        one.key: one.name for one in vm.runtime.host.network if isinstance(one, vim.dvs.DistributedVirtualPortgroup)
    }
    return [groups[one.port.portgroupKey] if hasattr(one, "port") else one.network.name for one in backings]


async def test_cards_are_on_the_networks_that_are_named(site: Site) -> None:
    site.container_networks = (WEB,)
    async with site.driver() as driver:
        assert driver.networks == {
            "bridge": "port group /DC0/network/VM Network",
            "web": "port group /DC0/network/DC0_DVPG0",
        }
        assert (await driver.info())["Container networks"] == "web"
        for networks, expected in (
            ((), []),
            (("bridge",), ["VM Network"]),
            (("web", "bridge"), ["DC0_DVPG0", "VM Network"]),
        ):
            machine = await driver.create(spec(networks=networks), b"record")
            assert card_networks(site.vm(f"web-{machine.id[:12]}")) == expected
            assert machine.spec.networks == networks
        with pytest.raises(NotFoundError, match="no network lab any more"):
            await driver.create(spec(networks=("bridge", "lab")), b"record")
        assert len(site.names()) == 3
    async with site.driver() as driver:
        assert {one.spec.networks for one in await driver.list()} == {(), ("bridge",), ("web", "bridge")}


async def test_a_clone_gets_the_containers_cards(site: Site, short_dial: None) -> None:
    site.container_networks = (WEB,)
    async with site.driver() as driver:
        template = await make_template(driver)
        assert card_networks(site.vm(site.names()[0])) == []
        machine = await driver.create(spec(networks=("web", "bridge")), b"record")
        name = f"web-{machine.id[:12]}"
        for _ in range(2):  # from the VM that it was made with, and from a clone
            before = site.vm(name)._moId
            await machine.power_on(await template.clone())
            await until(lambda before=before: name in site.names() and site.vm(name)._moId != before)
            assert card_networks(site.vm(name)) == ["DC0_DVPG0", "VM Network"]
            await machine.power_off()


async def test_cards_that_an_administrator_moved_stay_where_they_are(site: Site, short_dial: None) -> None:
    site.container_networks = (WEB,)
    async with site.driver() as driver:
        template = await make_template(driver)
        machine = await driver.create(spec(networks=("bridge",)), b"record")
        name = f"web-{machine.id[:12]}"
        moved = next(
            one for one in site.vm(name).config.hardware.device if isinstance(one, vim.vm.device.VirtualVmxnet3)
        )
        other = await driver.create(spec(networks=("web",)), b"record")
        [backing] = [
            one.backing
            for one in site.vm(f"web-{other.id[:12]}").config.hardware.device
            if isinstance(one, vim.vm.device.VirtualVmxnet3)
        ]
        moved.backing = backing
        edit = vim.vm.device.VirtualDeviceSpec(operation="edit", device=moved)
        outcome(site.vm(name).ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[edit])))
        with pytest.raises(ConflictError, match="changed by an administrator"):
            await machine.power_on(await template.clone())
        await machine.power_on()
        assert card_networks(site.vm(name)) == ["DC0_DVPG0"]


async def test_a_network_that_the_host_has_no_more_stays_with_its_vm(site: Site, short_dial: None) -> None:
    site.container_networks = (WEB,)
    async with site.driver() as driver:
        await make_template(driver)
        await driver.create(spec(networks=("web",)), b"record")
    site.container_networks = ()
    async with site.driver() as driver:
        [machine] = await driver.list()
        assert driver.cloning is not None
        [template] = await driver.cloning.templates()
        with pytest.raises(NotFoundError, match="no network web any more"):
            await machine.power_on(await template.clone())
        await machine.power_on()
        vm = site.vm(f"web-{machine.id[:12]}")
        assert (card_networks(vm), vm.runtime.powerState) == (["DC0_DVPG0"], "poweredOn")
        assert len(site.names()) == 2  # the clone is gone
