"""The VCH's files on a datastore: image disks, empty disks, the guest image; whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from pyVmomi import vim
from vsphere_front import Action, Forward, Front
from vsphere_sessions import killed, through
from vsphere_simulator import Simulator
from vsphere_soap import Call, Reply
from vsphere_trouble import cut_after, cut_before, drop_session, fail_task, fail_task_after, held

from portlayer.drivers import ext4
from portlayer.drivers.vsphere.datastore import VsphereDatastore
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import DriverError, ExhaustedError, InvalidArgumentError, NotFoundError, PortLayerError

MIB = 1 << 20
DIRECTORY = "vch-of tests/one"
Open = Callable[..., contextlib.AbstractAsyncContextManager[VsphereDatastore]]


def answer(status: int, body: bytes) -> Action:
    """The datastore takes all that is sent and then says this; nothing is written."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        await forward()
        path = Path(unquote(urlsplit(call.target).path.removeprefix("/folder/")))
        os.truncate(front.simulator.datastore_dir() / path, 0)
        return Reply(status, body)

    return act


@pytest.fixture
async def session(front: Front) -> AsyncIterator[Session]:
    async with through(front) as session:
        yield session


@pytest.fixture
def root(simulator: Simulator) -> Path:
    """The VCH's directory on the datastore."""
    return simulator.datastore_dir() / DIRECTORY


@pytest.fixture
async def open_datastore(session: Session, tmp_path: Path) -> AsyncIterator[Open]:
    datacenter = await session.call(session.content.searchIndex.FindByInventoryPath, "/DC0", what="looking")
    found = await session.call(
        session.content.searchIndex.FindByInventoryPath, "/DC0/datastore/LocalDS_0", what="looking"
    )

    @contextlib.asynccontextmanager
    async def opened(work_dir: str = "work", **how: Any) -> AsyncIterator[VsphereDatastore]:
        datastore = VsphereDatastore(session, datacenter, found, DIRECTORY, tmp_path / work_dir, **how)
        await datastore.open()
        try:
            yield datastore
        finally:
            await datastore.close()

    yield opened
    async with opened() as datastore:
        await datastore.remove_all()


@pytest.fixture
async def datastore(open_datastore: Open, root: Path) -> AsyncIterator[VsphereDatastore]:
    async with open_datastore() as datastore:
        yield datastore
        assert not left(root)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """2.5 MiB of a file system, so to speak."""
    path = tmp_path / "source"
    path.write_bytes(os.urandom(5 * MIB // 2))
    return path


def left(root: Path) -> list[Path]:
    """What is still on its way."""
    return list((root / "incoming").iterdir())


def disk(root: Path, name: str) -> bytes:
    """The bytes of a disk, as QEMU reads it."""
    out = root / "read"
    command = ["qemu-img", "convert", "-f", "vmdk", "-O", "raw", str(root / f"{name}.vmdk"), str(out)]
    subprocess.run(command, check=True)
    try:
        return out.read_bytes()
    finally:
        out.unlink()


def check(image: Path) -> None:
    """That the file system is sound."""
    subprocess.run(["e2fsck", "-fn", str(image)], check=True, capture_output=True)


async def test_life_of_an_image_disk(datastore: VsphereDatastore, root: Path, source: Path) -> None:
    content = source.read_bytes()
    progress: list[int] = []
    assert not await datastore.has_image_disk("one.squashfs")
    await datastore.put_image_disk("one.squashfs", source, on_progress=progress.append)
    assert not source.exists()
    assert await datastore.has_image_disk("one.squashfs")
    assert await datastore.image_disk_bytes("one.squashfs") == 3 * MIB
    assert await datastore.image_disks() == {"one.squashfs"}
    assert datastore.image_path("one.squashfs") == f"[LocalDS_0] {DIRECTORY}/images/one.squashfs.vmdk"
    assert disk(root, "images/one.squashfs") == content + bytes(MIB // 2)
    assert progress == [0, MIB, 2 * MIB, 3 * MIB]
    await datastore.remove_image_disk("one.squashfs")
    await datastore.remove_image_disk("one.squashfs")
    assert not list((root / "images").iterdir())
    with pytest.raises(NotFoundError, match=r"one\.squashfs does not exist"):
        await datastore.image_disk_bytes("one.squashfs")


async def test_first_one_stays(datastore: VsphereDatastore, root: Path, source: Path, tmp_path: Path) -> None:
    content = source.read_bytes()
    await datastore.put_image_disk("one", source)
    (other := tmp_path / "other").write_bytes(b"other")
    await datastore.put_image_disk("one", other)
    assert not other.exists()
    assert disk(root, "images/one").startswith(content)


async def test_disk_that_vanished_is_brought_again(
    datastore: VsphereDatastore, root: Path, source: Path, tmp_path: Path
) -> None:
    (again := tmp_path / "again").write_bytes(source.read_bytes())
    await datastore.put_image_disk("one", source)
    for file in (root / "images").iterdir():
        file.unlink()
    await datastore.put_image_disk("one", again)
    assert await datastore.has_image_disk("one")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 300, "one-flat"])
async def test_names_cannot_leave_the_directory(datastore: VsphereDatastore, source: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        await datastore.put_image_disk(name, source)
    assert source.exists()


@pytest.mark.parametrize("directory", ["", "/", "../x", "a/../b", "a//b", "a]b", "a/", " a"])
async def test_directories_are_checked(session: Session, tmp_path: Path, directory: str) -> None:
    nothing: Any = None
    with pytest.raises(InvalidArgumentError):
        VsphereDatastore(session, nothing, nothing, directory, tmp_path)


@pytest.mark.parametrize("method", ["PUT", "HEAD"])
async def test_broken_connections_are_mended(
    datastore: VsphereDatastore, root: Path, source: Path, front: Front, method: str
) -> None:
    content = source.read_bytes()
    front.inject(method, cut_before())
    front.inject(method, cut_after())
    await datastore.put_image_disk("one", source)
    assert disk(root, "images/one").startswith(content)


@pytest.mark.parametrize(
    "method", ["MakeDirectory", "CreateVirtualDisk_Task", "MoveVirtualDisk_Task", "DeleteDatastoreFile_Task"]
)
async def test_lost_answers_do_no_harm(
    datastore: VsphereDatastore, root: Path, source: Path, front: Front, method: str
) -> None:
    content = source.read_bytes()
    injected = front.inject(method, cut_after())
    await datastore.put_image_disk("one", source)
    assert injected.hits == 1
    assert disk(root, "images/one").startswith(content)
    assert sorted(file.name for file in (root / "images").iterdir()) == ["one-flat.vmdk", "one.vmdk"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["HEAD", "PUT", "MoveVirtualDisk_Task"])
async def test_session_may_end_at_any_step(
    datastore: VsphereDatastore, root: Path, source: Path, front: Front, method: str
) -> None:
    content = source.read_bytes()
    before = front.calls["Login"]
    front.inject(method, drop_session())
    await datastore.put_image_disk("one", source)
    assert front.calls["Login"] == before + 1
    assert disk(root, "images/one").startswith(content)


async def test_short_file_is_sent_again(
    datastore: VsphereDatastore, root: Path, source: Path, front: Front, simulator: Simulator
) -> None:
    """vcsim, like some proxies, says 200 to whatever came before the connection broke."""

    async def shorten(front: Front, call: Call, forward: Forward) -> Reply:
        reply = await forward()
        os.truncate(next((root / "incoming").glob("*/one-flat.vmdk")), MIB)
        return reply

    content = source.read_bytes()
    front.inject("PUT", shorten)
    await datastore.put_image_disk("one", source)
    assert front.calls["PUT"] == 2
    assert disk(root, "images/one").startswith(content)


@pytest.mark.parametrize(
    ("method", "action", "error", "words"),
    [
        ("CreateVirtualDisk_Task", fail_task(vim.fault.NoDiskSpace()), ExhaustedError, "NoDiskSpace"),
        ("PUT", answer(507, b""), ExhaustedError, "full"),
        ("PUT", answer(500, b"<p>There is not enough space on the device</p>"), ExhaustedError, "full"),
        ("PUT", answer(403, b""), DriverError, "FileManagement"),
        ("PUT", answer(503, b""), DriverError, "503"),
        ("PUT", answer(200, b""), DriverError, "3145728 bytes were sent and 0 arrived"),
        ("MoveVirtualDisk_Task", fail_task(vim.fault.FileLocked()), PortLayerError, "FileLocked"),
    ],
)
async def test_nothing_is_left_of_a_failure(
    datastore: VsphereDatastore,
    root: Path,
    source: Path,
    front: Front,
    method: str,
    action: Action,
    error: type[Exception],
    words: str,
) -> None:
    front.inject(method, action, times=None)
    with pytest.raises(error, match=words):
        await datastore.put_image_disk("one", source)
    assert source.exists()
    assert not left(root)
    assert not await datastore.has_image_disk("one")
    front.clear()
    await datastore.put_image_disk("one", source)
    assert await datastore.has_image_disk("one")


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
    datastore: VsphereDatastore, root: Path, source: Path, front: Front
) -> None:
    content = source.read_bytes()
    front.inject("MoveVirtualDisk_Task", fail_task_after(vim.fault.FileFault(file="x")))
    await datastore.put_image_disk("one", source)
    assert disk(root, "images/one").startswith(content)


async def test_nothing_is_left_when_the_caller_gives_up(
    datastore: VsphereDatastore, root: Path, source: Path, front: Front
) -> None:
    upload = front.inject("PUT", held(threading.Event()))
    task = asyncio.create_task(datastore.put_image_disk("one", source))
    await asyncio.to_thread(upload.hit.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not left(root)
    assert source.exists()
    assert not await datastore.has_image_disk("one")


@pytest.mark.slow
async def test_two_port_layers_with_the_same_image(
    open_datastore: Open, root: Path, source: Path, front: Front, tmp_path: Path
) -> None:
    """Both upload it; the first one stays, and neither takes the other's files away."""
    content = source.read_bytes()
    (same := tmp_path / "same").write_bytes(content)
    gate = threading.Event()
    move = front.inject("MoveVirtualDisk_Task", held(gate))
    async with open_datastore("work") as one:
        slow = asyncio.create_task(one.put_image_disk("one", source))
        await asyncio.to_thread(move.hit.wait)
        async with open_datastore("other") as other:
            assert len(left(root)) == 1
            await other.put_image_disk("one", same)
            gate.set()
            await slow
    assert not left(root)
    assert disk(root, "images/one").startswith(content)
    assert sorted(file.name for file in (root / "images").iterdir()) == ["one-flat.vmdk", "one.vmdk"]


@pytest.mark.slow
@pytest.mark.parametrize("step", ["CreateVirtualDisk_Task", "PUT", "MoveVirtualDisk_Task", "DeleteDatastoreFile_Task"])
async def test_killed_port_layer_leaves_what_the_next_one_sweeps(
    open_datastore: Open, root: Path, source: Path, front: Front, tmp_path: Path, step: str
) -> None:
    await killed(front, step, DIRECTORY, str(tmp_path / "work"), str(source))
    assert len(left(root)) == 1
    async with open_datastore("other"):
        assert len(left(root)) == 1  # it could be on its way still
    async with open_datastore("work") as datastore:
        assert not left(root)
        # After the move it is there; before it, nothing is.
        assert await datastore.has_image_disk("one") == (step == "DeleteDatastoreFile_Task")


async def test_what_others_left_long_ago_goes(open_datastore: Open, root: Path) -> None:
    async with open_datastore():
        old, new = root / "incoming" / "0123-old", root / "incoming" / "0123-new"
        for directory in (old, new):
            directory.mkdir()
            (directory / "one.vmdk").touch()
        os.utime(old, (1, 1))
    async with open_datastore():
        assert left(root) == [new]
        (new / "one.vmdk").unlink()
        new.rmdir()


async def test_what_cannot_be_removed_does_not_keep_a_port_layer_from_coming_up(
    open_datastore: Open, root: Path, front: Front
) -> None:
    async with open_datastore():
        old = root / "incoming" / "0123-old"
        old.mkdir()
        os.utime(old, (1, 1))
    locked = front.inject("DeleteDatastoreFile_Task", fail_task(vim.fault.FileLocked()))
    async with open_datastore():
        assert locked.hits == 1
        assert left(root) == [old]
    async with open_datastore():
        assert not left(root)


async def test_half_a_disk_can_be_removed(datastore: VsphereDatastore, root: Path, source: Path) -> None:
    await datastore.put_image_disk("one", source)
    (root / "images" / "one-flat.vmdk").unlink()
    await datastore.remove_image_disk("one")
    assert not list((root / "images").iterdir())


@pytest.mark.slow
async def test_empty_disks_are_sent_without_their_emptiness(
    datastore: VsphereDatastore, root: Path, front: Front, tmp_path: Path
) -> None:
    size = 1 << 30
    paths = await asyncio.gather(*(datastore.empty_disk(size - more) for more in range(3)))
    assert set(paths) == {f"[LocalDS_0] {DIRECTORY}/empties/ext4-{size}.vmdk"}
    assert front.calls["PUT"] == 1
    assert not list((tmp_path / "work").glob(".empty-*"))
    sent = (root / "empties" / f"ext4-{size}-flat.vmdk").stat().st_size
    assert sent < 20 * MIB
    (image := tmp_path / "image").write_bytes(disk(root, f"empties/ext4-{size}"))
    assert image.stat().st_size == size
    check(image)
    # Known now, so not even asked for.
    asked = front.calls["HEAD"]
    await datastore.empty_disk(size)
    assert front.calls["HEAD"] == asked
    with pytest.raises(InvalidArgumentError, match="at least"):
        await datastore.empty_disk(1000)


@pytest.mark.parametrize("size", [8 * MIB, 100 * MIB, 10 << 30])
def test_packed_file_systems_are_sound(tmp_path: Path, size: int) -> None:
    image = tmp_path / "image"
    ext4.make(image, size, packed=True)
    check(image)


async def test_extending_twice(datastore: VsphereDatastore, root: Path, front: Front) -> None:
    """vSphere refuses to extend a disk to the size it has, which an attempt before may have done."""
    flat = f"*/ext4-{64 * MIB}-flat.vmdk"

    async def extended_before(front: Front, call: Call, forward: Forward) -> Reply:
        os.truncate(next((root / "incoming").glob(flat)), 64 * MIB)
        return await fail_task(vim.fault.InvalidDiskFormat())(front, call, forward)

    front.inject("ExtendVirtualDisk_Task", extended_before)
    await datastore.empty_disk(64 * MIB)
    front.inject("ExtendVirtualDisk_Task", fail_task(vim.fault.InvalidDiskFormat()))
    with pytest.raises(DriverError, match="InvalidDiskFormat"):
        await datastore.empty_disk(65 * MIB)


async def test_guest_iso(datastore: VsphereDatastore, root: Path, source: Path, front: Front) -> None:
    content, digest = source.read_bytes(), "ab" * 32
    paths = await asyncio.gather(*(datastore.guest_iso(source, digest) for _ in range(3)))
    assert set(paths) == {f"[LocalDS_0] {DIRECTORY}/guest/{digest}.iso"}
    assert (root / "guest" / f"{digest}.iso").read_bytes() == content
    assert front.calls["PUT"] == front.calls["GET"] == 1
    assert source.exists()
    assert await datastore.guest_isos() == {digest}
    await datastore.remove_guest_iso(digest)
    await datastore.remove_guest_iso(digest)
    assert await datastore.guest_isos() == set()
    await datastore.guest_iso(source, digest)
    (root / "guest" / f"{digest}.iso").unlink()
    datastore.look_again()
    await datastore.guest_iso(source, digest)
    assert (root / "guest" / f"{digest}.iso").read_bytes() == content
    with pytest.raises(InvalidArgumentError, match="no digest"):
        await datastore.guest_iso(source, "../x")


async def test_wrong_bytes_are_noticed(datastore: VsphereDatastore, root: Path, source: Path, front: Front) -> None:
    async def spoil(front: Front, call: Call, forward: Forward) -> Reply:
        reply = await forward()
        with next((root / "incoming").glob("*/*.iso")).open("r+b") as file:
            file.write(b"spoilt")
        return reply

    front.inject("PUT", spoil)
    with pytest.raises(DriverError, match="is not what was sent"):
        await datastore.guest_iso(source, "ab" * 32)
    assert await datastore.guest_isos() == set()


async def test_verified_image_disks(open_datastore: Open, root: Path, source: Path, front: Front) -> None:
    async with open_datastore(verify=True) as datastore:
        await datastore.put_image_disk("one", source)
        assert front.calls["GET"] == 1


async def test_space(datastore: VsphereDatastore, front: Front) -> None:
    assert 0 < await datastore.free_bytes() <= await datastore.capacity_bytes()
    assert front.calls["RefreshDatastore"] == 1


async def test_datastore_that_is_gone(session: Session, tmp_path: Path) -> None:
    datacenter = await session.call(session.content.searchIndex.FindByInventoryPath, "/DC0", what="looking")
    gone = vim.Datastore("datastore-gone", datacenter._stub)
    with pytest.raises(PortLayerError):
        await VsphereDatastore(session, datacenter, gone, DIRECTORY, tmp_path).open()
