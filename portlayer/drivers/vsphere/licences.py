"""`vch doctor`: whether the licences of the hosts have network serial ports in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from portlayer.drivers.findings import Finding
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import PortLayerError

_FEATURE: Final = "serialuri"
_EVALUATION: Final = "eval"
_COSTS: Final = (
    "VMs with network serial ports do not power on: containers need vSphere Enterprise Plus or an evaluation"
)


async def examine(session: Session, hosts: Sequence[Any]) -> Finding:
    """Reads licences; where the account may not, says so."""
    try:
        licences = await _assigned(session, hosts)
    except PortLayerError as error:
        return Finding("licences", "warn", str(error), f"if the hosts lack the feature {_FEATURE}: {_COSTS}")
    if not licences:
        return Finding("licences", "warn", "those of the hosts cannot be seen", f"without {_FEATURE}: {_COSTS}")
    lacking = sorted({str(one.name) for one in licences if not _has_serial_ports(one)})
    if lacking:
        return Finding("licences", "fail", f"no network serial ports with {', '.join(lacking)}", _COSTS)
    names = ", ".join(sorted({str(one.name) for one in licences}))
    ends = any(one.editionKey == _EVALUATION for one in licences)
    costs = "when the evaluation ends, hosts are disconnected and VMs do not power on" if ends else ""
    return Finding("licences", "ok", f"network serial ports with {names}", costs)


async def _assigned(session: Session, hosts: Sequence[Any]) -> list[Any]:
    """The LicenseInfo of each host."""
    manager, path = session.content.licenseManager, "licenseAssignmentManager"
    assigner = (await session.read([manager], [path])).get(manager, {}).get(path)
    if assigner is None:  # an ESXi by itself
        return list((await session.read([manager], ["licenses"])).get(manager, {}).get("licenses", ()))
    ids = {host._moId for host in hosts}
    answers = await session.call(assigner.QueryAssignedLicenses, None, what="reading licences")
    return [one.assignedLicense for one in answers or () if one.entityId in ids]


def _has_serial_ports(licence: Any) -> bool:
    if licence.editionKey == _EVALUATION:
        return True
    features = [one.value for one in licence.properties or () if one.key == "feature"]
    return any(str(getattr(one, "key", "")).partition(":")[0] == _FEATURE for one in features)
