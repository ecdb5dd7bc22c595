"""The extension that VMs are marked with, so that vCenter's users see what they belong to."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from pyVmomi import vim

from portlayer.drivers.vsphere import privileges
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import PortLayerError

KEY = "io.virtual-container-host"
VM_TYPE = "container"
_log = logging.getLogger(__name__)


async def register(session: Session, folder: Any) -> vim.ext.ManagedByInfo | None:
    """The mark for VMs in `folder`; None where there are no extensions (ESXi), or the account may not mark VMs.

    Without the privilege for it, a VM with the mark would not be made at all.
    """
    manager = session.content.extensionManager
    if manager is None or not session.is_vcenter:
        return None
    try:
        if await session.call(manager.FindExtension, KEY, what="looking for our extension") is None:
            extension = vim.Extension(
                key=KEY,
                version="1.0",
                description=vim.Description(label="Virtual container host", summary="Containers as virtual machines"),
                lastHeartbeatTime=datetime.now(UTC),
                managedEntityInfo=[
                    vim.ext.ManagedEntityInfo(type=VM_TYPE, description="Container of a virtual container host")
                ],
            )
            await session.call(manager.RegisterExtension, extension, what="registering our extension")
        if await privileges.not_granted(session, [folder], [privileges.MARK]):
            _log.warning("VMs are not marked as managed by this VCH: the account lacks %s", privileges.MARK)
            return None
    except PortLayerError as error:
        _log.warning("VMs are not marked as managed by this VCH: %s", error)
        return None
    return vim.ext.ManagedByInfo(extensionKey=KEY, type=VM_TYPE)
