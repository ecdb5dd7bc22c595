"""The command line: what a later clone and an administrator rely on."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from qemu_machines import make_spec

from portlayer.drivers.base import Shape
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


def build_template(*, shared: bool, accelerator: str = "tcg") -> list[str]:
    return command.template_command(
        "template-or-clone",
        Shape(512 << 20, 2),
        Host("qemu-system-x86_64", accelerator, True, Path("/image, with comma")),
        memory=command.MemoryFile(11, shared=shared),
        qmp_fd=7,
        line=command.SerialLine(8),
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


# --- templates and clones


def test_a_clone_has_the_devices_of_its_template_in_the_same_order() -> None:
    """All that QEMU compares with the saved state, and all that the guest has seen, is on both lines."""
    template, clone = build_template(shared=True), build_template(shared=False)
    for option in ("-machine", "-accel", "-cpu", "-m", "-smp", "-device", "-blockdev", "-serial", "-chardev"):
        assert values(template, option) == values(clone, option) != [], option
    assert [word for word in template if word in ("-nodefaults", "-no-user-config", "-no-reboot")] == [
        word for word in clone if word in ("-nodefaults", "-no-user-config", "-no-reboot")
    ]


def test_a_container_finds_the_devices_of_a_machine_that_booted_in_a_clone() -> None:
    """The agent is told of its channel and finds its disks as after a boot."""
    devices = [device for device in values(build(), "-device") if not device.startswith("virtio-balloon")]
    assert values(build_template(shared=False), "-device") == devices


@pytest.mark.parametrize("shared", [True, False])
def test_no_balloon_where_memory_is_a_file(shared: bool) -> None:
    assert "balloon" not in " ".join(build_template(shared=shared))


def test_a_template_boots_and_writes_to_its_memory() -> None:
    argv = build_template(shared=True)
    assert "-incoming" not in argv
    assert value(argv, "-kernel") == "/image, with comma/vmlinuz"
    assert value(argv, "-append") == value(build(), "-append")
    assert f"memory-backend-file,id=memory,size={512 << 20}B,mem-path=/proc/self/fd/11,share=on" in argv


def test_a_clone_waits_for_its_state_and_has_its_memory_for_itself() -> None:
    argv = build_template(shared=False)
    assert value(argv, "-incoming") == "defer"
    assert not {"-kernel", "-initrd", "-append"} & set(argv)
    assert f"memory-backend-file,id=memory,size={512 << 20}B,mem-path=/proc/self/fd/11,share=off" in argv


def test_memory_is_the_machines_and_as_large_as_its_shape() -> None:
    argv = build_template(shared=False)
    assert values(argv, "-machine") == ["pc-q35-7.2", "memory-backend=memory"]
    assert value(argv, "-m") == f"{512 << 20}B"
    assert value(argv, "-smp") == "2"


def test_disks_that_are_not_there_can_be_put_below_their_devices_later() -> None:
    """Each device is bound to a node that stays, with nothing below it, larger than any disk that may come."""
    argv = build_template(shared=True)
    nodes = {node["node-name"]: node for node in map(json.loads, values(argv, "-blockdev"))}
    assert set(nodes) == {"no-image", "image", "no-writable", "writable"}
    for disk in ("image", "writable"):
        nothing = nodes[f"no-{disk}"]
        assert (nothing["driver"], nothing["read-zeroes"]) == ("null-co", True)
        assert nothing["size"] >= 1 << 44
        assert nodes[disk] == command.raw_options(disk, f"no-{disk}")
    assert nodes["no-image"]["read-only"] is nodes["image"]["read-only"] is True
    assert nodes["no-writable"]["read-only"] is nodes["writable"]["read-only"] is False


def test_a_guest_that_is_no_containers_is_known_by_its_name() -> None:
    assert value(build_template(shared=False), "-name") == "guest=vch-template-or-clone"
