"""What an administrator moves out of the VCH's folder: it stays the container that it is, until it is removed."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim
from vsphere_front import Action, Forward, Front
from vsphere_machines import IMAGE, WHO, guest_image, settings
from vsphere_plain import Plain, outcome
from vsphere_soap import Call, Reply, envelope
from vsphere_trouble import raise_fault, unavailable
from vsphere_waiting import PATIENCE_S, until

from portlayer.drivers.base import Change, Machine, MachineChange, MachineSpec, PowerState, Shape
from portlayer.drivers.vsphere import cloning, site_driver, virtual_machines
from portlayer.drivers.vsphere.driver import VsphereDriver
from portlayer.drivers.vsphere.placement import own_name
from portlayer.errors import ConflictError

MIB = 1 << 20
FOLDER = own_name(WHO.name, WHO.id)


class Site:
    """A VCH's place on the simulator, which outlives port layers, and an administrator who is at work there."""

    def __init__(self, front: Front, plain: Plain, root: Path) -> None:
        self.front = front
        self.plain = plain
        self.told: list[MachineChange] = []
        self.other = plain.folder.CreateFolder(f"other-{secrets.token_hex(4)}")
        self.state = root / "state"
        self._image = guest_image(root / "guest")
        self._disk = root / "image"

    @contextlib.asynccontextmanager
    async def driver(self) -> AsyncIterator[VsphereDriver]:
        """A port layer's life."""
        async with site_driver.opened(settings(self.front), WHO, self.state, self._image) as (driver, store):
            self._disk.write_bytes(bytes(MIB))
            await store.put_image_disk(IMAGE, self._disk)
            driver.on_change(self.told.append)
            yield driver

    async def machine(self, driver: VsphereDriver) -> Machine:
        """One that runs, and that vSphere has told of."""
        spec = MachineSpec(secrets.token_hex(32), "web", 512 * MIB, 1, IMAGE, 16 * MIB)
        machine = await driver.create(spec, b"record")
        await machine.power_on()
        await until(lambda: driver.around.vms.known(self.vm(machine), "runtime.powerState") == "poweredOn")
        return machine

    def vm(self, machine: Machine) -> Any:
        """The VM of that name, wherever it is, past front and driver."""
        return self.plain.vms()[f"web-{machine.id[:12]}"]

    def move(self, vm: Any, folder: Any = None) -> None:
        outcome((folder or self.other).MoveIntoFolder_Task([vm]))

    def move_back(self, vm: Any) -> None:
        self.move(vm, self.plain.content.searchIndex.FindByInventoryPath(f"/DC0/vm/{FOLDER}"))

    def words(self, kind: Change) -> list[dict[str, str]]:
        return [dict(change.attributes) for change in self.told if change.kind is kind]

    def clear(self) -> None:
        self.front.clear()
        self.front.settle()
        self.plain.clear()
        outcome(self.other.Destroy_Task())
        shutil.rmtree(self.front.simulator.datastore_dir() / FOLDER, ignore_errors=True)


@pytest.fixture
def site(front: Front, tmp_path: Path) -> Iterator[Site]:
    with front.simulator.connected(front.simulator.administrator) as instance:
        site = Site(front, Plain(instance), tmp_path)
        yield site
        site.clear()


@pytest.fixture
def without_pool(site: Site) -> Iterator[None]:
    """Of the VCH's own: clusters without DRS have none."""
    [cluster] = site.plain.content.searchIndex.FindByInventoryPath("/DC0/host").childEntity
    for enabled in (False, True):
        config = vim.cluster.ConfigSpecEx(drsConfig=vim.cluster.DrsConfigInfo(enabled=enabled))
        outcome(cluster.ReconfigureComputeResource_Task(config, True))
        if not enabled:
            yield


async def is_followed(site: Site, driver: VsphereDriver, machine: Machine) -> None:
    """That somebody switches it off is noticed; it ends switched off."""
    waiting = asyncio.ensure_future(machine.wait_off())
    before = len(site.words(Change.POWERED_OFF))
    outcome(site.vm(machine).PowerOffVM_Task())
    async with asyncio.timeout(PATIENCE_S):
        await waiting
    await until(lambda: len(site.words(Change.POWERED_OFF)) > before)
    assert driver.around.vms.known(site.vm(machine), "runtime.powerState") == "poweredOff"


async def test_a_moved_vm_stays_its_container(site: Site) -> None:
    async with site.driver() as driver:
        machine = await site.machine(driver)
        waiting = asyncio.ensure_future(machine.wait_off())
        site.move(site.vm(machine))
        await until(lambda: site.words(Change.MOVED))
        assert site.words(Change.MOVED) == [{"from": f"/DC0/vm/{FOLDER}", "to": f"/DC0/vm/{site.other.name}"}]
        assert not waiting.done()
        assert await driver.list() == [machine]
        assert await machine.read_record() == b"record"
        await is_followed(site, driver, machine)
        await waiting
        await machine.power_on()
        await machine.write_record(b"newer")
        assert await machine.power_state() is PowerState.RUNNING
        assert site.words(Change.GONE) == []


async def test_a_moved_vm_is_removed_with_its_container(site: Site) -> None:
    async with site.driver() as driver:
        machine = await site.machine(driver)
        site.move(site.vm(machine))
        await until(lambda: site.words(Change.MOVED))
        await driver.destroy(machine)
        assert (site.plain.machines(), await driver.list(), machine.directory.exists()) == ([], [], False)
        assert await driver.dismantle() == []


async def test_a_moved_vm_that_somebody_removes_is_gone(site: Site) -> None:
    async with site.driver() as driver:
        machine = await site.machine(driver)
        site.move(site.vm(machine))
        await until(lambda: site.words(Change.MOVED))
        site.plain.remove(f"web-{machine.id[:12]}")
        await until(lambda: site.words(Change.GONE))
        assert await driver.list() == []
        await until(lambda: not machine.directory.exists())


async def test_a_vm_that_is_moved_back_goes_on(site: Site) -> None:
    async with site.driver() as driver:
        machine = await site.machine(driver)
        for there in range(1, 3):
            site.move(site.vm(machine))
            await until(lambda there=there: len(site.words(Change.MOVED)) == 2 * there - 1)
            site.move_back(site.vm(machine))
            await until(lambda there=there: len(site.words(Change.MOVED)) == 2 * there)
            assert site.words(Change.MOVED)[-1]["to"] == f"/DC0/vm/{FOLDER}"
        await is_followed(site, driver, machine)
        site.plain.remove(f"web-{machine.id[:12]}")
        await until(lambda: site.words(Change.GONE))


async def test_a_vm_that_is_moved_on_is_told_of_again(site: Site) -> None:
    async with site.driver() as driver:
        machine = await site.machine(driver)
        site.move(site.vm(machine))
        await until(lambda: site.words(Change.MOVED))
        further = site.other.CreateFolder("further")
        site.move(site.vm(machine), further)
        await until(lambda: len(site.words(Change.MOVED)) == 2)
        path = f"/DC0/vm/{site.other.name}"
        assert site.words(Change.MOVED)[1] == {"from": path, "to": f"{path}/further"}


async def test_a_new_session_follows_what_was_moved(site: Site) -> None:
    async with site.driver() as driver:
        machine, second = await site.machine(driver), await site.machine(driver)
        site.move(site.vm(machine))
        await until(lambda: site.words(Change.MOVED))
        site.front.down()
        site.move(site.vm(second))
        site.front.up()
        await machine.read_record()  # which logs in again
        await until(lambda: len(site.words(Change.MOVED)) == 2)
        await is_followed(site, driver, machine)
        await is_followed(site, driver, second)
        assert site.words(Change.GONE) == []


async def found_again(site: Site) -> None:
    """By a port layer after one that ended before the VM was moved."""
    async with site.driver() as driver:
        machine = await site.machine(driver)
    site.move(site.vm(machine))
    async with site.driver() as driver:
        [found] = await driver.list()
        assert (found.id, await found.read_record()) == (machine.id, b"record")
        await until(lambda: driver.around.vms.known(site.vm(machine), "runtime.powerState") == "poweredOn")
        await is_followed(site, driver, found)
        await driver.destroy(found)
        assert (site.plain.machines(), await driver.dismantle()) == ([], [])


async def test_a_new_port_layer_finds_what_was_moved_in_its_pool(site: Site) -> None:
    await found_again(site)


async def test_a_new_port_layer_finds_what_was_moved_without_a_pool(site: Site, without_pool: None) -> None:
    await found_again(site)


async def test_a_state_directory_that_was_lost_is_no_matter_to_what_is_in_the_pool(site: Site) -> None:
    async with site.driver() as driver:
        machine = await site.machine(driver)
    site.move(site.vm(machine))
    shutil.rmtree(site.state)
    async with site.driver() as driver:
        assert [found.id for found in await driver.list()] == [machine.id]


async def test_containers_in_clones_are_found_too(
    site: Site, without_pool: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their VMs have instanceUuids of vSphere's. A template that was moved goes on, and is removed in the end."""
    monkeypatch.setattr(cloning, "_DIAL_S", 0.05)  # there are no guests to dial in
    async with site.driver() as driver:
        template = await make_template(driver)
        machine = await site.machine(driver)
        await machine.power_off()
        await machine.power_on(await template.clone())
        await until(lambda: len(site.plain.machines()) == 2)
        name = f"web-{machine.id[:12]}"
        await until(lambda: name in site.plain.machines())
        vm = site.vm(machine)
        await until(lambda: driver.around.vms.known(vm, "name") == name)
    site.move(vm)
    async with site.driver() as driver:
        [found] = await driver.list()
        assert found.id == machine.id
        await is_followed(site, driver, found)


async def test_a_moved_template_is_removed_with_the_vch(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloning, "_DIAL_S", 0.05)
    async with site.driver() as driver:
        await make_template(driver)
        [name] = site.plain.machines()
        site.move(site.plain.vms()[name])
        assert await driver.dismantle() == []
        assert site.plain.machines() == []


async def test_a_moved_container_stays_where_it_is(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a clone it would be in the VCH's folder again."""
    monkeypatch.setattr(cloning, "_DIAL_S", 0.05)
    async with site.driver() as driver:
        template = await make_template(driver)
        machine = await site.machine(driver)
        site.move(site.vm(machine))
        await until(lambda: site.words(Change.MOVED))
        await machine.power_off()
        with pytest.raises(ConflictError, match="changed by an administrator"):
            await machine.power_on(await template.clone())
        await machine.power_on()
        assert (site.vm(machine).parent, await machine.power_state()) == (site.other, PowerState.RUNNING)


async def make_template(driver: VsphereDriver) -> Any:
    assert driver.cloning is not None
    parent = await driver.cloning.boot_parent(Shape(512 * MIB, 1))
    return await parent.freeze(7)


# --- what the account may not see, and what is not known


def nothing_readable(vm: Any) -> Action:
    """The object is there, and each of its properties is refused."""
    inner = (
        '<RetrievePropertiesExResponse xmlns="urn:vim25"><returnval><objects>'
        f'<obj type="VirtualMachine">{vm._moId}</obj><missingSet><path>runtime.powerState</path>'
        '<fault><fault xsi:type="NoPermission"><object type="VirtualMachine">'
        f"{vm._moId}</object><privilegeId>System.Read</privilegeId></fault><localizedMessage/></fault></missingSet>"
        '</objects><objects><obj type="SessionManager">SessionManager</obj><propSet><name>currentSession</name>'
        '<val xsi:type="xsd:string">key</val></propSet></objects></returnval></RetrievePropertiesExResponse>'
    )

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        return Reply(200, envelope(inner))

    return act


@pytest.mark.parametrize("raised", [True, False])
async def test_a_vm_that_the_account_may_not_see_is_gone_and_lives(
    site: Site, raised: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with site.driver() as driver:
        machine = await site.machine(driver)
        other = await site.machine(driver)
        vm = site.vm(machine)
        denied = vim.fault.NoPermission(privilegeId="System.Read", object=vim.VirtualMachine(vm._moId))
        refused = site.front.inject(
            "RetrievePropertiesEx",
            raise_fault(denied) if raised else nothing_readable(vm),
            times=None,
            when=lambda call: vm._moId.encode() in call.body,
        )
        site.move(vm)
        await until(lambda: site.words(Change.GONE))
        assert refused.hits
        assert f"the VM {vm.name} was moved to where this account may not see it" in caplog.text
        assert await driver.list() == [other]
        await driver.destroy(machine)  # as its container is removed
        assert vm.runtime.powerState == "poweredOn"
        site.front.clear()
        site.move_back(vm)
    async with site.driver() as driver:
        assert {found.id for found in await driver.list()} == {machine.id, other.id}


async def test_a_vm_that_left_while_vcenter_does_not_answer_is_not_gone(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtual_machines, "_LOOK_AGAIN_S", 0.01)
    async with site.driver() as driver:
        machine = await site.machine(driver)
        driver.around.session.delays_s = ()
        away = site.front.inject("RetrievePropertiesEx", unavailable(), times=3)
        site.move(site.vm(machine))
        await until(lambda: site.words(Change.MOVED))
        assert away.hits == 3
        assert site.words(Change.GONE) == []
        await is_followed(site, driver, machine)


async def test_what_left_is_looked_for_together(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many VMs leave while vCenter is asked of some, they are one question more."""
    async with site.driver() as driver:
        machines = [await site.machine(driver) for _ in range(4)]
        site.front.clear()
        first, *others = [site.vm(machine) for machine in machines]
        told = asyncio.Event()
        asked: list[int] = []
        seen = driver.around.vms._seen

        async def counted(vms: list[Any]) -> list[Any]:
            asked.append(len(vms))
            await told.wait()
            return await seen(vms)

        monkeypatch.setattr(driver.around.vms, "_seen", counted)
        site.move(first)
        await until(lambda: asked)
        for vm in others:
            site.move(vm)
        await until(lambda: len(driver.around.vms._left) == 3)
        told.set()
        await until(lambda: len(site.words(Change.MOVED)) == 4)
        assert asked == [1, 3]
