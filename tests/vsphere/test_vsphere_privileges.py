"""The least that an account must be allowed: ids that exist, all that is called for, and what documentation says."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim
from vsphere_sessions import opened
from vsphere_simulator import Simulator

from portlayer.drivers.vsphere import privileges
from portlayer.drivers.vsphere.privileges import LEAST

ROOT = Path(__file__).resolve().parents[2]
DRIVER = ROOT / "portlayer" / "drivers" / "vsphere"
# Every account has these where it may see an object at all.
ALWAYS = {"System.View", "System.Read", "System.Anonymous"}
# Calls of other things that are called as a method of vSphere is: of pyvmomi's connections.
OTHERS = {"DropConnections"}
KINDS = (
    *(vim.Folder, vim.Datacenter, vim.VirtualMachine, vim.ResourcePool, vim.ClusterComputeResource, vim.Datastore),
    *(vim.FileManager, vim.VirtualDiskManager, vim.ExtensionManager, vim.DatastoreNamespaceManager, vim.HttpNfcLease),
    *(vim.LicenseAssignmentManager, vim.AuthorizationManager, vim.host.DatastoreBrowser),
)


async def test_ids_are_vspheres(simulator: Simulator) -> None:
    async with opened(simulator) as session:
        manager = session.content.authorizationManager
        roles = (await session.read([manager], ["roleList"]))[manager]["roleList"]
    assert {one.id for one in LEAST} <= {privilege for role in roles for privilege in role.privilege}


def called() -> set[str]:
    """Names of vSphere's methods that the driver calls, as attributes."""
    names: set[str] = set()
    for path in DRIVER.rglob("*.py"):
        names |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    return names - OTHERS


def needed(names: set[str]) -> dict[str, str]:
    """The privileges that vSphere's own tables name for them, with the method."""
    found: dict[str, str] = {}
    for kind in KINDS:
        for attribute in dir(kind):
            info: Any = getattr(getattr(kind, attribute, None), "info", None)
            if info is not None and info.wsdlName in names and info.privId:
                found[info.privId] = f"{kind.__name__}.{info.wsdlName}"
    return found


def test_what_the_driver_calls_is_covered() -> None:
    found = needed(called())
    assert {"VirtualMachine.Inventory.Create", "VirtualMachine.Interact.PowerOn", "Folder.Create"} <= set(found)
    missing = {privilege: method for privilege, method in found.items() if privilege not in ALWAYS}
    assert not missing.keys() - {one.id for one in LEAST}, missing


def test_documentation_has_the_table() -> None:
    text = (ROOT / "docs" / "vsphere.md").read_text()
    assert privileges.table() in text


@pytest.mark.parametrize("one", LEAST, ids=lambda one: one.id)
def test_ids_and_labels_belong_together(one: privileges.Privilege) -> None:
    group = {"VirtualMachine": "Virtual machine", "VApp": "vApp"}.get(one.id.split(".")[0], one.id.split(".")[0])
    assert one.label.split(" > ")[0] == group
