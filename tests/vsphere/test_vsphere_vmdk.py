"""Virtual disks: names, sizes, and how little of a local file is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from portlayer.drivers import ext4
from portlayer.drivers.vsphere import vmdk
from portlayer.drivers.vsphere.vmdk import Disks
from portlayer.errors import DriverError

MIB = 1 << 20


class Steps:
    """Stands for the session, its manager and the folder, and remembers what was asked of them."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.content = self
        self.virtualDiskManager = self
        self.datacenter = "dc"
        self.CreateVirtualDisk_Task, self.ExtendVirtualDisk_Task = "create", "extend"

    def path(self, relative: str) -> str:
        return f"[ds] {relative}"

    async def run(self, method: str, path: str, datacenter: str, detail: Any, *more: Any, what: str) -> None:
        self.done.append((method, path, getattr(detail, "capacityKb", detail), *more))

    async def put(self, path: str, content: Any, **_: Any) -> str:
        self.done.append(("put", path, content.length))
        return ""


async def made(image: Path) -> list[tuple[Any, ...]]:
    steps: Any = Steps()
    await Disks(steps, steps, steps, steps).make("d/one.vmdk", image)
    done: list[tuple[Any, ...]] = steps.done
    return done


@pytest.mark.parametrize(("size", "whole"), [(0, MIB), (1, MIB), (MIB, MIB), (MIB + 1, 2 * MIB)])
async def test_disks_are_whole_mebibytes(tmp_path: Path, size: int, whole: int) -> None:
    (image := tmp_path / "image").write_bytes(b"x" * size)
    assert await made(image) == [
        ("create", "[ds] d/one.vmdk", whole // 1024),
        ("put", "d/one-flat.vmdk", whole),
    ]


async def test_holes_at_the_end_are_not_sent(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.seek(2 * MIB)
        file.write(b"x")
        file.truncate(50 * MIB)
    assert await made(image) == [
        ("create", "[ds] d/one.vmdk", 3 * 1024),
        ("put", "d/one-flat.vmdk", 3 * MIB),
        ("extend", "[ds] d/one.vmdk", 50 * 1024, False),
    ]


async def test_file_of_nothing_but_a_hole(tmp_path: Path) -> None:
    with (image := tmp_path / "image").open("wb") as file:
        file.truncate(10 * MIB)
    assert [step[2] for step in await made(image)] == [1024, MIB, 10 * 1024]


async def test_little_is_sent_of_an_empty_file_system(tmp_path: Path) -> None:
    ext4.make(image := tmp_path / "image", 10 << 30, packed=True)
    (_, sent, extended) = await made(image)
    assert sent[2] < 200 * MIB
    assert extended[2] == (10 << 30) // 1024


async def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="No such file"):
        await made(tmp_path / "gone")


def test_disks_among_files() -> None:
    files = ["a.vmdk", "a-flat.vmdk", "b.vmdk", "c-flat.vmdk", "d.vmdk.txt", "log"]
    assert vmdk.disk_names(files) == {"a", "b", "c-flat"}
