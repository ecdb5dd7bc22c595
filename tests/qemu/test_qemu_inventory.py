"""The inventory after a crash at any step, and the disks in it."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from qemu_machines import make_spec

from portlayer.drivers.qemu import files
from portlayer.drivers.qemu.disks import EmptyDisks
from portlayer.drivers.qemu.inventory import WRITABLE_DISK, Inventory
from portlayer.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError

SPEC = make_spec()


def remove(inventory: Inventory, machine_id: str) -> None:
    """As the driver does it once the machine's process is gone."""
    if (trash := inventory.put_away(machine_id)) is not None:
        inventory.clear(trash)


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    inventory = Inventory(tmp_path / "machines", EmptyDisks(tmp_path / "empties"))
    inventory.open()
    return inventory


def reopened(tmp_path: Path) -> Inventory:
    """As the next life of the port layer finds it."""
    inventory = Inventory(tmp_path / "machines", EmptyDisks(tmp_path / "empties"))
    inventory.open()
    return inventory


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Runs `work` in a process that dies, as by SIGKILL, before its `step`-th change that reaches the disk."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def counted(call: Callable[..., object]) -> Callable[..., object]:
            def wrapper(*args: object, **options: object) -> object:
                nonlocal count
                count += 1
                if count > step:
                    os._exit(9)
                return call(*args, **options)

            return wrapper

        for owner, name in (
            (os, "fsync"),
            (os, "mkdir"),
            (os, "rename"),
            (os, "replace"),
            (os, "rmdir"),
            (os, "unlink"),
        ):
            setattr(owner, name, counted(getattr(owner, name)))
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def test_create_survives_a_kill_at_every_step(inventory: Inventory, tmp_path: Path) -> None:
    EmptyDisks(tmp_path / "empties").copy(SPEC.writable_disk_bytes, tmp_path / "prepared")
    step = 0
    while killed_at(step, lambda: inventory.create(SPEC, b"record")):
        again = reopened(tmp_path)
        found = again.load()
        assert [path.name for path in (tmp_path / "machines").iterdir()] == [spec.id for spec in found]
        for spec in found:
            assert spec == SPEC
            assert again.read_record(spec.id) == b"record"
            assert (again.directory(spec.id) / WRITABLE_DISK).stat().st_size == SPEC.writable_disk_bytes
            remove(again, spec.id)
        step += 1
    assert step > 5
    assert reopened(tmp_path).load() == [SPEC]


def test_remove_survives_a_kill_at_every_step(inventory: Inventory, tmp_path: Path) -> None:
    inventory.create(SPEC, b"record")
    step = 0
    while killed_at(step, lambda: remove(inventory, SPEC.id)):
        again = reopened(tmp_path)
        if not again.load():
            assert not list((tmp_path / "machines").iterdir())
            again.create(SPEC, b"record")
        assert again.read_record(SPEC.id) == b"record"
        step += 1
    assert step > 3
    assert reopened(tmp_path).load() == []


def test_record_survives_a_kill_at_every_step(inventory: Inventory, tmp_path: Path) -> None:
    inventory.create(SPEC, b"old")
    step = 0
    while killed_at(step, lambda: inventory.write_record(SPEC.id, b"new")):
        assert reopened(tmp_path).read_record(SPEC.id) in (b"old", b"new")
        step += 1
    assert reopened(tmp_path).read_record(SPEC.id) == b"new"


def test_failure_leaves_nothing(inventory: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "copy_sparse", full)
    with pytest.raises(OSError, match="No space"):
        inventory.create(SPEC, b"")
    assert not list((tmp_path / "machines").iterdir())


def test_create_twice(inventory: Inventory) -> None:
    inventory.create(SPEC, b"first")
    with pytest.raises(AlreadyExistsError):
        inventory.create(SPEC, b"second")
    assert inventory.read_record(SPEC.id) == b"first"


@pytest.mark.parametrize("machine_id", ["", "../x", "A" * 64, ".new-1", "a/b"])
def test_ids_cannot_leave_the_directory(inventory: Inventory, machine_id: str) -> None:
    with pytest.raises(InvalidArgumentError):
        inventory.create(make_spec(id=machine_id), b"")


def test_remove_is_repeatable(inventory: Inventory, tmp_path: Path) -> None:
    inventory.create(SPEC, b"")
    remove(inventory, SPEC.id)
    remove(inventory, SPEC.id)
    assert not list((tmp_path / "machines").iterdir())
    with pytest.raises(NotFoundError):
        inventory.read_record(SPEC.id)
    with pytest.raises(NotFoundError):
        inventory.write_record(SPEC.id, b"")


def test_one_broken_machine_does_not_hide_the_others(inventory: Inventory, caplog: pytest.LogCaptureFixture) -> None:
    inventory.create(SPEC, b"")
    inventory.create(make_spec(2), b"")
    (inventory.directory(SPEC.id) / "machine.json").write_bytes(b"{")
    assert inventory.load() == [make_spec(2)]
    assert SPEC.id in caplog.text


def test_writable_disk_is_a_file_system_and_sparse(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    EmptyDisks(tmp_path / "empties").copy(10 << 30, disk)
    assert disk.stat().st_size == 10 << 30
    assert disk.stat().st_blocks * 512 < 8 << 20
    check = subprocess.run(["/sbin/e2fsck", "-fn", str(disk)], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout


def test_empties_are_made_once(tmp_path: Path) -> None:
    empties = EmptyDisks(tmp_path / "empties")
    empties.copy(16 << 20, tmp_path / "one")
    (made,) = (tmp_path / "empties").iterdir()
    first = made.stat().st_mtime_ns
    empties.copy(16 << 20, tmp_path / "two")
    assert made.stat().st_mtime_ns == first


def test_disk_too_small(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        EmptyDisks(tmp_path / "empties").copy(1000, tmp_path / "disk")
    assert not (tmp_path / "disk").exists()
