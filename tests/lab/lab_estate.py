"""VMs as the vSphere driver makes them, by plain pyvmomi: what the lab is tested with before any driver."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab_hardware import PATHS
from lab_inventory import Account
from pyVmomi import vim, vmodl
from vsphere_simulator import HOST, Simulator

DATASTORE = "LocalDS_0"
IMAGE, EMPTY, ISO = f"[{DATASTORE}] vch/image.vmdk", f"[{DATASTORE}] vch/empty.vmdk", f"[{DATASTORE}] vch/guest.iso"
_Device = vim.vm.device
_Collector = vmodl.query.PropertyCollector
_Spec = _Device.VirtualDeviceSpec
_SCSI, _IDE = -1, 200
_TASK_SECONDS = 60.0


class Estate:
    """One data centre of vcsim. Everything blocks; vcsim answers within milliseconds."""

    def __init__(self, simulator: Simulator, instance: vim.ServiceInstance) -> None:
        self.simulator = simulator
        self.content = instance.RetrieveContent()
        self.account = Account(HOST, simulator.port, simulator.user, simulator.password)
        self._center = self.content.rootFolder.childEntity[0]
        self.hosts = self._center.hostFolder.childEntity[0].host
        self._pool = self._center.hostFolder.childEntity[0].resourcePool
        self.directory.joinpath("vch").mkdir(exist_ok=True)

    @property
    def directory(self) -> Path:
        return self.simulator.datastore_dir(DATASTORE)

    def wait(self, task: vim.Task) -> Any:
        """A task's result; raises its fault."""
        deadline = time.monotonic() + _TASK_SECONDS
        while time.monotonic() < deadline:
            values = self._read(task, ["info.state", "info.result", "info.error"])
            if values["info.state"] == vim.TaskInfo.State.error:
                raise values["info.error"]
            if values["info.state"] == vim.TaskInfo.State.success:
                return values.get("info.result")
            time.sleep(0.01)
        raise TimeoutError(f"{task} has not ended")

    def values(self, machine: vim.VirtualMachine) -> Mapping[str, Any]:
        return self._read(machine, list(PATHS))

    def power_state(self, machine: vim.VirtualMachine) -> str:
        return str(self._read(machine, ["runtime.powerState"])["runtime.powerState"])

    def make_disk(self, name: str, content: bytes) -> None:
        """`[LocalDS_0] NAME` with this content: made by VirtualDiskManager, filled as by an upload."""
        self.wait(
            self.content.virtualDiskManager.CreateVirtualDisk_Task(
                name,
                self._center,
                vim.VirtualDiskManager.FileBackedVirtualDiskSpec(
                    diskType="thin", adapterType="lsiLogic", capacityKb=len(content) >> 10
                ),
            )
        )
        path = self.directory / name.partition("] ")[2]
        path.with_name(f"{path.stem}-flat.vmdk").write_bytes(content)

    def copy_disk(self, source: str, target: str) -> None:
        manager = self.content.virtualDiskManager
        self.wait(manager.CopyVirtualDisk_Task(source, self._center, target, self._center, None, False))

    def create(
        self, name: str, *devices: vim.vm.device.VirtualDeviceSpec, firmware: str = "bios", **extra: str
    ) -> vim.VirtualMachine:
        spec = vim.vm.ConfigSpec(
            name=name,
            numCPUs=1,
            memoryMB=256,
            guestId="other5xLinux64Guest",
            firmware=firmware,
            files=vim.vm.FileInfo(vmPathName=f"[{DATASTORE}]"),
            uuid=str(uuid.uuid4()),
            instanceUuid=str(uuid.uuid4()),
            extraConfig=[vim.option.OptionValue(key=key, value=value) for key, value in extra.items()],
            deviceChange=[
                add(_Device.ParaVirtualSCSIController(key=_SCSI, busNumber=0, sharedBus="noSharing")),
                *devices,
            ],
        )
        return self.wait(self._center.vmFolder.CreateVM_Task(spec, self._pool))

    def reconfigure(self, machine: vim.VirtualMachine, *devices: Any, **extra: str) -> None:
        options = [vim.option.OptionValue(key=key.replace("__", "."), value=value) for key, value in extra.items()]
        self.wait(machine.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=list(devices), extraConfig=options)))

    def device(self, machine: vim.VirtualMachine, kind: type, index: int = 0) -> Any:
        devices = self.values(machine)["config.hardware.device"]
        return [one for one in devices if isinstance(one, kind)][index]

    def clear(self) -> None:
        view = self.content.viewManager.CreateContainerView(self.content.rootFolder, [vim.VirtualMachine], True)
        for machine in view.view:
            with contextlib.suppress(vim.fault.InvalidPowerState):
                self.wait(machine.PowerOffVM_Task())
            self.wait(machine.Destroy_Task())
        view.Destroy()
        # vcsim removes their directories by tasks that Destroy_Task does not wait for: not those of the next VMs.
        deadline = time.monotonic() + _TASK_SECONDS
        while [left.name for left in self.directory.iterdir()] != ["vch"]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{[left.name for left in self.directory.iterdir()]} are not removed")
            time.sleep(0.01)
        for file in (self.directory / "vch").iterdir():
            file.unlink()

    def _read(self, thing: Any, paths: list[str]) -> dict[str, Any]:
        spec = _Collector.FilterSpec(
            propSet=[_Collector.PropertySpec(type=type(thing), pathSet=paths)],
            objectSet=[_Collector.ObjectSpec(obj=thing)],
        )
        page = self.content.propertyCollector.RetrievePropertiesEx([spec], _Collector.RetrieveOptions())
        return {item.name: item.val for item in page.objects[0].propSet or ()}


def add(device: Any, *, new_file: bool = False) -> Any:
    return _Spec(operation="add", fileOperation="create" if new_file else None, device=device)


def remove(device: Any) -> Any:
    return _Spec(operation="remove", device=device)


def disk(unit: int, file: str, *, mode: str = "persistent", parent: str | None = None, key: int = _SCSI) -> Any:
    """A disk at a target of the adapter `key`; a new delta when it has a parent."""
    flat = _Device.VirtualDisk.FlatVer2BackingInfo
    backing = flat(fileName=file, diskMode=mode, thinProvisioned=True)
    if parent is not None:
        backing.parent = flat(fileName=parent, diskMode="persistent")
    return _Device.VirtualDisk(key=-10 - unit, controllerKey=key, unitNumber=unit, capacityInKB=0, backing=backing)


def image_disk(unit: int = 0, file: str = IMAGE) -> Any:
    return add(disk(unit, file, mode="independent_nonpersistent"))


def delta_disk(name: str, unit: int = 1) -> Any:
    return add(disk(unit, f"[{DATASTORE}] {name}/writable.vmdk", parent=EMPTY), new_file=True)


def cdrom(file: str = ISO) -> Any:
    return add(
        _Device.VirtualCdrom(
            key=-30,
            controllerKey=_IDE,
            unitNumber=0,
            backing=_Device.VirtualCdrom.IsoBackingInfo(fileName=file),
            connectable=_connected(),
        )
    )


def console(name: str) -> Any:
    """The first serial port: a file."""
    backing = _Device.VirtualSerialPort.FileBackingInfo(fileName=f"[{DATASTORE}] {name}/console.log")
    return add(_Device.VirtualSerialPort(key=-40, yieldOnPoll=True, backing=backing))


def agent_port(service_uri: str, proxy_uri: str) -> Any:
    """The second: dials out."""
    backing = _Device.VirtualSerialPort.URIBackingInfo(direction="client", serviceURI=service_uri, proxyURI=proxy_uri)
    return add(_Device.VirtualSerialPort(key=-41, yieldOnPoll=True, backing=backing))


def nic() -> Any:
    backing = _Device.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network")
    return add(_Device.VirtualVmxnet3(key=-50, backing=backing))


def _connected() -> Any:
    return _Device.VirtualDevice.ConnectInfo(startConnected=True, connected=True, allowGuestControl=False)
