"""What vSphere is asked to make, without one: devices, keys and backings, names, and whether a VM is still as made."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from pyVmomi import SoapAdapter, vim

from portlayer.drivers.base import MachineSpec
from portlayer.drivers.vsphere import as_made, config_spec
from portlayer.drivers.vsphere.config_spec import Disks, Hardware, Parent
from portlayer.drivers.vsphere.extra_config import Boot
from portlayer.errors import ExhaustedError

MIB = 1 << 20
UUID = "0a" * 4 + "-0a0a-0a0a-0a0a-" + "0a" * 6
SPEC = MachineSpec("ab" * 32, "web", 512 * MIB + 1, 3, "disk", 96 * MIB, "nginx:latest", ("bridge", "web"))
BOOT = Boot("[images] vch/guest/guest.iso", "telnet://10.0.0.1:2377")
DISKS = Disks(Parent("[images] vch/images/disk.vmdk", 3 * MIB), "[vms] vch/empties/96.vmdk", "[vms] vch/disks/ab.vmdk")
Device: Any = vim.vm.device
Card = Device.VirtualEthernetCard


def standard(name: str = "VM Network", network: str = "network-7") -> Any:
    return Card.NetworkBackingInfo(deviceName=name, network=vim.Network(network))


def distributed(group: str = "dvportgroup-1", **port: Any) -> Any:
    connection = vim.dvs.PortConnection(switchUuid="50 2c", portgroupKey=group, **port)
    return Card.DistributedVirtualPortBackingInfo(port=connection)


def opaque(segment: str = "segment-1") -> Any:
    return Card.OpaqueNetworkBackingInfo(opaqueNetworkId=segment, opaqueNetworkType="nsx.LogicalSwitch")


def described(*networks: Any, spec: MachineSpec = SPEC) -> Any:
    config = vim.vm.ConfigSpec(annotation="for people")
    hardware = Hardware("vms", BOOT, "c" * 32, networks)
    config_spec.describe(config, spec, "web-abab", hardware, DISKS, UUID, {"guestinfo.vch.id": spec.id})
    return config


def of_kind(config: Any, kind: Any) -> list[Any]:
    return [change.device for change in config.deviceChange if isinstance(change.device, kind)]


def made(*networks: Any) -> dict[str, Any]:
    """What vSphere reports of a VM that was made with them."""
    config = described(*networks)
    return {
        "config.hardware.device": [change.device for change in config.deviceChange],
        "config.hardware.memoryMB": config.memoryMB,
        "config.hardware.numCPU": config.numCPUs,
        "config.cpuAllocation": vim.ResourceAllocationInfo(limit=-1, reservation=0, shares=shares("normal", 3000)),
        "config.memoryAllocation": vim.ResourceAllocationInfo(limit=-1, reservation=0, shares=shares("normal", 5130)),
    }


def shares(level: str, number: int) -> vim.SharesInfo:
    return vim.SharesInfo(level=level, shares=number)


def test_a_containers_vm() -> None:
    config = described(standard())
    assert (config.name, config.annotation) == ("web-abab", "for people")
    assert (config.memoryMB, config.numCPUs, config.numCoresPerSocket) == (516, 3, 1)  # no less than was asked for
    assert (config.instanceUuid, config.uuid) == (UUID, UUID)
    assert (config.firmware, config.guestId, config.version) == ("bios", "vmwarePhoton64Guest", "vmx-14")
    assert config.files.vmPathName == "[vms]"
    assert [type(one) for one in config.bootOptions.bootOrder] == [vim.vm.BootOptions.BootableCdromDevice]
    extra = {option.key: option.value for option in config.extraConfig}
    assert extra["guestinfo.vch.id"] == SPEC.id
    assert extra["isolation.tools.setInfo.disable"] == "TRUE"
    assert extra["answer.msg.serial.file.open"] == "Append"
    assert extra["uuid.action"] == "keep"
    assert {change.operation for change in config.deviceChange} == {"add"}
    SoapAdapter.SerializeToStr(config)  # every value has its type


@pytest.mark.parametrize(("asked", "given"), [(493 * MIB, 496), (494 * MIB, 496), (496 * MIB, 496), (497 * MIB, 500)])
def test_memory_is_a_multiple_of_four_mebibytes(asked: int, given: int) -> None:
    """vSphere powers no other VM on."""
    assert described(spec=replace(SPEC, memory_bytes=asked)).memoryMB == given


def test_devices_have_keys_of_their_own_and_stand_at_their_controllers() -> None:
    config = described(standard(), distributed())
    devices = [change.device for change in config.deviceChange]
    assert max(Counter(device.key for device in devices).values()) == 1
    assert all(device.key < 0 for device in devices)
    [scsi] = of_kind(config, Device.ParaVirtualSCSIController)
    assert (scsi.busNumber, scsi.sharedBus) == (0, "noSharing")
    assert {disk.controllerKey for disk in of_kind(config, Device.VirtualDisk)} == {scsi.key}
    assert [disk.unitNumber for disk in of_kind(config, Device.VirtualDisk)] == [0, 1]
    assert config_spec.scsi_controller_key(devices) == scsi.key
    assert [config_spec.disk_at(devices, unit).unitNumber for unit in (0, 1)] == [0, 1]
    assert config_spec.disk_at(devices, 2) is None
    assert (config_spec.scsi_controller_key([]), config_spec.disk_at([], 0)) == (None, None)


def test_disks_are_children_of_shared_ones() -> None:
    config = described()
    image, writable = of_kind(config, Device.VirtualDisk)
    assert (image.backing.parent.fileName, image.backing.diskMode) == (DISKS.image.path, "independent_nonpersistent")
    assert (image.backing.fileName, image.capacityInKB) == (
        "",
        3 << 10,
    )  # in the VM's directory, as large as its parent
    assert (writable.backing.parent.fileName, writable.backing.diskMode) == (DISKS.empty, "independent_persistent")
    assert (writable.backing.fileName, writable.capacityInKB) == (DISKS.writable, 96 << 10)
    files = [one.fileOperation for one in config.deviceChange if isinstance(one.device, Device.VirtualDisk)]
    assert files == ["create", "create"]
    assert all(
        one.fileOperation is None for one in config.deviceChange if not isinstance(one.device, Device.VirtualDisk)
    )


def test_cd_console_and_channel() -> None:
    config = described()
    [cdrom], [sata] = of_kind(config, Device.VirtualCdrom), of_kind(config, Device.VirtualAHCIController)
    assert (cdrom.backing.fileName, cdrom.controllerKey) == (BOOT.guest_iso, sata.key)
    assert cdrom.connectable.startConnected
    console, channel = of_kind(config, Device.VirtualSerialPort)
    assert (console.unitNumber, console.backing.fileName) == (0, "[vms] web-abab/console.log")
    assert (channel.unitNumber, channel.backing.serviceURI) == (1, "vch://" + "c" * 32)
    assert (channel.backing.direction, channel.backing.proxyURI) == ("client", BOOT.proxy_uri)
    assert (config_spec.is_channel(console), config_spec.is_channel(channel)) == (False, True)
    assert not config_spec.is_channel(cdrom)


def test_a_card_for_each_network_in_their_order() -> None:
    assert of_kind(described(), Card) == []
    backings = [standard(), distributed(), opaque()]
    config = described(*backings)
    found = of_kind(config, Card)
    assert [type(card) for card in found] == [Device.VirtualVmxnet3] * 3
    assert [card.backing for card in found] == backings
    assert [card.key for card in found] == [-7, -8, -9]
    assert all(card.connectable.startConnected and not card.connectable.allowGuestControl for card in found)
    assert config_spec.cards([change.device for change in config.deviceChange]) == found


def test_there_is_room_for_ten_cards() -> None:
    assert len(config_spec.nics([standard()] * 10)) == 10
    with pytest.raises(ExhaustedError, match="room for 10 network cards, not for 11"):
        config_spec.nics([standard()] * 11)


def test_a_template_has_neither_disks_nor_cards() -> None:
    hardware = Hardware("vms", BOOT, "d" * 32)
    config = config_spec.parent(256 * MIB, 2, "vch-template", hardware, UUID, {"vch.template": "{}"}, "a template")
    assert (config.memoryMB, config.numCPUs, config.annotation) == (256, 2, "a template")
    kinds = [type(change.device) for change in config.deviceChange]
    assert kinds == [
        Device.ParaVirtualSCSIController,
        Device.VirtualAHCIController,
        Device.VirtualCdrom,
        Device.VirtualSerialPort,
        Device.VirtualSerialPort,
    ]


@pytest.mark.parametrize(
    ("template", "name", "expected"),
    [
        ("{name}-{id}", "web", "web-" + "ab" * 6),
        ("{id}", "web", "ab" * 6),
        ("{name}-{id}", "a/b\\c%d", "a_b_c_d-" + "ab" * 6),
        ("{name}-{id}", "x" * 200, "x" * 67 + "-" + "ab" * 6),
        ("vch {id} {name}", "x" * 200, f"vch {'ab' * 6} " + "x" * 63),
    ],
)
def test_names_in_vcenter(template: str, name: str, expected: str) -> None:
    found = config_spec.display_name(template, name, SPEC.id)
    assert found == expected
    assert len(found) <= 80


def test_a_disk_that_moves() -> None:
    backing = config_spec.backing_at("[vms] vch/disks/ab.vmdk")
    added = config_spec.existing_disk(backing, 1000)
    assert (added.operation, added.fileOperation) == ("add", None)
    assert (added.device.controllerKey, added.device.unitNumber) == (1000, 1)
    assert (added.device.backing.fileName, added.device.backing.diskMode) == (DISKS.writable, "independent_persistent")
    off = config_spec.taken_off(added.device)
    assert (off.operation, off.fileOperation) == ("remove", None)


def test_children_are_disks_that_share_what_they_began_as() -> None:
    devices = [change.device for change in described().deviceChange]
    assert [one.unitNumber for one in config_spec.children(devices)] == [0, 1]
    flat = Device.VirtualDisk.FlatVer2BackingInfo
    own = Device.VirtualDisk(key=1, backing=flat(fileName="[vms] own.vmdk", diskMode="persistent"))
    base = flat(fileName="[vms] own.vmdk", diskMode="persistent")
    snapshot = flat(fileName="[vms] own-000001.vmdk", diskMode="persistent", parent=base)
    assert config_spec.children([own, Device.VirtualDisk(key=2, backing=snapshot)]) == []


def test_what_a_boot_changes() -> None:
    devices = made(standard())["config.hardware.device"]
    [cdrom] = [one for one in devices if isinstance(one, Device.VirtualCdrom)]
    cdrom.backing, cdrom.connectable = None, None  # as somebody left it who ejected it
    newer = Boot("[images] vch/guest/newer.iso", "telnets://10.0.0.2:9")
    edits = config_spec.reboot_edits(devices, newer)
    assert [edit.operation for edit in edits] == ["edit", "edit"]
    assert edits[0].device is cdrom
    assert (cdrom.backing.fileName, cdrom.connectable.startConnected) == (newer.guest_iso, True)
    channel = edits[1].device
    assert (channel.backing.proxyURI, channel.backing.serviceURI) == (newer.proxy_uri, "vch://" + "c" * 32)


def test_plugging_a_device_in_and_out() -> None:
    [channel] = [one for one in made()["config.hardware.device"] if config_spec.is_channel(one)]
    for connected in (False, True):
        edit = config_spec.connection_edit(channel, connected=connected)
        assert (edit.operation, edit.device) == ("edit", channel)
        assert (channel.connectable.connected, channel.connectable.startConnected) == (connected, True)


# --- whether somebody has changed it


def test_a_vm_that_nobody_has_touched_is_as_made() -> None:
    networks = (standard(), distributed(), opaque())
    found = made(*networks)
    assert as_made.is_as_made(found, SPEC, networks)
    del found["config.cpuAllocation"]  # which the account may not see
    assert as_made.is_as_made(found, SPEC, networks)
    assert as_made.is_as_made(made(), SPEC, ())


def test_a_vm_that_cannot_be_read_is_not_as_made() -> None:
    assert not as_made.is_as_made({}, SPEC, ())


def test_a_vm_that_was_a_clone_is_as_made() -> None:
    """It has the size of its template, which is a power of two."""
    assert as_made.is_as_made(made() | {"config.hardware.memoryMB": 1024}, SPEC, ())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("config.hardware.memoryMB", 2048),
        ("config.hardware.memoryMB", 512),
        ("config.hardware.numCPU", 4),
        ("config.cpuAllocation", vim.ResourceAllocationInfo(limit=500)),
        ("config.memoryAllocation", vim.ResourceAllocationInfo(limit=-1, reservation=64)),
        ("config.cpuAllocation", vim.ResourceAllocationInfo(limit=-1, reservation=0, shares=shares("high", 6000))),
    ],
)
def test_sizes_and_shares_that_were_changed(path: str, value: Any) -> None:
    assert not as_made.is_as_made(made() | {path: value}, SPEC, ())


def test_a_disk_that_was_added() -> None:
    found = made()
    found["config.hardware.device"].append(Device.VirtualDisk(key=2002, controllerKey=-1, unitNumber=2))
    assert not as_made.is_as_made(found, SPEC, ())


@pytest.mark.parametrize(
    ("now", "before"),
    [
        ((), (standard(),)),
        ((standard(),), ()),
        ((standard(),), (standard(), standard())),
        ((standard(), distributed()), (distributed(), standard())),
        ((standard("VM Network", "network-8"),), (standard(),)),
        ((distributed("dvportgroup-2"),), (distributed(),)),
        ((opaque("segment-2"),), (opaque(),)),
        ((Card.NetworkBackingInfo(deviceName="other"),), (standard(),)),
    ],
)
def test_cards_that_were_changed(now: tuple[Any, ...], before: tuple[Any, ...]) -> None:
    assert not as_made.is_as_made(made(*now), SPEC, before)


@pytest.mark.parametrize(
    ("now", "before"),
    [
        (distributed(portKey="12", connectionCookie=7), distributed()),
        (standard("the same port group, renamed"), standard()),
        (Card.NetworkBackingInfo(deviceName="VM Network"), standard()),
    ],
)
def test_what_vsphere_fills_in_is_no_change(now: Any, before: Any) -> None:
    assert as_made.is_as_made(made(now), SPEC, (before,))
