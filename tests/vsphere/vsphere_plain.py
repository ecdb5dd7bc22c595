"""vSphere as plain pyvmomi has it, without the driver: what tests of the bench, and comparisons, speak through."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import Any

from pyVmomi import vim, vmodl

_LOOK_S = 0.01
_END_S = 60.0


def outcome(task: Any) -> Any:
    """The task's result, once it has one. Raises its fault."""
    deadline = time.monotonic() + _END_S
    while time.monotonic() < deadline:
        info = _info(task)
        if info["info.state"] == vim.TaskInfo.State.success:
            return info.get("info.result")
        if info["info.state"] == vim.TaskInfo.State.error:
            raise info["info.error"]
        time.sleep(_LOOK_S)
    raise TimeoutError(f"{task} did not end")


def _info(task: Any) -> dict[str, Any]:
    """Not the whole of it: the simulator's has entities that pyvmomi refuses."""
    collector = vmodl.query.PropertyCollector
    spec = collector.FilterSpec(
        propSet=[collector.PropertySpec(type=vim.Task, pathSet=["info.state", "info.result", "info.error"])],
        objectSet=[collector.ObjectSpec(obj=task)],
    )
    properties = vmodl.query.PropertyCollector("propertyCollector", task._stub)
    found = properties.RetrievePropertiesEx([spec], collector.RetrieveOptions())
    return {item.name: item.val for item in found.objects[0].propSet}


class Plain:
    """The simulator's one datacentre through a session."""

    def __init__(self, instance: vim.ServiceInstance) -> None:
        self.content: Any = instance.RetrieveContent()
        datacenter = self.content.rootFolder.childEntity[0]
        self.folder = datacenter.vmFolder
        self.pool = datacenter.hostFolder.childEntity[0].resourcePool

    def create(self, name: str, devices: list[Any] | None = None, **config: Any) -> Any:
        """A task that makes a machine on LocalDS_0."""
        changes = [vim.vm.device.VirtualDeviceSpec(operation="add", device=device) for device in devices or []]
        spec = vim.vm.ConfigSpec(
            name=name,
            guestId="otherGuest64",
            memoryMB=64,
            numCPUs=1,
            files=vim.vm.FileInfo(vmPathName="[LocalDS_0]"),
            deviceChange=changes,
            **config,
        )
        return self.folder.CreateVM_Task(spec, self.pool)

    def machines(self) -> list[str]:
        """The names of all machines, in whatever folder."""
        return sorted(self.vms())

    def remove(self, name: str) -> None:
        _remove(self.vms()[name])

    def clear(self, kept: Iterable[str] = ()) -> None:
        """Removes all machines but those; some may go by themselves meanwhile."""
        for machine in self._all():
            with contextlib.suppress(vmodl.fault.ManagedObjectNotFound):
                if machine.name not in kept:
                    _remove(machine)

    def vms(self) -> dict[str, Any]:
        """All machines by their names, in whatever folder."""
        return by_name(self._all())

    def _all(self) -> list[Any]:
        view = self.content.viewManager.CreateContainerView(self.content.rootFolder, [vim.VirtualMachine], True)
        try:
            return list(view.view)
        finally:
            view.DestroyView()


def _remove(machine: Any) -> None:
    if machine.runtime.powerState != vim.VirtualMachine.PowerState.poweredOff:
        outcome(machine.PowerOffVM_Task())
    outcome(machine.Destroy_Task())


def by_name(things: Iterable[Any]) -> dict[str, Any]:
    """Those that are still there."""
    found = {}
    for thing in things:
        with contextlib.suppress(vmodl.fault.ManagedObjectNotFound):
            found[thing.name] = thing
    return found


def extra(machine: Any) -> dict[str, str]:
    return {option.key: option.value for option in machine.config.extraConfig}


def serial_port(token: str) -> Any:
    """A network serial port to a concentrator."""
    backing = vim.vm.device.VirtualSerialPort.URIBackingInfo(
        direction="client", serviceURI=f"vch://{token}", proxyURI="telnet://127.0.0.1:2377"
    )
    return vim.vm.device.VirtualSerialPort(key=-1, backing=backing, yieldOnPoll=True)


def nic() -> Any:
    backing = vim.vm.device.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network")
    return vim.vm.device.VirtualVmxnet3(key=-2, backing=backing, addressType="generated")
