"""`vch doctor --target`: looks at vSphere the way a VCH will use it, and changes nothing there."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pyVmomi import vim

from portlayer.drivers.findings import Finding
from portlayer.drivers.vsphere import files, host_checks, licences, privileges, reach, site, vcenter_settings
from portlayer.drivers.vsphere.host_checks import INSTANT_CLONE, OLDEST, version_of
from portlayer.drivers.vsphere.privileges import Place, Privilege
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.settings import SerialSettings, VsphereSettings
from portlayer.drivers.vsphere.site import Site
from portlayer.errors import PortLayerError

# Beyond this, event times of vSphere and ours are hard to compare; seconds.
_CLOCK_S: Final = 5.0
_NONE: Final = "no container can start"


async def examine(settings: VsphereSettings) -> list[Finding]:
    """All findings. What makes further looking pointless is the last one."""
    session = Session(settings.endpoint, settings.credentials, delays_s=())
    try:
        await session.open()
    except PortLayerError as error:
        return [Finding("login", "fail", str(error), _NONE)]
    try:
        return [
            Finding("login", "ok", f"{settings.credentials.user} at {settings.endpoint.host}"),
            *_version(session),
            await _clock(session),
            *await _at_site(session, settings),
        ]
    except PortLayerError as error:
        return [Finding("vSphere", "fail", str(error), "the rest was not looked at")]
    finally:
        await session.close()


async def _at_site(session: Session, settings: VsphereSettings) -> list[Finding]:
    try:
        there = await site.locate(session, settings)
    except PortLayerError as error:
        return [Finding("placement", "fail", str(error), _NONE)]
    addresses, findings = await _concentrator(settings)
    return [
        Finding("placement", "ok", f"{there.compute.path}, VMs in a folder of {there.datacenter.path}"),
        _drs(there, settings),
        *await _privileges(session, there, settings),
        await licences.examine(session, there.hosts),
        *([await vcenter_settings.examine(session)] if session.is_vcenter else []),
        *findings,
        *await host_checks.examine(session, there, addresses),
    ]


def _version(session: Session) -> Iterator[Finding]:
    about = session.content.about
    version = version_of(about.version)
    if version < OLDEST:
        yield Finding("version", "fail", f"{about.fullName}; 6.7 is the oldest that will do", _NONE)
    elif not session.is_vcenter:
        costs = "no instant clone, no VM folder and no DRS: those are vCenter's"
        yield Finding("version", "warn", f"{about.fullName}, without vCenter", costs)
    elif version < INSTANT_CLONE:
        yield Finding("version", "warn", str(about.fullName), "no instant clone before 7.0: every start boots a kernel")
    else:
        yield Finding("version", "ok", str(about.fullName))


async def _clock(session: Session) -> Finding:
    instance = vim.ServiceInstance("ServiceInstance", session.content.propertyCollector._stub)
    before = datetime.now(UTC)
    theirs = await session.call(instance.CurrentTime, what="asking for the time")
    ours = before + (datetime.now(UTC) - before) / 2
    apart = abs((theirs - ours).total_seconds())
    if apart > _CLOCK_S:
        costs = "times in events and in vCenter do not fit; set both clocks by NTP"
        return Finding("clock", "warn", f"{apart:.0f} s apart from vSphere's", costs)
    return Finding("clock", "ok", f"{apart:.1f} s apart from vSphere's")


def _drs(there: Site, settings: VsphereSettings) -> Finding:
    if not isinstance(there.compute.object, vim.ClusterComputeResource):
        return Finding("DRS", "ok", f"{there.compute.path} is a single host")
    if not there.drs_enabled:
        costs = "no resource pool of the VCH's own, so no limits; VMs stay on the host that they were made on"
        level = "fail" if settings.limits.any or settings.affinity_group else "warn"
        return Finding("DRS", "fail" if level == "fail" else "warn", f"off in {there.compute.path}", costs)
    if not there.drs_automatic:
        costs = "VMs start on the host that DRS thinks best, and stay there unless an administrator moves them"
        return Finding("DRS", "ok", "on, manual", costs)
    return Finding("DRS", "ok", "on")


async def _privileges(session: Session, there: Site, settings: VsphereSettings) -> list[Finding]:
    """One finding for each object that something is lacking on."""
    groups = [group for group in (there.bridge, *there.container_networks.values()) if group is not None]
    stores = {there.datastore.object: there.datastore.path, there.image_datastore.object: there.image_datastore.path}
    paths = {
        there.vm_folder: f"{there.datacenter.path}/vm",
        there.parent_pool: there.pool_path,
        **stores,
        **{group.network: group.path for group in groups},
    }
    where: dict[Place, Sequence[Any]] = {
        Place.DATACENTER: [there.vm_folder],
        Place.POOL: [there.parent_pool],
        Place.DATASTORE: list(stores),
        Place.NETWORK: [group.network for group in groups],
    }
    facts = await session.read(stores, files.KIND)
    objects = [store for store, kind in facts.items() if files.keeps_objects(kind)]
    where[Place.OBJECT_DATASTORE] = objects
    if there.image_datastore.object in objects:
        where[Place.IMPORT] = [there.vm_folder, there.parent_pool]
    if settings.affinity_group:
        where[Place.CLUSTER] = [there.compute.object]
        paths[there.compute.object] = there.compute.path
    if session.is_vcenter:
        where[Place.VCENTER] = [session.content.rootFolder]
        paths[session.content.rootFolder] = str(Place.VCENTER)
    try:
        missing = await privileges.lacking(session, where)
    except PortLayerError as error:
        return [Finding("privileges", "warn", str(error), "whether the account may do what a VCH does is not known")]
    if not missing:
        return [Finding("privileges", "ok", "the account has all that a VCH needs")]
    return [_lacking(paths.get(thing, thing._moId), them) for thing, them in missing.items()]


def _lacking(path: str, them: Sequence[Privilege]) -> Finding:
    """Required ones first; what only optional ones cost is a warning."""
    ordered = sorted(them, key=lambda one: not one.required)
    words = "; ".join(f"{one.id} ({one.label})" for one in ordered)
    costs = dict.fromkeys(one.costs or f"needed for {one.purpose}" for one in ordered)
    level = "fail" if any(one.required for one in them) else "warn"
    return Finding(
        f"privileges on {path}", "fail" if level == "fail" else "warn", f"lacking: {words}", "; ".join(costs)
    )


async def _concentrator(settings: VsphereSettings) -> tuple[list[str], list[Finding]]:
    """The addresses that hosts will dial, and what is to be said of them."""
    serial = settings.serial
    try:
        if serial.advertised_host is None:
            addresses = [await asyncio.to_thread(reach.address_facing, settings.endpoint)]
        else:
            addresses = await asyncio.to_thread(reach.addresses_of, serial.advertised_host)
    except PortLayerError as error:
        return [], [Finding("concentrator", "fail", str(error), "hosts cannot dial it: say --serial-address")]
    told = f"{serial.advertised_host or addresses[0]}:{serial.advertised_port or serial.listen_port}"
    if all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses):
        costs = "only a host on this very machine reaches it: say --serial-address"
        finding = Finding("concentrator", "warn", f"hosts would dial {told}", costs)
    else:
        finding = Finding("concentrator", "ok", f"hosts dial {told}")
    return addresses, [finding, *await _listening(serial)]


async def _listening(serial: SerialSettings) -> list[Finding]:
    if obstacle := await asyncio.to_thread(reach.may_listen, serial.listen_host, serial.listen_port):
        found = f"{serial.listen_host}:{serial.listen_port}: {obstacle}"
        return [Finding("listening", "warn", found, "nothing if this VCH is up; else say another --serial-listen")]
    if serial.certificate is None:
        costs = "what containers read and write passes between host and VCH in clear; see --serial-tls-cert"
        return [Finding("serial TLS", "ok", "off", costs)]
    return [Finding("serial TLS", "ok", "on")]
