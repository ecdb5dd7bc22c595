"""The command line: what a later clone and an administrator rely on."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from qemu_machines import make_spec

from portlayer.drivers.qemu import command
from portlayer.drivers.qemu.command import Host
from portlayer.drivers.qemu.vsock import Address


def build(
    accelerator: str = "tcg", *, sandbox: bool = True, line: command.Line | None = None, **changes: object
) -> list[str]:
    return command.machine_command(
        make_spec(**changes),
        Host("qemu-system-x86_64", accelerator, sandbox, Path("/image, with comma")),
        image_disk=Path('/disks/a,b"c'),
        writable_disk=Path("/m/writable.img"),
        qmp_fd=7,
        line=line or command.SerialLine(8),
    )


def value(argv: list[str], option: str) -> str:
    return argv[argv.index(option) + 1]


def values(argv: list[str], option: str) -> list[str]:
    return [after for before, after in itertools.pairwise(argv) if before == option]


def test_machine_version_is_pinned() -> None:
    assert value(build(), "-machine") == "pc-q35-7.2"


def test_no_user_configuration_and_no_default_devices() -> None:
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(build())


def test_same_spec_gives_the_same_line() -> None:
    assert build() == build()


def test_machine_is_known_by_its_name() -> None:
    assert value(build(), "-name") == f"guest=vch-{make_spec().id}"


@pytest.mark.parametrize(("accelerator", "cpu"), [("tcg", "max,-la57,-erms,-fsrm"), ("kvm", "max")])
def test_accelerator_decides_the_cpu(accelerator: str, cpu: str) -> None:
    assert value(build(accelerator), "-accel") == accelerator
    assert value(build(accelerator), "-cpu") == cpu


def test_sandbox_where_qemu_has_it() -> None:
    assert value(build(), "-sandbox").startswith("on,")
    assert "-sandbox" not in build(sandbox=False)


def test_size() -> None:
    argv = build(memory_bytes=(512 << 20) + 1, cpus=3)
    assert value(argv, "-m") == f"{514 << 20}B"
    assert value(argv, "-smp") == "3"


def test_memory_never_below_what_boots() -> None:
    assert value(build(memory_bytes=6 << 20), "-m") == f"{128 << 20}B"


def test_disks_by_serial_and_odd_paths_kept_whole() -> None:
    argv = build()
    nodes = {node["node-name"]: node for node in map(json.loads, values(argv, "-blockdev"))}
    assert nodes["image-file"]["filename"] == '/disks/a,b"c'
    assert nodes["image-file"]["read-only"] is nodes["image"]["read-only"] is True
    assert nodes["image-file"]["locking"] == "off"
    assert "locking" not in nodes["writable-file"]
    assert (nodes["writable"]["discard"], nodes["writable"]["detect-zeroes"]) == ("unmap", "unmap")
    disks = [device for device in values(argv, "-device") if device.startswith("virtio-blk-pci")]
    assert ["serial=image" in disks[0], "serial=writable" in disks[1]] == [True, True]


def test_channel_and_kernel_agree() -> None:
    argv = build()
    assert any("name=vch.agent" in device for device in values(argv, "-device"))
    assert {"panic=-1", "reboot=t", "console=ttyS0", "vch.channel=virtio"} <= set(value(argv, "-append").split())


def test_vsock_takes_the_serial_ports_place() -> None:
    argv = build(line=Address(cid=4711, fd=9))
    assert "vhost-vsock-pci,id=vsock0,guest-cid=4711,vhostfd=9" in values(argv, "-device")
    assert "vch.channel=vsock" in value(argv, "-append").split()
    assert not any(word in " ".join(argv) for word in ("virtserialport", "virtio-serial", "id=agent"))
    assert command.guest_cid(argv) == 4711


def test_no_vsock_address_where_there_is_none() -> None:
    assert command.guest_cid(build()) is None


@pytest.mark.parametrize(("accelerator", "without"), [("tcg", True), ("kvm", False)])
def test_no_huge_pages_under_emulation(accelerator: str, without: bool) -> None:
    assert ("transparent_hugepage=never" in value(build(accelerator), "-append").split()) is without


def test_freed_memory_goes_back_to_the_host() -> None:
    assert any("free-page-reporting=on" in device for device in values(build(), "-device"))


def test_console_goes_to_the_keeper() -> None:
    assert "file,id=console,path=/dev/stdout" in values(build(), "-chardev")
    assert value(build(), "-serial") == "chardev:console"
