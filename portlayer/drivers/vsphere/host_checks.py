"""`vch doctor`: what it finds at the ESXi hosts and at what all of them must have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pyVmomi import vim

from portlayer.drivers.findings import Finding, Level
from portlayer.drivers.vsphere import reach
from portlayer.drivers.vsphere.inventory import Entity
from portlayer.drivers.vsphere.port_groups import PortGroup
from portlayer.drivers.vsphere.session import Session
from portlayer.drivers.vsphere.site import Site

# Both let a host dial the concentrator; the second is wider than needed.
RULESETS: Final = ("vSPC", "remoteSerialPort")
OLDEST: Final = (6, 7)
INSTANT_CLONE: Final = (7, 0)
_GIB: Final = 1 << 30
_SHOWN: Final = 5
_NAME, _STATE, _MAINTENANCE = "name", "runtime.connectionState", "runtime.inMaintenanceMode"
_VERSION, _VNIC = "config.product.version", "config.network.vnic"
_FIREWALL, _RULES = "configManager.firewallSystem", "firewallInfo"
_Host = Mapping[str, Any]


async def examine(session: Session, site: Site, concentrator: Sequence[str]) -> list[Finding]:
    """`concentrator`: the addresses that hosts dial; none when they are not known."""
    known = await session.read(site.hosts, [_NAME, _STATE, _MAINTENANCE, _VERSION, _VNIC, _FIREWALL])
    hosts = [known.get(host, {}) for host in site.hosts]
    rules = await session.read([host[_FIREWALL] for host in hosts if _FIREWALL in host], [_RULES])
    by_host = {_name(host): rules.get(host[_FIREWALL], {}).get(_RULES) if _FIREWALL in host else None for host in hosts}
    findings = [_hosts(hosts), *_versions(hosts), _firewall(by_host, concentrator)]
    if concentrator:
        findings.append(_neighbours(hosts, concentrator))
    stores = {"datastore": site.datastore, "image datastore": site.image_datastore}
    if site.image_datastore == site.datastore:
        del stores["image datastore"]
    for name, entity in stores.items():
        findings += await _datastore(session, site, name, entity)
    findings += await _networks(session, site)
    return findings


def version_of(text: Any) -> tuple[int, ...]:
    """(8, 0, 3) of "8.0.3"; empty when it is none."""
    parts = str(text or "").split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()


def _hosts(hosts: Sequence[_Host]) -> Finding:
    away = [_name(host) for host in hosts if str(host.get(_STATE)) != "connected"]
    resting = [_name(host) for host in hosts if host.get(_MAINTENANCE)]
    usable = len(hosts) - len({*away, *resting})
    if not usable:
        return Finding("hosts", "fail", "no host is connected and out of maintenance", "no container can start")
    if away:
        return Finding("hosts", "warn", f"not connected: {_some(away)}", "their VMs show as they were last seen")
    rest = f", in maintenance: {_some(resting)}" if resting else ""
    return Finding("hosts", "ok", f"{usable} of {len(hosts)} can run containers{rest}")


def _versions(hosts: Sequence[_Host]) -> Iterator[Finding]:
    known = {_name(host): version_of(host.get(_VERSION)) for host in hosts}
    old = [name for name, version in known.items() if version and version < OLDEST]
    plain = [name for name, version in known.items() if version and version < INSTANT_CLONE]
    if old:
        yield Finding("host versions", "fail", f"older than ESXi 6.7: {_some(old)}", "containers do not start there")
    elif plain:
        costs = "no instant clone there: starts boot a kernel"
        yield Finding("host versions", "warn", f"older than ESXi 7.0: {_some(plain)}", costs)
    else:
        versions = sorted({str(host.get(_VERSION)) for host in hosts if host.get(_VERSION)})
        yield Finding("host versions", "ok", f"ESXi {', '.join(versions) or 'of unknown version'}")


def _firewall(by_host: Mapping[str, Any], concentrator: Sequence[str]) -> Finding:
    """`by_host` has the HostFirewallInfo of each, None where it cannot be read."""
    closed, narrow, unknown = [], [], []
    for name, info in by_host.items():
        open_rules = [rule for rule in getattr(info, "ruleset", ()) if rule.key in RULESETS and rule.enabled]
        if info is None:
            unknown.append(name)
        elif not open_rules:
            closed.append(name)
        elif concentrator and not any(
            reach.lets_through(rule.allowedHosts, address) for rule in open_rules for address in concentrator
        ):
            narrow.append(name)
    costs = "no container can start there: its agent cannot be reached; enable the rule set vSPC on each host"
    if closed:
        level: Level = "fail" if len(closed) == len(by_host) else "warn"
        return Finding("firewall", level, f"serial ports may not dial out on {_some(closed)}", costs)
    if narrow:
        return Finding("firewall", "warn", f"its list of allowed addresses leaves us out on {_some(narrow)}", costs)
    if unknown:
        return Finding("firewall", "warn", f"its rules cannot be read on {_some(unknown)}", costs)
    return Finding("firewall", "ok", "serial ports may dial out on every host")


def _neighbours(hosts: Sequence[_Host], concentrator: Sequence[str]) -> Finding:
    """A host in the subnet of the concentrator reaches it; of others nobody can tell from here."""
    far = [_name(host) for host in hosts if not reach.is_neighbour(concentrator, host.get(_VNIC, ()))]
    if not far:
        return Finding("way to us", "ok", f"every host is in the subnet of {concentrator[0]}")
    found = f"{concentrator[0]} is in no subnet of {_some(far)}"
    return Finding(
        "way to us", "ok", found, "nothing, when there is a route: whether there is cannot be seen from here"
    )


async def _datastore(session: Session, site: Site, name: str, entity: Entity) -> list[Finding]:
    found = (await session.read([entity.object], ["summary", "host"])).get(entity.object, {})
    summary = found.get("summary")
    if summary is None or not summary.accessible:
        return [Finding(name, "fail", f"{entity.path} is not accessible", "no container can be created")]
    usable = {mount.key for mount in found.get("host", ()) if _is_usable(mount.mountInfo)}
    names = await _names(session, [host for host in site.hosts if host not in usable])
    findings = [_space(name, entity, int(summary.freeSpace), int(summary.capacity))]
    if names:
        costs = "containers do not run there, and do not move there"
        level: Level = "fail" if len(names) == len(site.hosts) else "warn"
        findings.append(Finding(f"{name} on hosts", level, f"{entity.name} is not on {_some(names)}", costs))
    else:
        findings.append(Finding(f"{name} on hosts", "ok", f"every host can write to {entity.name}"))
    return findings


def _space(name: str, entity: Entity, free: int, capacity: int) -> Finding:
    words = f"{entity.path}, {free / _GIB:.1f} of {capacity / _GIB:.1f} GiB free"
    if free < _GIB:
        return Finding(name, "fail", words, "images and disks will not fit")
    if free < 10 * _GIB:
        return Finding(name, "warn", words, "room for a few small images only")
    return Finding(name, "ok", words)


async def _networks(session: Session, site: Site) -> list[Finding]:
    groups: dict[str, PortGroup] = {f"container network {name}": one for name, one in site.container_networks.items()}
    if site.bridge is not None:
        groups = {"bridge network": site.bridge, **groups}
    hosts = await session.read(site.hosts, [_NAME, "network"]) if groups else {}
    findings = []
    for name, group in groups.items():
        missing = [_name(host) for host in hosts.values() if group.network not in host.get("network", ())]
        if missing:
            found, costs = f"{group.path} is not on {_some(missing)}", "containers on it do not run there"
            findings.append(Finding(name, "fail" if len(missing) == len(site.hosts) else "warn", found, costs))
        else:
            findings.append(Finding(name, "ok", f"{group.path}, on every host"))
    if site.bridge is None:
        found = "none is named (--bridge-network)"
        findings.append(Finding("bridge network", "ok", found, "containers have their loopback only"))
    return findings


async def _names(session: Session, hosts: Sequence[Any]) -> list[str]:
    return [_name(host) for host in (await session.read(hosts, [_NAME])).values()]


def _is_usable(mount: vim.host.MountInfo) -> bool:
    # What is not told is as usual.
    return mount.accessMode == "readWrite" and mount.accessible is not False and mount.mounted is not False


def _name(host: _Host) -> str:
    return str(host.get(_NAME, "a host that the account may not see"))


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(sorted(names)[:_SHOWN]) + rest
