"""The check that every call of the driver's passes in these tests finds what it is there for."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim, vmodl
from vsphere_strict import found_in

Device: Any = vim.vm.device


def spec(kind: Any, path: str) -> Any:
    collector = vmodl.query.PropertyCollector
    return collector.FilterSpec(propSet=[collector.PropertySpec(type=kind, pathSet=[path])])


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (vim.VirtualMachine, "runtime.powerState"),
        (vim.VirtualMachine, 'config.extraConfig["guestinfo.vch.id"].value'),
        (vim.VirtualMachine, "config.hardware.device[4000].backing"),
        (vim.ClusterComputeResource, "configurationEx"),
        (vim.Task, "info.state"),
    ],
)
def test_properties_that_there_are(kind: Any, path: str) -> None:
    assert not list(found_in(spec(kind, path)))


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (vim.VirtualMachine, "runtime.power"),
        (vim.VirtualMachine, 'config.files["key"].value'),
        (vim.VirtualMachine, "runtime.powerState.name"),
        (vim.ComputeResource, "datastores"),
    ],
)
def test_properties_that_there_are_not(kind: Any, path: str) -> None:
    assert list(found_in([spec(kind, path)])) == [f"{kind.__name__} has no {path}"]


def test_words_of_enumerations() -> None:
    change = Device.VirtualDeviceSpec(operation="add", device=Device.ParaVirtualSCSIController(sharedBus="noSharing"))
    assert not list(found_in(vim.vm.ConfigSpec(deviceChange=[change])))
    change.device.sharedBus = "none"
    change.operation = "insert"
    assert [fault.partition(" is no ")[0] for fault in found_in(vim.vm.ConfigSpec(deviceChange=[change]))] == [
        "'insert'",
        "'none'",
    ]
