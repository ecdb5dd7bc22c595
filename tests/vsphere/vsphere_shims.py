"""What vCenter does and the simulator does not, done between them. README.md says of each what either does.

A shim never answers for the simulator where that would have been right.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import vsphere_vsan
from pyVmomi import vim, vmodl
from vsphere_soap import Call, Reply, fault_reply, task_reply

if TYPE_CHECKING:
    from vsphere_front import Forward, Front

# The lab ESXi finds there which machine a clone begins as.
FORKED_FROM = "lab.forkedFrom"
_SOURCE_PATHS = (
    "parent",
    "resourcePool",
    "runtime.powerState",
    "runtime.host",
    "config.name",
    "config.guestId",
    "config.version",
    "config.firmware",
    "config.annotation",
    "config.files.vmPathName",
    "config.hardware",
    "config.extraConfig",
)
# The simulator gives every machine the others by itself.
_CLONED = (
    vim.vm.device.VirtualSCSIController,
    vim.vm.device.VirtualAHCIController,
    vim.vm.device.VirtualDisk,
    vim.vm.device.VirtualCdrom,
    vim.vm.device.VirtualEthernetCard,
    vim.vm.device.VirtualSerialPort,
)
_PRIVILEGES = {
    "CreateVM_Task": "VirtualMachine.Inventory.Create",
    "Destroy_Task": "VirtualMachine.Inventory.Delete",
    "InstantClone_Task": "VirtualMachine.Inventory.CreateFromExisting",
    "PowerOnVM_Task": "VirtualMachine.Interact.PowerOn",
    "PowerOffVM_Task": "VirtualMachine.Interact.PowerOff",
    "ReconfigVM_Task": "VirtualMachine.Config.AdvancedConfig",
    "CreateVirtualDisk_Task": "Datastore.FileManagement",
    "CreateResourcePool": "Resource.CreatePool",
    "CreateFolder": "Folder.Create",
}


def privilege(call: Call) -> str | None:
    """The privilege that a call needs, of those that tests may take away."""
    return _PRIVILEGES.get(call.method)


async def unique_name(front: Front, call: Call, forward: Forward) -> Reply:
    """A name that is taken in the folder ends the task with DuplicateName."""
    cloned = call.method == "CloneVM_Task"
    folder = call.text("folder") if cloned else call.target
    name = call.text("name") if cloned else call.text("config", "name")
    lock = front.lock(f"{folder} {name}")
    await lock.acquire()
    reply = None
    try:
        taken = await front.controlled(front.control.child, folder, name) if name else None
        if taken is not None:
            fault = vim.fault.DuplicateName(msg=f"The name '{name}' already exists.", name=name, object=taken)
            return await _failed(front, call, fault)
        reply = await forward()
        return reply
    finally:
        front.spawn(_release(front, lock.release, reply))


async def guarded_change(front: Front, call: Call, forward: Forward) -> Reply:
    """A change that names another version than the machine's ends with ConcurrentAccess."""
    wanted = call.text("spec", "changeVersion")
    lock = front.lock(call.target)
    await lock.acquire()
    reply = None
    try:
        if wanted and wanted != await front.controlled(_change_version, front, call.target):
            words = "Cannot complete operation due to concurrent modification by another operation."
            return await _failed(front, call, vim.fault.ConcurrentAccess(msg=words))
        reply = await forward()
        return reply
    finally:
        front.spawn(_release(front, lock.release, reply))


async def instant_clone(front: Front, call: Call, forward: Forward) -> Reply:
    """Makes a machine with the source's hardware, says in its extraConfig what it is a clone of, switches it on."""
    spec = call.decoded("spec", vim.vm.InstantCloneSpec)
    source = front.control.machine(call.target)
    try:
        task = await front.controlled(front.control.new_task, source)
    except vmodl.fault.ManagedObjectNotFound as fault:
        return fault_reply(fault)
    front.spawn(front.controlled(_clone, front, source, spec, task))
    return task_reply(call.method, task._moId)


async def destroy(front: Front, call: Call, forward: Forward) -> Reply:
    """With the disks of a VM goes what they are children of, unless another VM has a child of that, too."""
    try:
        parents = await front.controlled(front.control.unshared_parents, call.target)
    except vmodl.fault.ManagedObjectNotFound:
        parents = set()
    reply = await forward()
    if parents:
        await front.ended(reply)
        for parent in parents:
            store, _, path = parent.removeprefix("[").partition("] ")
            disk = front.simulator.datastore_dir(store) / path
            disk.unlink(missing_ok=True)
            disk.with_name(f"{disk.stem}-flat.vmdk").unlink(missing_ok=True)
    return reply


def _clone(front: Front, source: vim.VirtualMachine, spec: Any, task: vim.Task) -> None:
    control = front.control
    try:
        _check_edits(spec.location)
        values = control.read(source, *_SOURCE_PATHS)
        folder = spec.location.folder or values["parent"]
        pool = spec.location.pool or values["resourcePool"]
        if values["runtime.powerState"] != vim.VirtualMachine.PowerState.poweredOn:
            raise vim.fault.InvalidPowerState(
                msg="The source is not powered on.",
                requestedState=vim.VirtualMachine.PowerState.poweredOn,
                existingState=values["runtime.powerState"],
            )
        taken = control.child(folder._moId, spec.name)
        if taken is not None:
            raise vim.fault.DuplicateName(msg=f"The name '{spec.name}' exists.", name=spec.name, object=taken)
        machine = control.create(folder, _config(source, spec, values), pool, values["runtime.host"])
    except vmodl.MethodFault as fault:
        control.fail(task, fault)
    else:
        control.succeed(task, machine)


def _check_edits(location: Any) -> None:
    """Network adapters and ports that are backed by files may be changed on the way, nothing else."""
    for index, change in enumerate(location.deviceChange):
        device = change.device
        to_file = isinstance(device.backing, vim.vm.device.VirtualDevice.FileBackingInfo)
        port = isinstance(device, (vim.vm.device.VirtualSerialPort, vim.vm.device.VirtualParallelPort)) and to_file
        if change.operation != "edit" or not (port or isinstance(device, vim.vm.device.VirtualEthernetCard)):
            words = "An instant clone may only change network adapters, and ports that are backed by files."
            raise vim.fault.InvalidDeviceSpec(msg=words, property="location.deviceChange", deviceIndex=index)


def _config(source: vim.VirtualMachine, spec: Any, values: dict[str, Any]) -> Any:
    hardware = values["config.hardware"]
    edited = {change.device.key: change.device for change in spec.location.deviceChange}
    options = {option.key: option.value for option in values["config.extraConfig"]}
    options |= {option.key: option.value for option in spec.config}
    options[FORKED_FROM] = source._moId
    return vim.vm.ConfigSpec(
        name=spec.name,
        uuid=spec.biosUuid or str(uuid.uuid4()),
        instanceUuid=str(uuid.uuid4()),
        guestId=values["config.guestId"],
        version=values["config.version"],
        firmware=values.get("config.firmware"),
        annotation=values.get("config.annotation"),
        numCPUs=hardware.numCPU,
        numCoresPerSocket=hardware.numCoresPerSocket,
        memoryMB=hardware.memoryMB,
        files=vim.vm.FileInfo(vmPathName=_datastore(spec.location, values)),
        extraConfig=[vim.option.OptionValue(key=key, value=value) for key, value in options.items()],
        deviceChange=[_device(edited.get(one.key, one)) for one in hardware.device if isinstance(one, _CLONED)],
    )


def _device(device: Any) -> Any:
    """The source's device in the clone: a NIC with an address of its own, a disk that goes on from the source's."""
    change = vim.vm.device.VirtualDeviceSpec(operation="add", device=device)
    if isinstance(device, vim.vm.device.VirtualEthernetCard) and device.addressType != "manual":
        device.macAddress = None
    persists = isinstance(device, vim.vm.device.VirtualDisk) and not device.backing.diskMode.endswith("nonpersistent")
    if persists:
        parent = device.backing
        device.backing = type(parent)(fileName="", diskMode=parent.diskMode, parent=parent, thinProvisioned=True)
        change.fileOperation = "create"
    return change


def _datastore(location: Any, values: dict[str, Any]) -> str:
    if location.datastore is not None:
        return f"[{location.datastore.name}]"
    return str(values["config.files.vmPathName"]).partition("]")[0] + "]"


def _change_version(front: Front, machine: str) -> str | None:
    try:
        version: str | None = front.control.read(front.control.machine(machine), "config.changeVersion").get(
            "config.changeVersion"
        )
    except vmodl.fault.ManagedObjectNotFound:
        return None
    return version


async def _failed(front: Front, call: Call, fault: vmodl.MethodFault) -> Reply:
    entity = front.control.managed(call.kind, call.target)
    return task_reply(call.method, await front.controlled(front.control.failed_task, entity, fault))


async def _release(front: Front, release: Callable[[], None], reply: Reply | None) -> None:
    """Once the task has ended: what was checked stays true until then."""
    try:
        if reply is not None:
            await front.ended(reply)
    finally:
        release()


Shim = Callable[["Front", Call, "Forward"], Awaitable[Reply]]
SHIMS: dict[str, Shim] = {
    "CreateVM_Task": unique_name,
    "CloneVM_Task": unique_name,
    "ReconfigVM_Task": guarded_change,
    "InstantClone_Task": instant_clone,
    "Destroy_Task": destroy,
    "MakeDirectory": vsphere_vsan.make_directory,
    "ConvertNamespacePathToUuidPath": vsphere_vsan.convert,
    "ImportVApp": vsphere_vsan.import_vapp,
    "RetrievePropertiesEx": vsphere_vsan.told,
    "WaitForUpdatesEx": vsphere_vsan.told,
}
