"""What a VCH makes of its own in vSphere: found again, sized, removed when it is empty."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pyVmomi import vim
from vsphere_sessions import opened
from vsphere_simulator import Simulator

from portlayer.drivers.vsphere import hosts, resource_pool
from portlayer.drivers.vsphere.affinity import AffinityGroup
from portlayer.drivers.vsphere.inventory import Inventory
from portlayer.drivers.vsphere.placement import Placement, dismantle, establish, own_name
from portlayer.drivers.vsphere.resource_pool import unlimited
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.settings import VsphereSettings, from_options
from portlayer.errors import DriverError, ExhaustedError, InvalidArgumentError, NotFoundError

OWN = own_name("red", "0123456789abcdef")


@pytest.fixture
async def session(fresh_simulator: Simulator) -> AsyncIterator[Session]:
    async with opened(fresh_simulator) as session:
        yield session


def settings(**options: Any) -> VsphereSettings:
    return from_options({"target": "me@vcenter", "datastore": "LocalDS_0", **options}, "secret")


async def config(session: Session, placement: Placement) -> tuple[Any, Any]:
    pool = placement.resource_pool
    paths = ["config.cpuAllocation", "config.memoryAllocation"]
    found = (await session.read([pool], paths))[pool]
    return found[paths[0]], found[paths[1]]


async def make_vm(session: Session, placement: Placement, name: str) -> Any:
    spec = vim.vm.ConfigSpec(name=name, files=vim.vm.FileInfo(vmPathName="[LocalDS_0]"), memoryMB=4, numCPUs=1)
    return await session.run(
        placement.folder.CreateVM_Task, spec, placement.resource_pool, placement.site.host, what="making a VM"
    )


async def test_own_folder_and_pool_are_made_once(session: Session) -> None:
    placed = await establish(session, settings(bridge_network="DC0_DVPG0", image_datastore="LocalDS_1"), OWN)
    assert OWN == "red-0123456789ab"
    assert (placed.owns_folder, placed.owns_pool, placed.drs_enabled) == (True, True, True)
    again = await establish(session, settings(bridge_network="DC0_DVPG0"), OWN)
    assert (again.folder, again.resource_pool) == (placed.folder, placed.resource_pool)
    inventory = await Inventory.read(session)
    assert inventory.entity(placed.folder).path == f"/DC0/vm/{OWN}"
    assert inventory.entity(placed.resource_pool).path == f"/DC0/host/DC0_C0/Resources/{OWN}"
    assert inventory.entity(placed.image_datastore).name == "LocalDS_1"
    assert inventory.entity(again.image_datastore).name == "LocalDS_0"
    assert placed.site.bridge is not None
    assert placed.site.bridge.name == "DC0_DVPG0"
    assert placed.scope == placed.folder


async def test_two_vchs_of_one_name_are_apart(session: Session) -> None:
    one = await establish(session, settings(), own_name("red", "a" * 32))
    two = await establish(session, settings(), own_name("red", "b" * 32))
    assert one.folder != two.folder
    assert one.resource_pool != two.resource_pool


async def test_limits_are_set_changed_and_lifted(session: Session) -> None:
    placed = await establish(session, settings(cpu_limit="2.5GHz", memory_limit="8g", shares="high"), OWN)
    cpu, memory = await config(session, placed)
    assert (cpu.limit, cpu.reservation, cpu.shares.level) == (2500, 0, "high")
    assert (memory.limit, memory.shares.level) == (8192, "high")
    changed = settings(memory_reservation="1g", cpu_reservation="500", memory_limit="unlimited", shares="1000:2000")
    cpu, memory = await config(session, await establish(session, changed, OWN))
    assert (cpu.limit, cpu.reservation, cpu.shares.shares) == (2500, 500, 1000)
    assert (memory.limit, memory.reservation, memory.shares.shares) == (-1, 1024, 2000)


async def test_what_an_administrator_set_by_hand_stays(session: Session) -> None:
    placed = await establish(session, settings(), OWN)
    by_hand = vim.ResourceConfigSpec(cpuAllocation=unlimited(), memoryAllocation=unlimited())
    by_hand.cpuAllocation.limit = 4321
    await session.call(placed.resource_pool.UpdateConfig, None, by_hand, what="an administrator")
    await establish(session, settings(), OWN)
    assert (await config(session, placed))[0].limit == 4321
    cpu, memory = await config(session, await establish(session, settings(memory_limit="1g"), OWN))
    assert (cpu.limit, memory.limit) == (4321, 1024)


async def test_into_a_pool_and_onto_a_host(session: Session) -> None:
    outer = await establish(session, settings(), "gold")
    inner = await establish(session, settings(compute_resource="gold"), OWN)
    path = (await Inventory.read(session)).entity(inner.resource_pool).path
    assert path == f"/DC0/host/DC0_C0/Resources/gold/{OWN}"
    assert inner.compute == outer.compute
    pinned = await establish(session, settings(compute_resource="DC0_C0_H1"), OWN)
    assert isinstance(pinned.site.host, vim.HostSystem)
    assert await hosts.for_new_vm(session, pinned.site) == pinned.site.host
    assert not pinned.drs_enabled


async def test_names_that_do_not_fit(session: Session) -> None:
    for options, words in (
        ({"datastore": "nope"}, r"no datastore 'nope' \(--datastore\); there are: LocalDS_0, LocalDS_1"),
        ({"datastore": None}, "name a datastore"),
        ({"image_datastore": "nope"}, "--image-datastore"),
        ({"bridge_network": "nope"}, "no port group 'nope'"),
        ({"container_network": ["web:nope"]}, r"no port group 'nope' \(--container-network web\)"),
        ({"bridge_network": "VM Network", "container_network": ["web:VM Network"]}, "is the bridge network already"),
    ):
        with pytest.raises((NotFoundError, InvalidArgumentError), match=words):
            await establish(session, settings(**options), OWN)


async def test_a_vapp_is_refused(session: Session) -> None:
    placed = await establish(session, settings(), "gold")
    pool = placed.resource_pool
    allocation = vim.ResourceConfigSpec(cpuAllocation=unlimited(), memoryAllocation=unlimited())
    await session.call(pool.CreateVApp, "app", allocation, vim.vApp.VAppConfigSpec(), placed.folder, what="a vApp")
    with pytest.raises(InvalidArgumentError, match="is a vApp"):
        await establish(session, settings(compute_resource="app"), OWN)
    assert not await resource_pool.remove_if_empty(session, pool, "gold")


async def test_without_drs_there_is_no_pool(session: Session) -> None:
    cluster = (await establish(session, settings(), "first")).compute
    off = vim.cluster.ConfigSpecEx(drsConfig=vim.cluster.DrsConfigInfo(enabled=False))
    await session.run(cluster.ReconfigureComputeResource_Task, off, True, what="turning DRS off")
    placed = await establish(session, settings(), OWN)
    assert (placed.owns_pool, placed.drs_enabled) == (False, False)
    assert placed.resource_pool == placed.site.parent_pool
    assert placed.scope == placed.folder
    for options in ({"memory_limit": "1g"}, {"shares": "low"}, {"affinity_group": True}):
        with pytest.raises(InvalidArgumentError, match="DRS"):
            await establish(session, settings(**options), OWN)
    assert await dismantle(session, placed) == []
    assert placed.resource_pool in await session.read([placed.resource_pool], ["name"])


async def test_without_drs_a_host_is_chosen_for_each_vm(session: Session) -> None:
    placed = await establish(session, settings(bridge_network="VM Network"), OWN)
    assert await hosts.for_new_vm(session, placed.site) is None
    off = vim.cluster.ConfigSpecEx(drsConfig=vim.cluster.DrsConfigInfo(enabled=False))
    await session.run(placed.compute.ReconfigureComputeResource_Task, off, True, what="turning DRS off")
    site = (await establish(session, settings(bridge_network="VM Network"), OWN)).site
    chosen = [await hosts.for_new_vm(session, site) for _ in range(40)]
    assert set(chosen) == set(site.hosts)
    *resting, last = site.hosts
    for host in resting:
        await session.run(host.EnterMaintenanceMode_Task, 0, what="maintenance")
    assert [await hosts.for_new_vm(session, site) for _ in range(10)] == [last] * 10
    await session.run(last.EnterMaintenanceMode_Task, 0, what="maintenance")
    with pytest.raises(ExhaustedError, match="out of maintenance"):
        await hosts.for_new_vm(session, site)


async def test_only_what_is_empty_is_removed(session: Session) -> None:
    placed = await establish(session, settings(affinity_group=True), OWN)
    vm = await make_vm(session, placed, "one")
    stays = await dismantle(session, placed)
    assert [words.partition(":")[0] for words in stays] == [f"the VM folder {OWN}", f"the resource pool {OWN}"]
    assert vm in await session.read([vm], ["name"])
    await session.run(vm.Destroy_Task, what="removing it")
    for _ in range(2):
        assert await dismantle(session, placed) == []
    inventory = await Inventory.read(session)
    assert not [one.path for one in inventory.all(vim.Folder) + inventory.all(vim.ResourcePool) if OWN in one.path]
    assert await members(session, placed.compute, OWN) is None


async def test_a_group_that_cannot_be_removed_keeps_nothing_else(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = await establish(session, settings(affinity_group=True), OWN)

    async def refused(spec: Any, what: str) -> None:
        raise DriverError(f"{what}: a rule has it")

    monkeypatch.setattr(placed.affinity, "_reconfigure", refused)
    assert await dismantle(session, placed) == [f"the VM group {OWN}: removing the VM group {OWN}: a rule has it"]
    inventory = await Inventory.read(session)
    assert not [one.path for one in inventory.all(vim.Folder) + inventory.all(vim.ResourcePool) if OWN in one.path]


async def members(session: Session, cluster: Any, name: str) -> set[Any] | None:
    groups = (await session.read([cluster], ["configurationEx"]))[cluster]["configurationEx"].group
    return next((set(group.vm) for group in groups if group.name == name), None)


async def test_vms_join_and_leave_the_group(session: Session) -> None:
    placed = await establish(session, settings(affinity_group=True), OWN)
    assert await members(session, placed.compute, OWN) == set()
    group = placed.affinity
    assert group is not None
    vms = [await make_vm(session, placed, f"vm{number}") for number in range(6)]
    await asyncio.gather(*(group.join(vm) for vm in vms))
    assert await members(session, placed.compute, OWN) == set(vms)
    await asyncio.gather(group.leave(vms[0]), group.join(vms[0]), group.leave(vms[1]), group.leave(vms[1]))
    assert await members(session, placed.compute, OWN) == {vms[0], *vms[2:]}
    # What was destroyed behind our back is no obstacle, and leaves the list with the next change.
    await session.run(vms[2].Destroy_Task, what="removing it")
    await group.join(vms[1])
    await group.join(vms[2])
    assert await members(session, placed.compute, OWN) == {vms[0], vms[1], *vms[3:]}


async def test_joins_at_once_are_few_changes(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    placed = await establish(session, settings(), OWN)
    group = AffinityGroup(session, placed.compute, OWN)
    vms = [await make_vm(session, placed, f"vm{number}") for number in range(12)]
    changes = []
    reconfigure = group._reconfigure

    async def counted(spec: Any, what: str) -> None:
        changes.append(what)
        await reconfigure(spec, what)

    monkeypatch.setattr(group, "_reconfigure", counted)
    await asyncio.gather(*(group.join(vm) for vm in vms))
    assert len(changes) <= 2
    assert await members(session, placed.compute, OWN) == set(vms)


async def test_a_change_that_fails_fails_for_all_of_its_batch(session: Session) -> None:
    placed = await establish(session, settings(), OWN)
    vm = await make_vm(session, placed, "one")
    group = AffinityGroup(session, vim.ClusterComputeResource("domain-c999", placed.compute._stub), OWN)
    outcomes = await asyncio.gather(*(group.join(vm) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [NotFoundError] * 3


async def test_without_vcenter_the_pool_tells_what_is_ours(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "is_vcenter", False)
    placed = await establish(session, settings(), OWN)
    assert (placed.folder, placed.owns_folder) == (placed.site.vm_folder, False)
    assert placed.scope == placed.resource_pool
    assert await dismantle(session, placed) == []
    assert placed.folder in await session.read([placed.folder], ["name"])


async def test_a_host_outside_clusters(tmp_path_factory: pytest.TempPathFactory) -> None:
    simulator = Simulator(tmp_path_factory.mktemp("vcsim"), "-standalone-host", "1")
    try:
        async with opened(simulator) as session:
            placed = await establish(session, settings(compute_resource="DC0_H0", memory_limit="2g"), OWN)
            assert (placed.owns_pool, placed.drs_enabled, placed.site.host) == (True, False, None)
            with pytest.raises(InvalidArgumentError, match="--affinity-group"):
                await establish(session, settings(compute_resource="DC0_H0", affinity_group=True), OWN)
    finally:
        simulator.close()
