"""The VCH's files on a datastore of files: what test_vsphere_disks.py does not ask of both kinds."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim
from vsphere_front import Forward, Front
from vsphere_soap import Call, Reply
from vsphere_stores import FILES, Kind, Store
from vsphere_trouble import fail_task, fail_task_after

from portlayer.drivers import ext4
from portlayer.drivers.vsphere.datastore import VsphereDatastore
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import DriverError, ExhaustedError, InvalidArgumentError, PortLayerError

MIB = 1 << 20


@pytest.fixture
def kind() -> Kind:
    return FILES


def check(image: Path) -> None:
    """That the file system is sound."""
    subprocess.run(["e2fsck", "-fn", str(image)], check=True, capture_output=True)


async def test_disk_that_vanished_is_brought_again(
    datastore: VsphereDatastore, store: Store, source: Path, tmp_path: Path
) -> None:
    (again := tmp_path / "again").write_bytes(source.read_bytes())
    await datastore.put_image_disk("one", source)
    for file in (store.root / "images").iterdir():
        file.unlink()
    await datastore.put_image_disk("one", again)
    assert await datastore.has_image_disk("one")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 300, "one-flat"])
async def test_names_cannot_leave_the_directory(datastore: VsphereDatastore, source: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        await datastore.put_image_disk(name, source)
    assert source.exists()


@pytest.mark.parametrize("directory", ["", "/", "../x", "a/../b", "a//b", "a]b", "a/", " a"])
def test_directories_are_checked(tmp_path: Path, directory: str) -> None:
    nothing: Any = None
    with pytest.raises(InvalidArgumentError):
        VsphereDatastore(nothing, nothing, nothing, directory, tmp_path)


async def test_short_file_is_sent_again(datastore: VsphereDatastore, store: Store, source: Path, front: Front) -> None:
    """vcsim, like some proxies, says 200 to whatever came before the connection broke."""

    async def shorten(front: Front, call: Call, forward: Forward) -> Reply:
        reply = await forward()
        os.truncate(next((store.root / "incoming").glob("*/one-flat.vmdk")), MIB)
        return reply

    content = source.read_bytes()
    front.inject("PUT", shorten)
    await datastore.put_image_disk("one", source)
    assert front.calls["PUT"] == 2
    assert (await store.disk("images/one")).startswith(content)


async def test_nothing_is_sent_to_a_full_datastore(
    datastore: VsphereDatastore, source: Path, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none(self: VsphereDatastore) -> int:
        return 1000

    monkeypatch.setattr(VsphereDatastore, "free_bytes", none)
    with pytest.raises(ExhaustedError, match="LocalDS_0 has 1000 bytes free"):
        await datastore.put_image_disk("one", source)
    assert not front.calls["PUT"]


async def test_move_that_is_said_to_have_failed(
    datastore: VsphereDatastore, store: Store, source: Path, front: Front
) -> None:
    content = source.read_bytes()
    front.inject("MoveVirtualDisk_Task", fail_task_after(vim.fault.FileFault(file="x")))
    await datastore.put_image_disk("one", source)
    assert (await store.disk("images/one")).startswith(content)


async def test_what_others_left_long_ago_goes(store: Store) -> None:
    async with store.opened():
        old, new = store.root / "incoming" / "0123-old", store.root / "incoming" / "0123-new"
        for directory in (old, new):
            directory.mkdir()
            (directory / "one.vmdk").touch()
        os.utime(old, (1, 1))
    async with store.opened():
        assert store.left() == [new]
        (new / "one.vmdk").unlink()
        new.rmdir()


async def test_half_a_disk_can_be_removed(datastore: VsphereDatastore, store: Store, source: Path) -> None:
    await datastore.put_image_disk("one", source)
    (store.root / "images" / "one-flat.vmdk").unlink()
    await datastore.remove_image_disk("one")
    assert not store.names("images")


async def test_empty_disks_are_sent_without_their_emptiness(
    datastore: VsphereDatastore, store: Store, front: Front, tmp_path: Path
) -> None:
    size = 1 << 30
    await datastore.empty_disk(size)
    sent = (store.root / "empties" / f"ext4-{size}-flat.vmdk").stat().st_size
    assert sent < 20 * MIB
    (image := tmp_path / "image").write_bytes(await store.disk(f"empties/ext4-{size}"))
    assert image.stat().st_size == size
    check(image)
    # Known now, so not even asked for.
    asked = front.calls["HEAD"]
    await datastore.empty_disk(size)
    assert front.calls["HEAD"] == asked
    with pytest.raises(InvalidArgumentError, match="at least"):
        await datastore.empty_disk(1000)


@pytest.mark.parametrize(("number", "kind_of_error"), [(errno.ENOSPC, ExhaustedError), (errno.EACCES, DriverError)])
async def test_empty_disk_for_which_this_machine_has_no_room(
    datastore: VsphereDatastore, monkeypatch: pytest.MonkeyPatch, number: int, kind_of_error: type[Exception]
) -> None:
    def make(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(ext4, "make", make)
    with pytest.raises(kind_of_error, match=f"on this machine: .*{os.strerror(number)}"):
        await datastore.empty_disk(64 * MIB)


@pytest.mark.parametrize("size", [8 * MIB, 100 * MIB, 10 << 30])
def test_packed_file_systems_are_sound(tmp_path: Path, size: int) -> None:
    image = tmp_path / "image"
    ext4.make(image, size, packed=True)
    check(image)


async def test_extending_twice(datastore: VsphereDatastore, store: Store, front: Front) -> None:
    """vSphere refuses to extend a disk to the size it has, which an attempt before may have done."""
    flat = f"*/ext4-{64 * MIB}-flat.vmdk"

    async def extended_before(front: Front, call: Call, forward: Forward) -> Reply:
        os.truncate(next((store.root / "incoming").glob(flat)), 64 * MIB)
        return await fail_task(vim.fault.InvalidDiskFormat())(front, call, forward)

    front.inject("ExtendVirtualDisk_Task", extended_before)
    await datastore.empty_disk(64 * MIB)
    front.inject("ExtendVirtualDisk_Task", fail_task(vim.fault.InvalidDiskFormat()))
    with pytest.raises(DriverError, match="InvalidDiskFormat"):
        await datastore.empty_disk(65 * MIB)


async def test_guest_iso_that_vanished_is_brought_again(
    datastore: VsphereDatastore, store: Store, source: Path
) -> None:
    digest = "ab" * 32
    await datastore.guest_iso(source, digest)
    (iso := store.root / "guest" / f"{digest}.iso").unlink()
    datastore.look_again()
    await datastore.guest_iso(source, digest)
    assert iso.read_bytes() == source.read_bytes()
    with pytest.raises(InvalidArgumentError, match="no digest"):
        await datastore.guest_iso(source, "../x")


async def test_wrong_bytes_are_noticed(datastore: VsphereDatastore, store: Store, source: Path, front: Front) -> None:
    async def spoil(front: Front, call: Call, forward: Forward) -> Reply:
        reply = await forward()
        with next((store.root / "incoming").glob("*/*.iso")).open("r+b") as file:
            file.write(b"spoilt")
        return reply

    front.inject("PUT", spoil)
    with pytest.raises(DriverError, match="is not what was sent"):
        await datastore.guest_iso(source, "ab" * 32)
    assert await datastore.guest_isos() == set()


async def test_verified_image_disks(store: Store, source: Path, front: Front) -> None:
    async with store.opened(verify=True) as datastore:
        await datastore.put_image_disk("one", source)
        assert front.calls["GET"] == 1


async def test_space(datastore: VsphereDatastore, front: Front) -> None:
    assert 0 < await datastore.free_bytes() <= await datastore.capacity_bytes()
    assert front.calls["RefreshDatastore"] == 1


async def test_datacenter_in_a_folder_that_may_not_be_seen(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its whole path is in the URL of each file: by half of it no file is found."""
    read = Session.read

    async def read_elsewhere(self: Session, objects: Any, paths: Any) -> dict[Any, dict[str, Any]]:
        found = await read(self, objects, paths)
        folder = vim.Folder("group-hidden", self.content.rootFolder._stub)
        return {one: values | {"parent": folder} for one, values in found.items()}

    datastore = await store.unopened()
    with monkeypatch.context() as patch:
        patch.setattr(Session, "read", read_elsewhere)
        with pytest.raises(DriverError, match="not see all folders that DC0 is in"):
            await datastore.open()


async def test_datastore_that_is_gone(store: Store, tmp_path: Path) -> None:
    datacenter = await store.at("/DC0")
    gone = vim.Datastore("datastore-gone", datacenter._stub)
    with pytest.raises(PortLayerError):
        await VsphereDatastore(store.session, datacenter, gone, store.kind.directory, tmp_path).open()
