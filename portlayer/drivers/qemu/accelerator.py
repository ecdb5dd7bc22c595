"""What QEMU is there, and which accelerator really works: proved by booting, remembered, never by opening /dev/kvm.

Some hosts' KVM opens and then cannot run a stock kernel (nested, or paravirtual only): QEMU aborts, or the kernel
never leaves early boot. So KVM has to boot the guest image's own kernel up to its first process within a deadline.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from portlayer.drivers.guest_image import GuestImage
from portlayer.drivers.qemu import command, files
from portlayer.errors import DriverError, InvalidArgumentError

ACCELERATORS = ("kvm", "tcg")
_KVM = "/dev/kvm"
_PROOF_SECONDS = 8.0
_SIGN_OF_LIFE = b"Run /init as init process"
_PROOF_MEMORY = "256M"
_QUIT = b'{"execute":"qmp_capabilities"}\n{"execute":"quit"}\n'


@dataclass(frozen=True)
class Qemu:
    """The installed QEMU."""

    program: str
    version: str
    sandbox: bool


@dataclass(frozen=True)
class Choice:
    """The accelerator, and in a sentence why."""

    accelerator: str
    reason: str


async def inspect_qemu(program: str = command.PROGRAM) -> Qemu:
    """Runs QEMU once without a machine. Raises DriverError when there is none that works."""
    words = ""
    for sandbox in (True, False):
        options = command.sandbox_options() if sandbox else []
        arguments = ["-machine", "none", *options, "-nodefaults", "-display", "none", "-qmp", "stdio"]
        code, output, words = await _run([program, *arguments], _QUIT)
        if code == 0:
            version = json.loads(output.splitlines()[0])["QMP"]["version"]["qemu"]
            return Qemu(program, "{major}.{minor}.{micro}".format_map(version), sandbox)
    raise DriverError(f"{program} does not work: {words or 'it says nothing'}")


async def choose(qemu: Qemu, image: GuestImage, memory: Path, forced: str | None) -> Choice:
    """The accelerator to use. The outcome of a proof is kept in the file `memory` until something changes."""
    if forced is not None:
        if forced not in ACCELERATORS:
            raise InvalidArgumentError(f"no accelerator {forced!r}: use one of {', '.join(ACCELERATORS)}")
        return Choice(forced, "set by configuration")
    if not os.access(_KVM, os.R_OK | os.W_OK):
        why = "not accessible to this user" if os.access(_KVM, os.F_OK) else "missing"
        return Choice("tcg", f"software emulation, /dev/kvm is {why}")
    key = _key(qemu, image)
    remembered = _recall(memory, key)
    if remembered is None:
        remembered = await _prove_kvm(qemu, image)
        files.write_durably(memory, json.dumps({"key": key, **asdict(remembered)}).encode())
    return remembered


async def _prove_kvm(qemu: Qemu, image: GuestImage) -> Choice:
    host = command.Host(qemu.program, "kvm", qemu.sandbox, image.directory)
    try:
        async with asyncio.timeout(_PROOF_SECONDS):
            alive, words = await _boots(command.proof_command(host, _PROOF_MEMORY))
    except TimeoutError:
        return Choice("tcg", f"software emulation, KVM did not boot the guest kernel in {_PROOF_SECONDS:.0f} s")
    if alive:
        return Choice("kvm", "KVM booted the guest kernel")
    return Choice("tcg", f"software emulation, KVM cannot boot the guest kernel: {words or 'QEMU ended'}")


async def _boots(argv: list[str]) -> tuple[bool, str]:
    """(whether the kernel reached its first process, what QEMU complained of)."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    complaint = ""
    try:
        async for line in process.stdout:
            if _SIGN_OF_LIFE in line:
                return True, ""
            if line.startswith(_prefix(argv[0])):
                complaint = complaint or line.decode(errors="replace").strip()
        return False, complaint
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _prefix(program: str) -> bytes:
    """How QEMU begins a line of its own on a stream that it shares with the console."""
    return f"{Path(program).name}: ".encode()


async def _run(argv: list[str], stdin: bytes) -> tuple[int, bytes, str]:
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, stderr=pipe)
    except FileNotFoundError as error:
        raise DriverError(f"{argv[0]} is missing: install qemu-system-x86") from error
    try:
        output, errors = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output, errors.decode(errors="replace").strip()


def _key(qemu: Qemu, image: GuestImage) -> str:
    """Changes whenever a proof must be repeated: another host kernel, CPU, QEMU or guest kernel."""
    parts = (platform.release(), platform.version(), _cpu_model(), qemu.version, image.digest, *_pinned())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _pinned() -> tuple[str, ...]:
    return (command.MACHINE_TYPE, *command.cpu_options("kvm"))


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith("model name")), "")


def _recall(memory: Path, key: str) -> Choice | None:
    try:
        data = json.loads(memory.read_bytes())
        if data["key"] == key and data["accelerator"] in ACCELERATORS:
            return Choice(data["accelerator"], str(data["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None
