"""What `vch doctor` finds in a vSphere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import vsphere_vsan
from pyVmomi import vim
from vsphere_sessions import denied, opened
from vsphere_simulator import HOST, Simulator

from portlayer.drivers.findings import Finding
from portlayer.drivers.vsphere import doctor, host_checks, licences, privileges, reach, vcenter_settings
from portlayer.drivers.vsphere.inventory import Inventory
from portlayer.drivers.vsphere.privileges import LEAST
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.settings import VsphereSettings, from_options
from portlayer.errors import DriverError
from vch import doctor as of_the_command_line
from vch.vsphere_options import Vsphere

ADDRESS = "10.1.2.3"


def settings(simulator: Simulator, password: str = Simulator.password, **options: Any) -> VsphereSettings:
    said = {
        "target": f"{simulator.user}@{HOST}:{simulator.port}",
        "ca": simulator.ca_pem,
        "datastore": "LocalDS_0",
        "serial_listen": "127.0.0.1:0",
        "serial_address": ADDRESS,
    }
    return from_options({**said, **options}, password)


async def examine(simulator: Simulator, **options: Any) -> dict[str, Finding]:
    findings = await doctor.examine(settings(simulator, **options))
    by_name = {finding.name: finding for finding in findings}
    assert len(by_name) == len(findings)  # each has a name of its own
    assert not [finding for finding in findings if finding.level != "ok" and not finding.costs]
    return by_name


@pytest.fixture
async def session(fresh_simulator: Simulator) -> AsyncIterator[Session]:
    async with opened(fresh_simulator) as session:
        yield session


async def open_firewalls(session: Session, rule: str = "vSPC") -> None:
    hosts = (await Inventory.read(session)).all(vim.HostSystem)
    path = "configManager.firewallSystem"
    for system in (await session.read([host.object for host in hosts], [path])).values():
        await session.call(system[path].EnableRuleset, rule, what="opening the firewall")


async def set_in_vcenter(session: Session, value: str) -> None:
    option = vim.option.OptionValue(key=vcenter_settings.KEY, value=value)
    await session.call(session.content.setting.UpdateOptions, [option], what="setting vCenter up")


async def test_all_well(fresh_simulator: Simulator, session: Session) -> None:
    await open_firewalls(session)
    await set_in_vcenter(session, "true")
    found = await examine(
        fresh_simulator, bridge_network="DC0_DVPG0", image_datastore="LocalDS_1", container_network=["web:VM Network"]
    )
    assert not [finding for finding in found.values() if finding.level != "ok"]
    assert found["placement"].found == "/DC0/host/DC0_C0, VMs in a folder of /DC0"
    assert found["concentrator"].found == f"hosts dial {ADDRESS}:0"
    assert "GiB free" in found["image datastore"].found
    assert found["container network web"].found == "/DC0/network/VM Network, on every host"
    assert "Evaluation" in found["licences"].found


async def test_login_that_fails_says_why(fresh_simulator: Simulator) -> None:
    (finding,) = await doctor.examine(settings(fresh_simulator, "wrong"))
    assert (finding.level, "refused" in finding.found) == ("fail", True)
    (finding,) = await doctor.examine(settings(fresh_simulator, ca=None))
    assert f"thumbprint is {fresh_simulator.thumbprint}" in finding.found
    fresh_simulator.kill()
    (finding,) = await doctor.examine(settings(fresh_simulator))
    assert "cannot be reached" in finding.found


async def test_names_that_do_not_fit(fresh_simulator: Simulator) -> None:
    found = await examine(fresh_simulator, datastore=None)
    assert found["placement"].found == "name a datastore (--datastore); there are: LocalDS_0, LocalDS_1"


async def test_firewalls(fresh_simulator: Simulator, session: Session) -> None:
    closed = (await examine(fresh_simulator))["firewall"]
    assert (closed.level, "vSPC" in closed.costs) == ("fail", True)
    assert "DC0_C0_H0, DC0_C0_H1" in closed.found
    await open_firewalls(session, "remoteSerialPort")
    assert (await examine(fresh_simulator))["firewall"].level == "ok"


async def test_serial_ports_that_vcenter_forgets(fresh_simulator: Simulator, session: Session) -> None:
    found = (await examine(fresh_simulator))["serial ports in vCenter"]
    assert (found.level, found.found) == ("warn", f"{vcenter_settings.KEY} is not set")
    await set_in_vcenter(session, "false")
    found = (await examine(fresh_simulator))["serial ports in vCenter"]
    assert (found.level, found.found) == ("warn", f"{vcenter_settings.KEY} is false")


async def test_without_drs(fresh_simulator: Simulator, session: Session) -> None:
    cluster = (await Inventory.read(session)).compute(None).object
    off = vim.cluster.ConfigSpecEx(drsConfig=vim.cluster.DrsConfigInfo(enabled=False))
    await session.run(cluster.ReconfigureComputeResource_Task, off, True, what="turning DRS off")
    assert (await examine(fresh_simulator))["DRS"].level == "warn"
    assert (await examine(fresh_simulator, memory_limit="1g"))["DRS"].level == "fail"


async def test_hosts_in_maintenance(fresh_simulator: Simulator, session: Session) -> None:
    hosts = (await Inventory.read(session)).all(vim.HostSystem)
    await session.run(hosts[0].object.EnterMaintenanceMode_Task, 0, what="maintaining")
    found = (await examine(fresh_simulator))["hosts"]
    assert (found.level, found.found) == ("ok", "1 of 2 can run containers, in maintenance: DC0_C0_H0")
    await session.run(hosts[1].object.EnterMaintenanceMode_Task, 0, what="maintaining")
    assert (await examine(fresh_simulator))["hosts"].level == "fail"


async def test_of_a_cluster_only_the_host_that_is_named(fresh_simulator: Simulator, session: Session) -> None:
    """What is wrong with the others costs nothing; what is wrong with this one costs all."""
    hosts = (await Inventory.read(session)).all(vim.HostSystem)
    await session.run(hosts[0].object.EnterMaintenanceMode_Task, 0, what="maintaining")
    assert (await examine(fresh_simulator, compute_resource=hosts[0].name))["hosts"].level == "fail"
    found = (await examine(fresh_simulator, compute_resource=hosts[1].name))["hosts"]
    assert (found.level, found.found) == ("ok", "1 of 1 can run containers")


async def test_lacking_privileges_are_named(fresh_simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    denied(monkeypatch, "Folder.Create", "VirtualMachine.Provisioning.Clone", "Network.Assign", "Extension.Register")
    found = await examine(fresh_simulator, bridge_network="VM Network")
    folder = found["privileges on /DC0/vm"]
    assert folder.level == "fail"
    assert folder.found.startswith("lacking: Folder.Create (Folder > Create folder); VirtualMachine.Provisioning.Clone")
    assert folder.costs == "needed for the VCH's own folder; no instant clone: every start boots a kernel"
    assert found["privileges on /DC0/network/VM Network"].level == "fail"
    assert found["privileges on vCenter itself"].level == "warn"
    assert "privileges" not in found


async def test_of_vsan_more_is_asked_for(fresh_simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    denied(monkeypatch, "VApp.Import", "Datastore.Config")
    vsphere_vsan.enable(fresh_simulator)
    assert (await examine(fresh_simulator))["privileges"].level == "ok"
    path = f"/DC0/datastore/{vsphere_vsan.DATASTORE}"
    found = await examine(fresh_simulator, datastore=path, image_datastore="LocalDS_0")
    assert "Datastore.Config" in found[f"privileges on {path}"].found
    assert "privileges on /DC0/vm" not in found
    found = await examine(fresh_simulator, datastore=path)
    assert found["datastore"].level == "ok"
    lacking = [name for name, one in found.items() if "VApp.Import" in one.found]
    assert len(lacking) == 2  # the folder and the pool
    assert "privileges on /DC0/vm" in lacking


async def test_of_the_cluster_only_what_is_asked_for(
    fresh_simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    denied(monkeypatch, "Host.Inventory.EditCluster")
    assert (await examine(fresh_simulator))["privileges"].level == "ok"
    found = await examine(fresh_simulator, affinity_group=True)
    assert found["privileges on /DC0/host/DC0_C0"].costs == "no --affinity-group"


async def test_privileges_that_cannot_be_asked_for(fresh_simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: Any) -> Any:
        raise DriverError("the account lacks the privilege System.View")

    monkeypatch.setattr(privileges, "lacking", refused)
    assert (await examine(fresh_simulator))["privileges"].level == "warn"


async def test_where_the_concentrator_is(fresh_simulator: Simulator) -> None:
    found = await examine(fresh_simulator, serial_address=None)
    assert (found["concentrator"].level, "127.0.0.1" in found["concentrator"].found) == ("warn", True)
    assert found["way to us"].costs == ""  # the simulator's hosts are on 127.0.0.1
    found = await examine(fresh_simulator, serial_address="nowhere.invalid")
    assert found["concentrator"].level == "fail"
    assert "way to us" not in found
    found = await examine(fresh_simulator, serial_listen=f"127.0.0.1:{fresh_simulator.port}")
    assert "in use" in found["listening"].found


@pytest.mark.parametrize(
    ("edition", "features", "level"),
    [("eval", [], "ok"), ("esx.enterprisePlus", ["dvs", "serialuri:2"], "ok"), ("esx.standard", ["dvs"], "fail")],
)
async def test_licences(
    session: Session, monkeypatch: pytest.MonkeyPatch, edition: str, features: list[str], level: str
) -> None:
    keys = [vim.KeyValue(key=feature, value=feature) for feature in features]
    pairs = [vim.KeyAnyValue(key="feature", value=key) for key in keys]
    pairs.append(vim.KeyAnyValue(key="ProductName", value="VMware ESX Server"))
    licence = vim.LicenseManager.LicenseInfo(
        licenseKey="-", editionKey=edition, name=edition, total=0, used=0, costUnit="", properties=pairs
    )
    host = (await Inventory.read(session)).all(vim.HostSystem)[0].object
    assigned = vim.LicenseAssignmentManager.LicenseAssignment(entityId=host._moId, assignedLicense=licence)
    call = session.call

    async def answered(method: Any, *args: Any, **kwargs: Any) -> Any:
        return [assigned] if kwargs["what"] == "reading licences" else await call(method, *args, **kwargs)

    monkeypatch.setattr(session, "call", answered)
    found = await licences.examine(session, [host])
    assert (found.level, edition in found.found) == (level, True)
    assert (await licences.examine(session, [])).level == "warn"


def test_old_hosts() -> None:
    def levels(*versions: str) -> list[str]:
        hosts = [{"name": f"h{number}", "config.product.version": text} for number, text in enumerate(versions)]
        return [finding.level for finding in host_checks._versions(hosts)]

    assert levels("8.0.3", "7.0.0") == ["ok"]
    assert levels("8.0.3", "6.7.0") == ["warn"]
    assert levels("8.0.3", "6.5.0") == ["fail"]
    assert levels("", "strange") == ["ok"]


def test_a_firewall_that_lets_only_some_addresses_through() -> None:
    networks = [vim.host.Ruleset.IpNetwork(network="10.1.0.0", prefixLength=16)]
    some = vim.host.Ruleset.IpList(allIp=False, ipAddress=["192.168.0.7"], ipNetwork=networks)
    rule = vim.host.Ruleset(key="vSPC", enabled=True, allowedHosts=some)
    rules = {"h0": vim.host.FirewallInfo(ruleset=[rule])}
    assert [host_checks._firewall(rules, [address]).level for address in (ADDRESS, "192.168.0.7", "10.2.0.1")] == [
        *("ok", "ok", "warn")
    ]
    assert host_checks._firewall({"h0": None}, [ADDRESS]).level == "warn"
    half = host_checks._firewall({"h1": vim.host.FirewallInfo(ruleset=[]), **rules}, [ADDRESS])
    assert (half.level, half.found) == ("warn", "serial ports may not dial out on h1")


def test_neighbours() -> None:
    ip = vim.host.IpConfig(dhcp=False, ipAddress="10.1.2.200", subnetMask="255.255.255.0")
    vnic = vim.host.VirtualNic(device="vmk0", key="k", portgroup="", spec=vim.host.VirtualNic.Specification(ip=ip))
    assert reach.is_neighbour([ADDRESS], [vnic])
    assert not reach.is_neighbour(["10.1.3.3", "fe80::1%eth0"], [vnic])


async def test_a_datastore_that_one_host_cannot_write_to(session: Session, fresh_simulator: Simulator) -> None:
    there = await doctor.site.locate(session, settings(fresh_simulator))
    read = session.read

    async def changed(objects: Any, paths: Any) -> Any:
        found = await read(objects, paths)
        for values in found.values():
            if "summary" in values:
                values["host"][0].mountInfo.accessMode = "readOnly"
                values["summary"].freeSpace = 5 << 30
        return found

    session.read = changed  # type: ignore[method-assign]
    space, hosts = await host_checks._datastore(session, there, "datastore", there.datastore)
    assert (space.level, hosts.level) == ("warn", "warn")
    assert hosts.found == "LocalDS_0 is not on DC0_C0_H0"


def test_the_command_line_shows_them_with_its_own(fresh_simulator: Simulator, tmp_path: Path) -> None:
    said = {"target": f"{fresh_simulator.user}@{HOST}:{fresh_simulator.port}", "ca": str(fresh_simulator.ca_pem)}
    findings = of_the_command_line.examine_vsphere(
        Vsphere.from_json({**said, "datastore": "LocalDS_0"}), fresh_simulator.password, tmp_path, tmp_path
    )
    levels = {finding.name: finding.level for finding in findings}
    assert len(levels) == len(findings)
    assert levels.items() >= {"login": "ok", "guest image": "fail", "disk": "ok"}.items()


def test_every_privilege_is_described() -> None:
    assert len({one.id for one in LEAST}) == len(LEAST)
    assert not [one for one in LEAST if not one.label or not one.purpose]
