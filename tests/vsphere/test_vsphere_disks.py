"""Image disks come to a datastore whole or not at all, once, and nothing is left over: by PUT and by lease."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from pyVmomi import vim
from vsphere_front import Action, Front
from vsphere_sessions import killed
from vsphere_simulator import Simulator
from vsphere_stores import FILES, OBJECTS, Kind, Store
from vsphere_trouble import (
    cut_after,
    cut_before,
    drop_session,
    fail_task,
    fail_task_after,
    held,
    raise_fault,
    refuse_file,
    rewritten,
)

from portlayer.drivers.vsphere import inventory_load, upload
from portlayer.drivers.vsphere.datastore import VsphereDatastore
from portlayer.errors import DriverError, ExhaustedError, NotFoundError, PortLayerError

MIB = 1 << 20
# Of the manifest of a lease.
SHA1 = b"<sha1>[^<]*</sha1>"
# What is done for a disk, in order, from the opening of the datastore on.
STEPS = {
    FILES: ["MakeDirectory", "CreateVirtualDisk_Task", "PUT", "MoveVirtualDisk_Task", "DeleteDatastoreFile_Task"],
    OBJECTS: [
        *("CreateDirectory", "MakeDirectory", "ImportVApp", "POST", "HttpNfcLeaseGetManifest"),
        *("HttpNfcLeaseComplete", "CopyVirtualDisk_Task", "Destroy_Task", "MoveVirtualDisk_Task"),
        "DeleteDatastoreFile_Task",
    ],
}


def steps(
    *, files: Iterable[str] = (), objects: Iterable[str] = (), without: Iterable[str] = ()
) -> pytest.MarkDecorator:
    """All steps of both kinds, and some more, without some."""
    more = {FILES: files, OBJECTS: objects}
    pairs = [(kind, step) for kind, own in STEPS.items() for step in (*own, *more[kind]) if step not in without]
    return pytest.mark.parametrize(("kind", "step"), pairs, indirect=["kind"], ids=str)


@pytest.fixture(params=[FILES, OBJECTS], ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def simulator(request: pytest.FixtureRequest, kind: Kind) -> Simulator:
    found: Simulator = request.getfixturevalue(kind.simulator)
    return found


async def test_life_of_an_image_disk(datastore: VsphereDatastore, store: Store, source: Path, front: Front) -> None:
    content = source.read_bytes()
    progress: list[int] = []
    assert not await datastore.has_image_disk("one.squashfs")
    await datastore.put_image_disk("one.squashfs", source, on_progress=progress.append)
    assert not source.exists()
    assert await datastore.has_image_disk("one.squashfs")
    assert await datastore.image_disk_bytes("one.squashfs") == 3 * MIB
    assert await datastore.image_disks() == {"one.squashfs"}
    where = store.root.relative_to(store.top)
    assert datastore.image_path("one.squashfs") == f"[{store.kind.datastore}] {where}/images/one.squashfs.vmdk"
    assert await store.disk("images/one.squashfs") == content + bytes(MIB // 2)
    assert progress == sorted(progress)
    assert progress[0] == 0
    assert progress[-1] > len(content)
    assert front.calls["PUT"] + front.calls["POST"] == front.calls[store.kind.upload] == 1
    await datastore.remove_image_disk("one.squashfs")
    await datastore.remove_image_disk("one.squashfs")
    assert not store.names("images")
    with pytest.raises(NotFoundError, match=r"one\.squashfs does not exist"):
        await datastore.image_disk_bytes("one.squashfs")


async def test_an_upload_that_takes_long_says_how_far_it_is(
    datastore: VsphereDatastore, source: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "_SAY_S", 0.0)
    caplog.set_level(logging.INFO)
    await datastore.put_image_disk("one", source)
    assert re.search(r"uploading \S.*/one\S*: 2 of [23] MiB", caplog.text)


async def test_the_first_one_stays(datastore: VsphereDatastore, store: Store, source: Path, tmp_path: Path) -> None:
    content = source.read_bytes()
    await datastore.put_image_disk("one", source)
    (other := tmp_path / "other").write_bytes(b"other")
    await datastore.put_image_disk("one", other)
    assert not other.exists()
    assert (await store.disk("images/one")).startswith(content)


async def test_an_empty_disk_is_made_once(datastore: VsphereDatastore, store: Store, front: Front) -> None:
    size = 64 * MIB
    paths = await asyncio.gather(*(datastore.empty_disk(size - more) for more in range(3)))
    assert len(set(paths)) == 1
    assert paths[0].endswith(f"/empties/ext4-{size}.vmdk")
    assert front.calls[store.kind.upload] == 1
    assert not list(store.work_dir().glob(".empty-*"))
    assert len(await store.disk(f"empties/ext4-{size}")) == size


async def test_guest_iso_is_a_plain_file(datastore: VsphereDatastore, store: Store, source: Path, front: Front) -> None:
    digest = "ab" * 32
    paths = await asyncio.gather(*(datastore.guest_iso(source, digest) for _ in range(3)))
    where = store.root.relative_to(store.top)
    assert set(paths) == {f"[{store.kind.datastore}] {where}/guest/{digest}.iso"}
    assert (store.root / "guest" / f"{digest}.iso").read_bytes() == source.read_bytes()
    assert front.calls["PUT"] == front.calls["GET"] == 1
    assert await datastore.guest_isos() == {digest}
    await datastore.remove_guest_iso(digest)
    await datastore.remove_guest_iso(digest)
    assert await datastore.guest_isos() == set()


@steps(files=["HEAD"], objects=["CreateFilter"])
async def test_lost_answers_do_no_harm(store: Store, source: Path, front: Front, step: str) -> None:
    content = source.read_bytes()
    injected = front.inject(step, cut_after())
    async with store.opened() as datastore:
        await datastore.put_image_disk("one", source)
    assert injected.hits == 1
    assert (await store.disk("images/one")).startswith(content)
    assert store.names("images") == ["one-flat.vmdk", "one.vmdk"]
    await store.check()


@steps(files=["HEAD"])
async def test_session_may_end_at_any_step(store: Store, source: Path, front: Front, step: str) -> None:
    """A lease ends with its session: the disk is sent again."""
    content = source.read_bytes()
    before = front.calls["Login"]
    front.inject(step, drop_session())
    async with store.opened() as datastore:
        await datastore.put_image_disk("one", source)
    assert front.calls["Login"] == before + 1
    assert (await store.disk("images/one")).startswith(content)
    await store.check()


async def test_what_is_cut_off_is_sent_again(
    datastore: VsphereDatastore, store: Store, source: Path, front: Front
) -> None:
    content = source.read_bytes()
    front.inject(store.kind.upload, cut_before(), times=2)
    await datastore.put_image_disk("one", source)
    assert front.calls[store.kind.upload] == 3
    assert (await store.disk("images/one")).startswith(content)


@pytest.mark.parametrize(
    ("kind", "step", "action", "error", "words"),
    [
        (FILES, "CreateVirtualDisk_Task", fail_task(vim.fault.NoDiskSpace()), ExhaustedError, "NoDiskSpace"),
        (FILES, "PUT", cut_before(), DriverError, "uploading"),
        (FILES, "PUT", refuse_file(507, b""), ExhaustedError, "full"),
        (FILES, "PUT", refuse_file(500, b"<p>There is not enough space on the device</p>"), ExhaustedError, "full"),
        (FILES, "PUT", refuse_file(403, b""), DriverError, "FileManagement"),
        (FILES, "PUT", refuse_file(503, b""), DriverError, "503"),
        (FILES, "PUT", refuse_file(200, b""), DriverError, "3145728 bytes were sent and 0 arrived"),
        (FILES, "MoveVirtualDisk_Task", fail_task(vim.fault.FileLocked()), PortLayerError, "FileLocked"),
        (OBJECTS, "CreateDirectory", raise_fault(vim.fault.CannotCreateFile(file="x")), DriverError, "CannotCreate"),
        (OBJECTS, "ImportVApp", raise_fault(vim.fault.NoDiskSpace()), ExhaustedError, "NoDiskSpace"),
        (OBJECTS, "ImportVApp", raise_fault(vim.fault.InsufficientHostCapacityFault()), ExhaustedError, "Insufficient"),
        (OBJECTS, "POST", cut_before(), DriverError, "uploading"),
        (OBJECTS, "HttpNfcLeaseGetManifest", rewritten(SHA1, b"<sha1>00</sha1>"), DriverError, "is not what was sent"),
        (OBJECTS, "CopyVirtualDisk_Task", fail_task(vim.fault.NoDiskSpace()), ExhaustedError, "NoDiskSpace"),
        (OBJECTS, "CopyVirtualDisk_Task", fail_task_after(vim.fault.FileFault(file="x")), PortLayerError, "FileFault"),
        (OBJECTS, "MoveVirtualDisk_Task", fail_task(vim.fault.FileLocked()), PortLayerError, "FileLocked"),
    ],
    indirect=["kind"],
)
async def test_nothing_is_left_of_a_failure(
    store: Store, source: Path, front: Front, step: str, action: Action, error: type[Exception], words: str
) -> None:
    front.inject(step, action, times=None)
    with pytest.raises(error, match=words):
        async with store.opened() as datastore:
            await datastore.put_image_disk("one", source)
    assert source.exists()
    front.clear()
    async with store.opened("of another port layer") as datastore:
        await store.check()
        assert not await datastore.has_image_disk("one")
        await datastore.put_image_disk("one", source)
        assert await datastore.has_image_disk("one")


async def test_what_is_locked_goes_with_the_next_arrival(
    datastore: VsphereDatastore, store: Store, source: Path, front: Front, tmp_path: Path
) -> None:
    """As when a host still holds a file open for somebody who has gone."""
    (another := tmp_path / "another").write_bytes(b"another")
    front.inject("DeleteDatastoreFile_Task", fail_task(vim.fault.FileLocked()))
    await datastore.put_image_disk("one", source)
    assert len(store.left()) == 1
    await datastore.put_image_disk("two", another)
    assert not store.left()


async def test_what_is_locked_keeps_no_port_layer_from_starting(
    store: Store, source: Path, front: Front, tmp_path: Path
) -> None:
    front.inject("DeleteDatastoreFile_Task", fail_task(vim.fault.FileLocked()), times=2)
    async with store.opened() as datastore:
        await datastore.put_image_disk("one", source)
        assert len(store.left()) == 1
    (another := tmp_path / "another").write_bytes(b"another")
    async with store.opened() as datastore:
        assert len(store.left()) == 1
        await datastore.put_image_disk("two", another)
    await store.check()


async def test_nothing_is_left_when_the_caller_gives_up(
    datastore: VsphereDatastore, store: Store, source: Path, front: Front
) -> None:
    sending = front.inject(store.kind.upload, held(threading.Event()))
    task = asyncio.create_task(datastore.put_image_disk("one", source))
    await asyncio.to_thread(sending.hit.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.check()
    assert front.calls["HttpNfcLeaseAbort"] == (store.kind is OBJECTS)
    assert source.exists()
    assert not await datastore.has_image_disk("one")


async def test_two_port_layers_with_the_same_image(store: Store, source: Path, front: Front, tmp_path: Path) -> None:
    """Both upload it; the first one stays, and neither takes the other's files away."""
    content = source.read_bytes()
    (same := tmp_path / "same").write_bytes(content)
    gate = threading.Event()
    move = front.inject("MoveVirtualDisk_Task", held(gate))
    async with store.opened("work") as one:
        slow = asyncio.create_task(one.put_image_disk("one", source))
        await asyncio.to_thread(move.hit.wait)
        async with store.opened("other") as other:
            assert len(store.left()) == 1
            await other.put_image_disk("one", same)
            gate.set()
            await slow
    await store.check()
    assert (await store.disk("images/one")).startswith(content)
    assert store.names("images") == ["one-flat.vmdk", "one.vmdk"]


@steps(without=["CreateDirectory", "MakeDirectory"])
async def test_killed_port_layer_leaves_what_the_next_one_removes(
    store: Store, source: Path, front: Front, step: str
) -> None:
    await killed(front, step, store.kind.directory, str(store.work_dir()), str(source), store.kind.datastore)
    assert len(store.left()) == 1
    if store.kind is OBJECTS:
        await _remove_leftovers(store, step)
    async with store.opened("other"):
        assert len(store.left()) == 1  # it could be on its way still
    async with store.opened() as datastore:
        await store.check()
        # After the move it is there; before it, nothing is.
        assert await datastore.has_image_disk("one") == (step == "DeleteDatastoreFile_Task")


async def _remove_leftovers(store: Store, step: str) -> None:
    """As a driver does that opens, or dismantles."""
    contents = await inventory_load.load(store.session, await store.at("/DC0/vm"), None, {})
    had_vm = STEPS[OBJECTS][STEPS[OBJECTS].index("ImportVApp") + 1 : STEPS[OBJECTS].index("Destroy_Task") + 1]
    assert len(contents.leftovers) == (step in had_vm)
    for found, _ in contents.leftovers:
        await store.session.run(found.vm.Destroy_Task, what="removing what is left")
