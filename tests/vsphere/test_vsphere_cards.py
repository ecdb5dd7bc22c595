"""A VM's cards are on the networks that its container names, and stay where an administrator put them."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim
from vsphere_plain import outcome
from vsphere_site import Site, make_template, spec
from vsphere_waiting import until

from portlayer.errors import ConflictError, NotFoundError

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
            await until(lambda: site.has_moved(name))
            assert site.vm(name)._moId != before
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
