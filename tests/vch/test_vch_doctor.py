"""What `vch doctor` makes of a machine."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from portlayer.drivers import guest_image
from portlayer.drivers.qemu import accelerator
from portlayer.errors import DriverError
from vch import doctor
from vch.cli import main

GIB = 1 << 30
Usage = namedtuple("Usage", "free")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One where all is well."""

    async def inspect_qemu() -> accelerator.Qemu:
        return accelerator.Qemu("qemu", "8.0.0", True)

    async def choose(*_: Any) -> accelerator.Choice:
        return accelerator.Choice("kvm", "KVM booted the guest kernel")

    monkeypatch.setattr(accelerator, "inspect_qemu", inspect_qemu)
    monkeypatch.setattr(accelerator, "choose", choose)
    monkeypatch.setattr(guest_image, "read", lambda path: guest_image.GuestImage(path, "digest", "6.1"))
    monkeypatch.setattr(shutil, "which", lambda tool, path: f"/usr/bin/{tool}")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free=100 * GIB))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("Memory", "available")(8 * GIB))
    return monkeypatch


def _run(tmp_path: Path) -> tuple[int, dict[str, dict[str, str]]]:
    done = CliRunner().invoke(main, ["doctor", "--json", "--state-dir", str(tmp_path), "--guest-image", str(tmp_path)])
    return done.exit_code, {finding["name"]: finding for finding in json.loads(done.output)}


def test_all_well(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, findings = _run(tmp_path)
    assert code == 0
    assert {finding["level"] for name, finding in findings.items() if name != "vsock"} == {"ok"}


def test_emulation_is_a_warning(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def choose(*_: Any) -> accelerator.Choice:
        return accelerator.Choice("tcg", "software emulation, /dev/kvm is missing")

    machine.setattr(accelerator, "choose", choose)
    code, findings = _run(tmp_path)
    assert code == 0
    assert findings["accelerator"]["level"] == "warn"
    assert findings["accelerator"]["costs"]


def test_missing_guest_image_and_tools_fail(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def read(_: Path) -> guest_image.GuestImage:
        raise DriverError("no guest image in there")

    machine.setattr(guest_image, "read", read)
    machine.setattr(shutil, "which", lambda tool, path: None)
    code, findings = _run(tmp_path)
    assert code == 1
    failed = {name for name, finding in findings.items() if finding["level"] == "fail"}
    assert failed == {"guest image", "mksquashfs", "mkfs.ext4"}
    assert all(findings[name]["costs"] for name in failed)


@pytest.mark.parametrize(("free", "level"), [(GIB // 2, "fail"), (5 * GIB, "warn"), (50 * GIB, "ok")])
def test_disk_space(machine: pytest.MonkeyPatch, tmp_path: Path, free: int, level: str) -> None:
    machine.setattr(shutil, "disk_usage", lambda path: Usage(free=free))
    assert _run(tmp_path / "not" / "yet")[1]["disk"]["level"] == level


def test_human_form_says_what_it_costs(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setattr(shutil, "which", lambda tool, path: None)
    done = CliRunner().invoke(main, ["doctor", "--state-dir", str(tmp_path), "--guest-image", str(tmp_path)])
    assert done.exit_code == 1
    assert "docker load fails" in done.output


def test_findings_have_names_of_their_own(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = [finding.name for finding in doctor.examine(tmp_path, tmp_path)]
    assert len(names) == len(set(names))
