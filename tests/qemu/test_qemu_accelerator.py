"""Which accelerator is used and why, and that the proof is not repeated for nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from portlayer.drivers.guest_image import GuestImage
from portlayer.drivers.qemu import accelerator
from portlayer.drivers.qemu.accelerator import Choice, Qemu
from portlayer.errors import DriverError, InvalidArgumentError

IMAGE = GuestImage(Path("/image"), "sha256:1", "6.1")


def stand_in(path: Path, script: str) -> Qemu:
    """A QEMU that does what `script` says."""
    program = path / "qemu-system-x86_64"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return Qemu(str(program), "7.2.0", sandbox=False)


@pytest.fixture(autouse=True)
def kvm_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accelerator, "_KVM", str(device))
    monkeypatch.setattr(accelerator, "_PROOF_SECONDS", 60.0)
    return device


async def choose(qemu: Qemu, tmp_path: Path, image: GuestImage = IMAGE) -> Choice:
    return await accelerator.choose(qemu, image, tmp_path / "accelerator.json", None)


async def test_kvm_that_boots(tmp_path: Path) -> None:
    qemu = stand_in(tmp_path, "echo booting; echo '[ 0.5] Run /init as init process'; exec sleep 60")
    assert await choose(qemu, tmp_path) == Choice("kvm", "KVM booted the guest kernel")


async def test_kvm_that_aborts(tmp_path: Path) -> None:
    qemu = stand_in(tmp_path, 'echo "qemu-system-x86_64: error: failed to set MSR" >&2; kill -ABRT $$')
    choice = await choose(qemu, tmp_path)
    assert choice.accelerator == "tcg"
    assert "failed to set MSR" in choice.reason


async def test_kvm_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "_PROOF_SECONDS", 0.1)
    choice = await choose(stand_in(tmp_path, "exec sleep 60"), tmp_path)
    assert choice.accelerator == "tcg"
    assert "did not boot" in choice.reason


async def test_remembered_until_something_changes(tmp_path: Path) -> None:
    qemu = stand_in(tmp_path, f"echo x >> {tmp_path}/runs; echo 'Run /init as init process'")
    for _ in range(3):
        assert (await choose(qemu, tmp_path)).accelerator == "kvm"
    assert (tmp_path / "runs").read_text() == "x\n"
    await choose(qemu, tmp_path, GuestImage(Path("/image"), "sha256:2", "6.1"))
    assert (tmp_path / "runs").read_text() == "x\nx\n"


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"key": "x", "accelerator": "kvm", "reason": ""})])
async def test_damaged_memory_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "accelerator.json").write_text(content)
    assert (await choose(stand_in(tmp_path, "exit 1"), tmp_path)).accelerator == "tcg"


async def test_no_kvm(tmp_path: Path, kvm_there: Path) -> None:
    kvm_there.unlink()
    choice = await choose(stand_in(tmp_path, "exit 1"), tmp_path)
    assert choice == Choice("tcg", "software emulation, /dev/kvm is missing")


async def test_forced(tmp_path: Path) -> None:
    qemu = stand_in(tmp_path, "exit 1")
    memory = tmp_path / "accelerator.json"
    assert (await accelerator.choose(qemu, IMAGE, memory, "kvm")).accelerator == "kvm"
    with pytest.raises(InvalidArgumentError):
        await accelerator.choose(qemu, IMAGE, memory, "xen")


async def test_missing_qemu(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="install qemu-system-x86"):
        await accelerator.inspect_qemu(str(tmp_path / "none"))


async def test_qemu_without_sandbox(tmp_path: Path) -> None:
    greeting = json.dumps({"QMP": {"version": {"qemu": {"major": 8, "minor": 1, "micro": 2}}}})
    script = f"""case "$*" in *sandbox*) echo 'no such option' >&2; exit 1;; esac; cat >/dev/null; echo '{greeting}'"""
    qemu = await accelerator.inspect_qemu(stand_in(tmp_path, script).program)
    assert (qemu.version, qemu.sandbox) == ("8.1.2", False)
