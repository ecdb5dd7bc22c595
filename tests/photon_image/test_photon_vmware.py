"""The CD, and a container on a machine shaped like one of vSphere's: real guests under emulation."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from pathlib import Path

import pytest
from photon_machines import (
    PATIENCE_S,
    Disks,
    VmwareMachine,
    cd_options,
    make_disks,
    start_request,
    take,
    vmware_machine,
)

from portlayer.agent.errors import AgentRpcError
from tether.v1 import tether_pb2 as pb

pytestmark = [pytest.mark.vm, pytest.mark.slow]

log = logging.getLogger(__name__)
BULK_BYTES, CHUNK_BYTES = 192 << 10, 32 << 10
OVMF = Path("/usr/share/OVMF")


@pytest.fixture
def disks(tmp_path: Path) -> Disks:
    return make_disks(tmp_path)


def kernel_options(image: Path, channel: str = "serial") -> list[str]:
    """The same kernel without the CD, for comparison."""
    words = f"console=ttyS0 quiet panic=-1 random.trust_cpu=on cryptomgr.notests vch.channel={channel}"
    return ["-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initramfs"), "-append", words]


async def booted(machine: VmwareMachine, began: float, what: str) -> None:
    """Says how long it took, for people: nothing depends on it."""
    hello = await machine.agent.hello(timeout_s=PATIENCE_S)
    took = time.monotonic() - began
    log.info("booted %s: %.1f s, of it %.1f s in the kernel", what, took, hello.ready_after_ns / 1e9)


async def run(machine: VmwareMachine, *args: str) -> bytes:
    """Starts the container; its standard output."""
    answer = await machine.agent.start(start_request(*args), timeout_s=PATIENCE_S)
    assert not answer.HasField("failure"), answer
    output, exited = await take(machine.agent.follow("init", 0))
    assert exited.exit_code == 0, exited
    return output


async def test_a_container_runs_on_the_disks_of_its_targets(guest_image: Path, disks: Disks, tmp_path: Path) -> None:
    """Booted by BIOS from the CD; afterwards the VM powers itself off."""
    began = time.monotonic()
    async with vmware_machine(tmp_path / "vm", cd_options(guest_image / "guest.iso"), disks) as machine:
        await booted(machine, began, "from the CD, BIOS")
        script = "hostname; grep -o 'zstd' /proc/mounts; cat /proc/1/comm; echo kept > /kept; ls /sys/class/net"
        assert (await run(machine, "sh", "-c", script)).split() == [b"box", b"sh", b"eth0", b"lo"]
        await machine.process.wait()
    assert "tether: listening" in machine.console()


async def test_the_serial_line_carries_every_byte_whatever_happens_to_it(
    guest_image: Path, disks: Disks, tmp_path: Path
) -> None:
    """Random bytes to a process and back again, at once; the line is cut in the middle."""
    sent = random.Random(1).randbytes(BULK_BYTES)
    async with vmware_machine(tmp_path / "vm", kernel_options(guest_image), disks) as machine:
        request = start_request("cat", stdin=True)
        answer = await machine.agent.start(request, timeout_s=PATIENCE_S)
        assert not answer.HasField("failure"), answer
        began = time.monotonic()
        output = asyncio.create_task(take(machine.agent.follow("init", 0)))
        for offset in range(0, BULK_BYTES, CHUNK_BYTES):
            if offset == BULK_BYTES // 2:
                machine.break_line()
            last = offset + CHUNK_BYTES >= BULK_BYTES
            piece = sent[offset : offset + CHUNK_BYTES]
            await machine.agent.write_input(
                pb.WriteInputRequest(process_id="init", offset=offset, data=piece, close=last)
            )
        received, exited = await output
        log.info("serial, both ways at once: %.0f KB/s each", BULK_BYTES / 1000 / (time.monotonic() - began))
        assert received == sent
        assert exited.exit_code == 0


async def test_output_over_the_serial_line(guest_image: Path, disks: Disks, tmp_path: Path) -> None:
    """One way, as much as most containers write: says how fast, for people."""
    script = "i=0; while [ $i -lt 16 ]; do cat /bin/busybox; i=$((i + 1)); done | head -c 2000000"
    async with vmware_machine(tmp_path / "vm", kernel_options(guest_image), disks) as machine:
        await machine.agent.hello(timeout_s=PATIENCE_S)
        began = time.monotonic()
        received = await run(machine, "sh", "-c", script)
        log.info("serial, output: %.0f KB/s", len(received) / 1000 / (time.monotonic() - began))
        assert len(received) == 2_000_000


async def test_it_boots_by_efi(guest_image: Path, tmp_path: Path) -> None:
    """OVMF takes what comes in over any serial port for keys, and a HELLO may have the one that opens its set-up."""
    code, variables = OVMF / "OVMF_CODE_4M.fd", tmp_path / "variables.fd"
    variables.write_bytes((OVMF / "OVMF_VARS_4M.fd").read_bytes())
    firmware = [
        *("-drive", f"if=pflash,format=raw,readonly=on,file={code}"),
        *("-drive", f"if=pflash,format=raw,file={variables}"),
    ]
    began = time.monotonic()
    options = [*cd_options(guest_image / "guest.iso"), *firmware]
    async with vmware_machine(tmp_path / "vm", options, None, machine="q35", silent=True) as machine:
        await booted(machine, began, "from the CD, EFI")


async def test_disks_may_be_put_in_after_the_boot(guest_image: Path, disks: Disks, tmp_path: Path) -> None:
    """As with an instant clone: the agent waits for them when it is told to start."""
    began = time.monotonic()
    async with vmware_machine(tmp_path / "vm", kernel_options(guest_image), None) as machine:
        await booted(machine, began, "without the CD")
        with pytest.raises(AgentRpcError, match="no GuestRPC here"):  # QEMU is not the hypervisor that knows it
            await machine.agent.freeze("freeze-1")
        await machine.attach(0, disks.image, read_only=True)
        await machine.attach(1, disks.writable, read_only=False)
        assert await run(machine, "cat", "/etc/hostname") == b"box\n"


async def test_it_listens_on_vsock_where_that_was_asked_for(guest_image: Path, tmp_path: Path) -> None:
    """With VMware's transport loaded, though this machine has no VMCI device that anyone could connect through."""
    async with vmware_machine(tmp_path / "vm", kernel_options(guest_image, "vsock"), None) as machine:
        await machine.listening()
