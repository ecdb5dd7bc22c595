"""Which block device a disk's name means, on a /sys of files."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from tether import disks


class Machine:
    """A /sys and a /dev with the disks that it is told to have."""

    def __init__(self, root: Path) -> None:
        self.block, self.hosts, self.dev = root / "block", root / "scsi_host", root / "dev"
        for directory in (self.block, self.hosts, self.dev):
            directory.mkdir()

    def host(self, number: int, driver: str) -> None:
        (self.hosts / f"host{number}").mkdir()
        (self.hosts / f"host{number}/proc_name").write_text(f"{driver}\n")

    def scsi(self, name: str, address: str) -> None:
        (self.block / name).mkdir()
        (self.block / name / "device").symlink_to(f"../../../{address}")
        (self.dev / name).touch()

    def virtio(self, name: str, serial: str) -> None:
        (self.block / name).mkdir()
        (self.block / name / "serial").write_text(serial)
        (self.dev / name).touch()

    def path(self, name: str) -> str:
        return str(self.dev / name)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    monkeypatch.setattr(disks, "_BLOCK", str(machine.block))
    monkeypatch.setattr(disks, "_HOSTS", str(machine.hosts))
    monkeypatch.setattr(disks, "_DEV", str(machine.dev))
    monkeypatch.setattr(disks, "_WAIT_S", 0.05)
    monkeypatch.setattr(disks, "_last_seen", {})
    return machine


def test_targets_of_the_pvscsi_controller_alone_count(machine: Machine) -> None:
    machine.host(0, "ata_piix")
    machine.host(2, "vmw_pvscsi")
    machine.scsi("sda", "0:0:0:0")
    machine.scsi("sdb", "2:0:10:0")
    machine.scsi("sdc", "2:0:1:3")  # another LUN
    machine.scsi("sdd", "2:0:1:0")
    machine.scsi("sde", "2:0:0:0")
    machine.virtio("vda", "scsi:1")
    assert disks.find("scsi:0") == machine.path("sde")
    assert disks.find("scsi:1") == machine.path("sdd")
    assert disks.find("scsi:10") == machine.path("sdb")


def test_serial_numbers_mean_what_they_meant(machine: Machine) -> None:
    machine.virtio("vda", "image")
    machine.virtio("vdb", "writable")
    assert disks.find("writable") == machine.path("vdb")


def test_a_disk_that_moves_is_found_where_it_is_now(machine: Machine) -> None:
    machine.host(0, "vmw_pvscsi")
    machine.scsi("sda", "0:0:1:0")
    assert disks.find("scsi:1") == machine.path("sda")
    (machine.block / "sda/device").unlink()
    machine.scsi("sdb", "0:0:1:0")
    assert disks.find("scsi:1") == machine.path("sdb")


def test_a_missing_disk_is_named(machine: Machine) -> None:
    machine.host(0, "vmw_pvscsi")
    machine.scsi("sda", "0:0:1:0")
    (machine.dev / "sda").unlink()  # announced, but without its device file yet
    with pytest.raises(OSError, match="target 1") as caught:
        disks.find("scsi:1")
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(OSError, match="'image'"):
        disks.find("image")


@pytest.mark.parametrize("name", ["scsi:", "scsi:-1", "scsi:1 ", "scsi:256", "scsi:1:0", "scsi:٣", "scsi:00000000001"])
def test_impossible_targets_are_refused_without_waiting(
    machine: Machine, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", pytest.fail)
    with pytest.raises(OSError, match="names no target") as caught:
        disks.find(name)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("shown_early", [False, True])
def test_an_announced_disk_is_waited_for(machine: Machine, monkeypatch: pytest.MonkeyPatch, shown_early: bool) -> None:
    """A disk has its entry and its file before it can be opened, and is announced when it can."""
    machine.host(0, "vmw_pvscsi")
    if shown_early:
        machine.scsi("sda", "0:0:0:0")
        (machine.dev / "sda").unlink()
        not_open_yet = socket.socket(socket.AF_UNIX)  # opening its file is ENXIO, as of a disk that is on its way
        monkeypatch.chdir(machine.dev)
        not_open_yet.bind("sda")
        not_open_yet.close()
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    class Announcements(socket.socket):
        """The kernel's, which tell of the disk with the second message."""

        heard = 0

        def __init__(self, *_: object) -> None:
            super().__init__(fileno=os.dup(receiver.fileno()))

        def bind(self, address: object) -> None:
            assert address == (0, 1)

        def recv(self, size: int, flags: int = 0) -> bytes:
            data = super().recv(size, flags)
            Announcements.heard += 1
            if Announcements.heard == 2 and shown_early:
                (machine.dev / "sda").unlink()
                (machine.dev / "sda").touch()
            elif Announcements.heard == 2:
                machine.scsi("sda", "0:0:0:0")
            return data

    monkeypatch.setattr(disks, "_WAIT_S", 10.0)
    monkeypatch.setattr(disks.socket, "socket", Announcements)
    sender.send(b"add@/devices/other")
    sender.send(b"add@/devices/disk")
    assert disks.find("scsi:0") == machine.path("sda")
    assert Announcements.heard == 2
    sender.close()
    receiver.close()


def test_the_controller_is_asked_for_a_disk_that_is_not_there(machine: Machine) -> None:
    machine.host(0, "ata_piix")
    machine.host(1, "vmw_pvscsi")
    with pytest.raises(OSError, match="target 3"):
        disks.find("scsi:3")
    assert (machine.hosts / "host1/scan").read_text() == "0 3 0"
    assert not (machine.hosts / "host0/scan").exists()


def test_the_controller_is_asked_again_as_long_as_nothing_announces_the_disk(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is attached just after it was asked for: a restored machine announces none of itself."""
    machine.host(0, "vmw_pvscsi")
    asked: list[int] = []

    def ask(target: int) -> None:
        asked.append(target)
        if len(asked) == 3:
            machine.scsi("sda", "0:0:2:0")

    monkeypatch.setattr(disks, "_ask_for", ask)
    monkeypatch.setattr(disks, "_ASK_AGAIN_S", 0.01)
    monkeypatch.setattr(disks, "_WAIT_S", 60.0)
    assert disks.find("scsi:2") == machine.path("sda")
    assert asked == [2, 2, 2]


def test_disks_at_targets_are_let_go_of_once(machine: Machine) -> None:
    machine.host(0, "vmw_pvscsi")
    machine.scsi("sda", "0:0:0:0")
    machine.virtio("vda", "image")
    (machine.block / "sda/device").resolve().mkdir()
    disks.find("scsi:0")
    disks.find("image")
    disks.let_go()
    delete = machine.block / "sda/device/delete"
    assert delete.read_text() == "1"
    delete.unlink()
    disks.let_go()
    assert not delete.exists()
    assert not (machine.block / "vda/device").exists()
