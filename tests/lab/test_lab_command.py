"""QEMU's command line made from what vcsim keeps of a VM."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import lab_command
import pytest
from lab_estate import (
    DATASTORE,
    IMAGE,
    Estate,
    add,
    agent_port,
    cdrom,
    console,
    delta_disk,
    disk,
    image_disk,
    nic,
)
from lab_hardware import FilePort, Hardware, LabError, NetworkPort, hardware_of, local_path
from lab_machine import as_forked
from pyVmomi import vim

BLOCK = bytes(1 << 20)


@pytest.fixture
def hardware(estate: Estate) -> Hardware:
    """Of a container's VM."""
    estate.make_disk(f"[{DATASTORE}] vch/image.vmdk", BLOCK)
    estate.make_disk(f"[{DATASTORE}] vch/empty.vmdk", BLOCK)
    machine = estate.create(
        "web",
        image_disk(),
        delta_disk("web"),
        cdrom(),
        console("web"),
        agent_port("vch://00", "telnet://127.0.0.1:2377"),
        nic(),
    )
    return hardware_of(estate.values(machine), {DATASTORE: estate.directory})


def command_of(hardware: Hardware) -> list[str]:
    return lab_command.machine_command(hardware, qmp_fd=7, port_fds=[8], variables=Path("/run/efi,variables"))


def options(argv: list[str], name: str) -> list[str]:
    return [value for option, value in itertools.pairwise(argv) if option == name]


def test_hardware_of_a_container(hardware: Hardware, estate: Estate) -> None:
    root = estate.directory
    assert (hardware.cpus, hardware.memory_mb, hardware.efi) == (1, 256, False)
    assert hardware.cdrom == root / "vch/guest.iso"
    assert [(one.place, one.chain, one.thrown_away) for one in hardware.disks] == [
        ((0, 0), (root / "vch/image.vmdk",), True),
        ((0, 1), (root / "web/writable.vmdk", root / "vch/empty.vmdk"), False),
    ]
    assert hardware.ports == (
        FilePort(root / "web/console.log"),
        NetworkPort("vch://00", "telnet://127.0.0.1:2377"),
    )
    assert [one.unit for one in hardware.nics] == [7]


def test_command_of_a_container(hardware: Hardware, estate: Estate) -> None:
    argv = command_of(hardware)
    devices = options(argv, "-device")
    assert options(argv, "-m") == ["256M"]
    assert "pvscsi,id=scsi0,addr=0x4" in devices
    assert [word for word in devices if word.startswith("scsi-hd")] == [
        "scsi-hd,id=disk-0-0,drive=disk-0-0-file,bus=scsi0.0,scsi-id=0,lun=0,vendor=VMware,product=Virtual disk",
        "scsi-hd,id=disk-0-1,drive=disk-0-1-file,bus=scsi0.0,scsi-id=1,lun=0,vendor=VMware,product=Virtual disk",
    ]
    image, writable = (word for word in options(argv, "-drive") if word.startswith("if=none,id=disk"))
    assert f"file={estate.directory}/vch/image-flat.vmdk,snapshot=on" in image
    assert f"file={estate.directory}/web/writable-flat.vmdk,snapshot=off" in writable
    assert [word for word in devices if word.startswith("isa-serial")] == [
        "isa-serial,index=0,chardev=port0",
        "isa-serial,index=1,chardev=port1",
    ]
    assert f"file,id=port0,path={estate.directory}/web/console.log,append=off" in options(argv, "-chardev")
    assert "socket,id=port1,fd=8" in options(argv, "-chardev")
    assert any(word.startswith("vmxnet3,") and word.endswith(",addr=0x10") for word in devices)
    assert any(word.startswith("ide-cd,") and "bootindex=0" in word for word in devices)


def test_efi_has_firmware_and_variables_of_its_own(hardware: Hardware) -> None:
    flash = [word for word in options(command_of(replace(hardware, efi=True)), "-drive") if "pflash" in word]
    assert "readonly=on" in flash[0]
    assert flash[1].endswith("file=/run/efi,,variables")


def test_commas_in_names_are_no_options(hardware: Hardware) -> None:
    argv = command_of(replace(hardware, cdrom=Path("/a,readonly=off.iso")))
    assert any(word.endswith("file=/a,,readonly=off.iso") for word in options(argv, "-drive"))


def test_a_fork_is_shaped_like_its_source(hardware: Hardware) -> None:
    source = replace(hardware, name="parent", disks=(), memory_mb=512)
    forked = as_forked(hardware, source)
    assert (forked.name, forked.memory_mb, forked.disks) == ("web", 512, ())
    assert forked.ports == hardware.ports

    own = as_forked(replace(hardware, disks=hardware.disks[1:]), hardware)
    assert own.disks[0].thrown_away, "the source's image disk, which the fork does not have"
    assert own.disks[1] == hardware.disks[1]


def test_serial_files_are_appended_to_when_the_question_is_answered(estate: Estate) -> None:
    machine = estate.create("told", console("told"), **{"answer.msg.serial.file.open": "Append"})
    hardware = hardware_of(estate.values(machine), {DATASTORE: estate.directory})
    argv = lab_command.machine_command(hardware, qmp_fd=7, port_fds=[], variables=Path("/run/v"))
    assert any(word.endswith("append=on") for word in options(argv, "-chardev"))


def test_what_the_lab_cannot_build_is_said(estate: Estate) -> None:
    machine = estate.create("ide")
    values = dict(estate.values(machine))
    estate.make_disk(f"[{DATASTORE}] vch/image.vmdk", BLOCK)
    values["config.hardware.device"] = [disk(0, f"[{DATASTORE}] vch/image.vmdk", key=200)]
    with pytest.raises(LabError, match="controller 200, which is no PVSCSI adapter"):
        hardware_of(values, {DATASTORE: estate.directory})


@pytest.mark.parametrize("path", ["[other] a.iso", "[LocalDS_0] ../../etc/passwd", "a.iso", "[LocalDS_0]"])
def test_paths_outside_of_the_datastores_are_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(LabError):
        local_path(path, {DATASTORE: tmp_path})


def test_a_port_that_is_unplugged_stays_in_the_machine(estate: Estate) -> None:
    port = agent_port("vch://00", "telnet://127.0.0.1:1").device
    port.connectable = vim.vm.device.VirtualDevice.ConnectInfo(
        startConnected=False, connected=False, allowGuestControl=False
    )
    machine = estate.create("quiet", add(port))
    hardware = hardware_of(estate.values(machine), {DATASTORE: estate.directory})
    assert hardware.ports == (NetworkPort("vch://00", "telnet://127.0.0.1:1", plugged_in=False),)
    assert "socket,id=port0,fd=8" in options(command_of(hardware), "-chardev")


def test_a_delta_that_is_thrown_away_is_its_parent(estate: Estate) -> None:
    estate.make_disk(IMAGE, BLOCK)
    child = disk(0, "", mode="independent_nonpersistent", parent=IMAGE)
    machine = estate.create("web", add(child, new_file=True))
    (found,) = hardware_of(estate.values(machine), {DATASTORE: estate.directory}).disks
    assert (found.chain, found.thrown_away) == ((estate.directory / "vch/image.vmdk",), True)
