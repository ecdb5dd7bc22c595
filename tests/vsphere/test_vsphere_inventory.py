"""Names of the inventory, and what is said of those that do not fit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from pyVmomi import vim
from vsphere_sessions import opened
from vsphere_simulator import Simulator

from portlayer.drivers.vsphere import port_groups, resource_pool
from portlayer.drivers.vsphere.inventory import Inventory, choose, listed
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.settings import PoolLimits
from portlayer.errors import InvalidArgumentError, NotFoundError


@pytest.fixture
async def session(fresh_simulator: Simulator) -> AsyncIterator[Session]:
    async with opened(fresh_simulator) as session:
        yield session


async def test_every_way_to_say_a_name(session: Session) -> None:
    inventory = await Inventory.read(session)
    cluster = inventory.compute(None)
    assert (cluster.name, cluster.path) == ("DC0_C0", "/DC0/host/DC0_C0")
    for words in ("DC0_C0", "host/DC0_C0", "/DC0/host/DC0_C0", "/DC0/host/DC0_C0/", "DC0_C0/Resources", cluster.id):
        assert inventory.compute(words) == cluster, words
    host = inventory.compute("DC0_C0_H1")
    assert host.path == "/DC0/host/DC0_C0/DC0_C0_H1"
    assert inventory.compute_resource_of(host.object) == cluster
    assert inventory.datacenter_of(host.object).path == "/DC0"


async def test_resource_pools_by_name_and_path(session: Session) -> None:
    top = (await Inventory.read(session)).compute("DC0_C0").object
    root = (await session.read([top], ["resourcePool"]))[top]["resourcePool"]
    gold = await resource_pool.ensure(session, root, "gold", PoolLimits())
    silver = await resource_pool.ensure(session, root, "silver", PoolLimits())
    await resource_pool.ensure(session, gold, "web", PoolLimits())
    await resource_pool.ensure(session, silver, "web", PoolLimits())
    await resource_pool.ensure(session, silver, "50%25 of a%2fb", PoolLimits())  # as vCenter keeps it
    inventory = await Inventory.read(session)
    whole = "/DC0/host/DC0_C0/Resources/gold/web"
    for words in ("gold/web", "DC0_C0/gold/web", "/DC0/host/DC0_C0/gold/web", whole):
        assert inventory.compute(words).path == whole
    assert inventory.compute("gold").object == gold
    for words in ("50% of a/b", "50%25 of a%2fb", "silver/50%25 of a%2fb"):
        assert inventory.compute(words).name == "50% of a/b"
    with pytest.raises(InvalidArgumentError, match=r"fits several: .*/gold/web \(resgroup-\d+\), .*/silver/web \("):
        inventory.compute("web")


async def test_what_there_is_is_said(session: Session) -> None:
    inventory = await Inventory.read(session)
    with pytest.raises(NotFoundError, match=r"no compute resource 'DC0_C9'.*there are: DC0_C0, DC0_C0_H0, DC0_C0_H1"):
        inventory.compute("DC0_C9")
    with pytest.raises(NotFoundError, match=r"\(--compute-resource\); perhaps 'DC0_C0_H1' or '.*; there are: "):
        inventory.compute("/DC0/dc0_c0h1")
    with pytest.raises(NotFoundError, match="no compute resource '/DC0/host/C0'"):
        inventory.compute("/DC0/host/C0")
    stores = inventory.all(vim.Datastore)
    with pytest.raises(
        InvalidArgumentError, match=r"name a datastore \(--datastore\); there are: LocalDS_0, LocalDS_1"
    ):
        choose("datastore", "--datastore", stores, None)
    with pytest.raises(NotFoundError, match="there is none that the account may see"):
        choose("datastore", "--datastore", [], "x")
    assert listed(stores * 12).endswith(" and 4 more")


async def test_port_groups_of_both_kinds(session: Session) -> None:
    inventory = await Inventory.read(session)
    datacenter = inventory.all(vim.Datacenter)[0].object
    networks = {one.name: one.object for one in inventory.all(vim.Network)}
    reachable = list(networks.values())
    wanted = [("--bridge-network", "DC0_DVPG0"), ("--container-network a", "VM Network")]
    distributed, standard = await port_groups.find(session, inventory, datacenter, reachable, wanted)
    assert distributed.network == networks["DC0_DVPG0"]
    assert distributed.backing.port.portgroupKey == distributed.network._moId
    assert distributed.backing.port.switchUuid
    assert (standard.backing.deviceName, standard.backing.network) == ("VM Network", networks["VM Network"])
    with pytest.raises(NotFoundError, match=r"no port group 'nowhere' \(--bridge-network\); there are: .*DC0_DVPG1"):
        await port_groups.find(session, inventory, datacenter, reachable, [("--bridge-network", "nowhere")])
    with pytest.raises(InvalidArgumentError, match="no host of the compute resource has the port group /DC0/network"):
        await port_groups.find(session, inventory, datacenter, [], wanted)


async def test_uplinks_are_no_networks_for_vms(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    inventory = await Inventory.read(session)
    datacenter = inventory.all(vim.Datacenter)[0].object
    reachable = [one.object for one in inventory.all(vim.Network)]
    read = session.read

    async def tagged(objects: Any, paths: Any) -> Any:
        """With the tag that vCenter gives them, and vcsim does not."""
        found = await read(objects, paths)
        for group, values in found.items():
            if "Uplinks" in inventory.entity(group).name:
                values["tag"] = [vim.Tag(key="SYSTEM/DVS.UPLINKTAG")]
        return found

    (uplink,) = (one for one in inventory.all(vim.Network) if "Uplinks" in one.name)
    assert await port_groups.find(session, inventory, datacenter, reachable, [("--bridge-network", uplink.name)])
    monkeypatch.setattr(session, "read", tagged)
    with pytest.raises(NotFoundError, match="no port group"):
        await port_groups.find(session, inventory, datacenter, reachable, [("--bridge-network", uplink.name)])


@pytest.fixture
def two_clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = Simulator(tmp_path_factory.mktemp("vcsim"), "-standalone-host", "1", "-cluster", "2")
    yield simulator
    simulator.close()


async def test_a_choice_among_several_is_the_administrators(two_clusters: Simulator) -> None:
    async with opened(two_clusters) as session:
        inventory = await Inventory.read(session)
        with pytest.raises(InvalidArgumentError, match=r"name a compute resource .*: DC0_C0, DC0_C1, DC0_H0"):
            inventory.compute(None)
        # A host outside clusters has the name of its compute resource: that is no ambiguity.
        alone = inventory.compute("DC0_H0")
        assert isinstance(alone.object, vim.ComputeResource)
