"""`vch doctor`: whether vCenter keeps the network backing of serial ports in what it stores of VMs.

By default it does not: its log says "Not persisting the serial port network backings", and after a restart of vCenter
such VMs have shown a port that could neither be connected nor edited (vSphere 6.5; github.com/vmware/vic, issues 3022
and 6473: VIC refused a vCenter without the setting). It counts for VMs that are made afterwards.
"""

from __future__ import annotations

from typing import Final

from pyVmomi import vim

from portlayer.drivers.findings import Finding
from portlayer.drivers.vsphere import faults
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import PortLayerError

KEY: Final = "config.vpxd.SerialPort.PersistNetworkBacking"
_NAME: Final = "serial ports in vCenter"
_COSTS: Final = (
    "containers that are made before it is true may be out of reach once vCenter has restarted; "
    "set it in vCenter > Configure > Advanced Settings"
)


async def examine(session: Session) -> Finding:
    """Reads the setting; where the account may not, says so."""
    try:
        found = await session.call(session.content.setting.QueryOptions, KEY, what=f"reading vCenter's setting {KEY}")
    except PortLayerError as error:
        if not faults.caused_by(error, vim.fault.InvalidName):
            return Finding(_NAME, "warn", str(error), _COSTS)
        found = None
    value = str(found[0].value) if found else "not set"
    if value.lower() == "true":
        return Finding(_NAME, "ok", f"{KEY} is true")
    return Finding(_NAME, "warn", f"{KEY} is {value}", _COSTS)
