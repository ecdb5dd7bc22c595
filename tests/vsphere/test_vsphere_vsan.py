"""Datastores that keep objects (vSAN): directories by DatastoreNamespaceManager, disks by leases; nothing left over."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import vsphere_vsan
from pyVmomi import vim
from vsphere_front import Action, Forward, Front
from vsphere_machines import WHO, guest_image, settings
from vsphere_plain import outcome
from vsphere_sessions import killed, through
from vsphere_simulator import Simulator
from vsphere_soap import Call, Reply
from vsphere_trouble import cut_after, cut_before, drop_session, fail_task, fail_task_after, held, raise_fault

from portlayer.drivers.base import MachineSpec
from portlayer.drivers.vsphere import files, inventory_load, nfc_lease, site_driver
from portlayer.drivers.vsphere.datastore import VsphereDatastore
from portlayer.drivers.vsphere.imported_disks import ImportSite
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import DriverError, ExhaustedError, InvalidArgumentError, NotFoundError, PortLayerError

MIB = 1 << 20
DIRECTORY = "vch-of tests"
STEPS = [
    *("CreateDirectory", "MakeDirectory", "ImportVApp", "POST", "HttpNfcLeaseGetManifest", "HttpNfcLeaseComplete"),
    *("CopyVirtualDisk_Task", "Destroy_Task", "MoveVirtualDisk_Task", "DeleteDatastoreFile_Task"),
]
Open = Callable[..., contextlib.AbstractAsyncContextManager[VsphereDatastore]]


@pytest.mark.parametrize(
    ("kind", "top_level", "objects"),
    [
        *(("vsan", None, True), ("vsanD", None, True), ("VVOL", None, True), ("VMFS", False, True)),
        *(("VMFS", True, False), ("NFS41", None, False)),
    ],
)
def test_which_datastores_keep_objects(kind: str, top_level: bool | None, objects: bool) -> None:
    facts = dict(zip(files.KIND, (kind, top_level), strict=True))
    assert files.keeps_objects({name: value for name, value in facts.items() if value is not None}) == objects


@pytest.mark.parametrize("status", [403, 404, 503])
async def test_a_host_that_refuses_is_asked_by_another_lease(
    datastore: VsphereDatastore, source: Path, front: Front, status: int
) -> None:
    async def refused(front: Front, call: Call, forward: Forward) -> Reply:
        await forward()
        return Reply(status, b"no", ())

    front.inject("POST", refused)
    await datastore.put_image_disk("one", source)
    assert front.calls["POST"] == front.calls["ImportVApp"] == 2


@pytest.fixture(scope="module")
def _vsan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = Simulator(tmp_path_factory.mktemp("vcsim-vsan"), "-host", "3")
    try:
        vsphere_vsan.enable(simulator)
        yield simulator
    finally:
        simulator.close()


@pytest.fixture
def simulator(_vsan: Simulator) -> Simulator:
    if not _vsan.running:
        _vsan.restart()
        vsphere_vsan.enable(_vsan)
    return _vsan


@pytest.fixture
def vsan(simulator: Simulator) -> Path:
    """Where the files of the datastore are."""
    return vsphere_vsan.files(simulator)


@pytest.fixture
async def session(front: Front) -> AsyncIterator[Session]:
    async with through(front) as session:
        yield session


async def any_host() -> None:
    """The simulator chooses."""


async def at(session: Session, path: str) -> Any:
    return await session.call(session.content.searchIndex.FindByInventoryPath, path, what="looking")


@pytest.fixture
async def open_datastore(session: Session, vsan: Path, tmp_path: Path) -> AsyncIterator[Open]:
    datacenter, found = await at(session, "/DC0"), await at(session, f"/DC0/datastore/{vsphere_vsan.DATASTORE}")
    site = ImportSite(await at(session, "/DC0/host/DC0_C0/Resources"), await at(session, "/DC0/vm"), any_host)

    @contextlib.asynccontextmanager
    async def opened(work_dir: str = "work") -> AsyncIterator[VsphereDatastore]:
        datastore = VsphereDatastore(session, datacenter, found, DIRECTORY, tmp_path / work_dir, import_site=site)
        await datastore.open()
        try:
            yield datastore
        finally:
            await datastore.close()

    yield opened
    async with opened() as datastore:
        await datastore.remove_all()
    assert not list(vsan.iterdir())


@pytest.fixture
async def datastore(open_datastore: Open, session: Session, vsan: Path) -> AsyncIterator[VsphereDatastore]:
    async with open_datastore() as datastore:
        yield datastore
        assert not list((root(vsan) / "incoming").iterdir())
        assert not await machines(session)
        # The namespace alone: VMs had directories too.
        assert len(list(vsan.iterdir())) == 1


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """2.5 MiB of a file system, so to speak."""
    path = tmp_path / "source"
    path.write_bytes(os.urandom(5 * MIB // 2))
    return path


def root(vsan: Path) -> Path:
    """The VCH's directory: the only one that has images."""
    return next(vsan.glob("*/images")).parent


def disk(vsan: Path, name: str) -> bytes:
    return (root(vsan) / f"{name}-flat.vmdk").read_bytes()


async def machines(session: Session) -> list[Any]:
    folder = await at(session, "/DC0/vm")
    return list((await session.read([folder], ["childEntity"]))[folder].get("childEntity", ()))


async def test_life_of_an_image_disk(datastore: VsphereDatastore, vsan: Path, source: Path, front: Front) -> None:
    content = source.read_bytes()
    progress: list[int] = []
    assert not await datastore.has_image_disk("one.squashfs")
    await datastore.put_image_disk("one.squashfs", source, on_progress=progress.append)
    assert not source.exists()
    assert await datastore.has_image_disk("one.squashfs")
    assert await datastore.image_disk_bytes("one.squashfs") == 3 * MIB
    assert await datastore.image_disks() == {"one.squashfs"}
    where = root(vsan).name
    assert datastore.image_path("one.squashfs") == f"[vsanDatastore] {where}/images/one.squashfs.vmdk"
    assert disk(vsan, "images/one.squashfs") == content + bytes(MIB // 2)
    assert progress == sorted(progress)
    assert progress[-1] > len(content)
    assert not front.calls["PUT"]
    await datastore.remove_image_disk("one.squashfs")
    await datastore.remove_image_disk("one.squashfs")
    assert not list((root(vsan) / "images").iterdir())
    with pytest.raises(NotFoundError, match=r"one\.squashfs does not exist"):
        await datastore.image_disk_bytes("one.squashfs")


async def test_the_directory_is_found_again(open_datastore: Open, vsan: Path, source: Path, front: Front) -> None:
    async with open_datastore() as datastore:
        await datastore.put_image_disk("one", source)
        path = datastore.image_path("one")
    async with open_datastore("of another state directory") as datastore:
        assert datastore.image_path("one") == path
        assert await datastore.image_disks() == {"one"}
    assert len(list(vsan.iterdir())) == 1
    assert front.forwarded["ConvertNamespacePathToUuidPath"] == 0  # the shim asks past the front
    assert front.calls["ConvertNamespacePathToUuidPath"] == 1


async def test_guest_iso_is_a_plain_file(datastore: VsphereDatastore, vsan: Path, source: Path, front: Front) -> None:
    digest = "ab" * 32
    path = await datastore.guest_iso(source, digest)
    assert path == f"[vsanDatastore] {root(vsan).name}/guest/{digest}.iso"
    assert (root(vsan) / "guest" / f"{digest}.iso").read_bytes() == source.read_bytes()
    assert await datastore.guest_isos() == {digest}
    assert not front.calls["ImportVApp"]
    await datastore.remove_guest_iso(digest)
    assert await datastore.guest_isos() == set()


async def test_of_an_empty_disk_next_to_nothing_is_sent(datastore: VsphereDatastore, vsan: Path, front: Front) -> None:
    size = 64 * MIB
    path = await datastore.empty_disk(size)
    assert path.endswith(f"/empties/ext4-{size}.vmdk")
    assert len(disk(vsan, f"empties/ext4-{size}")) == size
    await datastore.empty_disk(size)
    assert front.calls["POST"] == 1


@pytest.mark.parametrize("method", [*STEPS, "CreateFilter"])
async def test_lost_answers_do_no_harm(
    open_datastore: Open, vsan: Path, source: Path, front: Front, session: Session, method: str
) -> None:
    content = source.read_bytes()
    injected = front.inject(method, cut_after())
    async with open_datastore() as datastore:
        await datastore.put_image_disk("one", source)
    assert injected.hits == 1
    assert disk(vsan, "images/one").startswith(content)
    assert sorted(file.name for file in (root(vsan) / "images").iterdir()) == ["one-flat.vmdk", "one.vmdk"]
    assert not await machines(session)
    assert len(list(vsan.iterdir())) == 1


@pytest.mark.parametrize("method", STEPS)
async def test_session_may_end_at_any_step(
    open_datastore: Open, vsan: Path, source: Path, front: Front, session: Session, method: str
) -> None:
    """A lease ends with its session: the disk is sent again."""
    content = source.read_bytes()
    before = front.calls["Login"]
    front.inject(method, drop_session())
    async with open_datastore() as datastore:
        await datastore.put_image_disk("one", source)
    assert front.calls["Login"] == before + 1
    assert disk(vsan, "images/one").startswith(content)
    assert not await machines(session)


async def test_connection_that_is_cut_in_the_middle(
    datastore: VsphereDatastore, vsan: Path, source: Path, front: Front
) -> None:
    content = source.read_bytes()
    front.inject("POST", cut_before(), times=2)
    await datastore.put_image_disk("one", source)
    assert front.calls["HttpNfcLeaseAbort"] == 2
    assert disk(vsan, "images/one").startswith(content)


def spoilt(**changes: object) -> Action:
    """The host says that something else has come."""

    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        reply = await forward()
        body = reply.body
        for name, value in changes.items():
            begin, end = f"<{name}>".encode(), f"</{name}>".encode()
            head, _, rest = body.partition(begin)
            body = head + begin + str(value).encode() + end + rest.partition(end)[2]
        return Reply(reply.status, body, reply.headers)

    return act


@pytest.mark.parametrize(
    ("method", "action", "error", "words"),
    [
        ("CreateDirectory", raise_fault(vim.fault.CannotCreateFile(file="x")), DriverError, "CannotCreateFile"),
        ("ImportVApp", raise_fault(vim.fault.NoDiskSpace()), ExhaustedError, "NoDiskSpace"),
        ("ImportVApp", raise_fault(vim.fault.InsufficientHostCapacityFault()), ExhaustedError, "InsufficientHost"),
        ("POST", cut_before(), DriverError, "uploading"),
        ("HttpNfcLeaseGetManifest", spoilt(sha1="0" * 40), DriverError, "received is not what was sent"),
        ("HttpNfcLeaseGetManifest", spoilt(size=1), DriverError, "received is not what was sent"),
        ("CopyVirtualDisk_Task", fail_task(vim.fault.NoDiskSpace()), ExhaustedError, "NoDiskSpace"),
        ("CopyVirtualDisk_Task", fail_task_after(vim.fault.FileFault(file="x")), PortLayerError, "FileFault"),
        ("MoveVirtualDisk_Task", fail_task(vim.fault.FileLocked()), PortLayerError, "FileLocked"),
    ],
)
async def test_nothing_is_left_of_a_failure(
    open_datastore: Open,
    vsan: Path,
    source: Path,
    front: Front,
    session: Session,
    method: str,
    action: Action,
    error: type[Exception],
    words: str,
) -> None:
    front.inject(method, action, times=None)
    with pytest.raises(error, match=words):
        async with open_datastore() as datastore:
            await datastore.put_image_disk("one", source)
    assert source.exists()
    front.clear()
    assert not await machines(session)
    assert len(list(vsan.iterdir())) <= 1
    async with open_datastore() as datastore:
        assert not list((root(vsan) / "incoming").iterdir())
        assert not await datastore.has_image_disk("one")
        await datastore.put_image_disk("one", source)
        assert await datastore.has_image_disk("one")


async def test_lease_that_ends_in_an_error(datastore: VsphereDatastore, source: Path, front: Front) -> None:
    """As when the VM cannot be made: the long poll tells."""

    async def failed(front: Front, call: Call, forward: Forward) -> Reply:
        reply = await forward()
        return Reply(reply.status, reply.body.replace(b">ready<", b">error<"), reply.headers)

    front.inject("WaitForUpdatesEx", failed, times=None)
    with pytest.raises(DriverError, match="the lease is error"):
        await datastore.put_image_disk("one", source)
    assert front.calls["HttpNfcLeaseAbort"] == 1
    assert not front.calls["POST"]
    front.clear()


async def test_lease_that_is_over_before_the_disk_is_there(
    datastore: VsphereDatastore, vsan: Path, source: Path, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it timed out: the next word of how far the disk is tells, not the end of sending."""
    monkeypatch.setattr(nfc_lease, "RENEW_S", 0.01)
    content = source.read_bytes()
    sent = front.inject("POST", held(threading.Event()))
    over = front.inject("HttpNfcLeaseProgress", raise_fault(vim.fault.InvalidState()), skip=2)
    await datastore.put_image_disk("one", source)
    assert sent.hits == over.hits == 1
    assert disk(vsan, "images/one").startswith(content)


async def test_nothing_is_left_when_the_caller_gives_up(
    datastore: VsphereDatastore, vsan: Path, source: Path, front: Front
) -> None:
    upload = front.inject("POST", held(threading.Event()))
    task = asyncio.create_task(datastore.put_image_disk("one", source))
    await asyncio.to_thread(upload.hit.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert front.calls["HttpNfcLeaseAbort"] == 1
    assert source.exists()
    assert not await datastore.has_image_disk("one")


async def test_nothing_is_left_when_the_caller_gives_up_before_there_is_a_lease(
    datastore: VsphereDatastore, source: Path, front: Front
) -> None:
    gate = threading.Event()
    begun = front.inject("ImportVApp", held(gate))
    task = asyncio.create_task(datastore.put_image_disk("one", source))
    await asyncio.to_thread(begun.hit.wait)
    task.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert front.calls["HttpNfcLeaseAbort"] == 1
    assert not front.calls["POST"]


@pytest.mark.parametrize("step", STEPS[2:])
async def test_killed_port_layer_leaves_what_the_next_one_removes(
    open_datastore: Open, vsan: Path, source: Path, front: Front, session: Session, tmp_path: Path, step: str
) -> None:
    await killed(front, step, DIRECTORY, str(tmp_path / "work"), str(source), vsphere_vsan.DATASTORE)
    # As a driver does that opens, or dismantles.
    contents = await inventory_load.load(session, await at(session, "/DC0/vm"), None, {})
    assert len(contents.leftovers) == (STEPS.index("ImportVApp") < STEPS.index(step) <= STEPS.index("Destroy_Task"))
    for found, _ in contents.leftovers:
        await session.run(found.vm.Destroy_Task, what="removing what is left")
    async with open_datastore("work") as datastore:
        assert not list((root(vsan) / "incoming").iterdir())
        assert await datastore.has_image_disk("one") == (step == "DeleteDatastoreFile_Task")
    assert not await machines(session)
    assert len(list(vsan.iterdir())) == 1


def sha1(simulator: Simulator) -> str:
    der = ssl.PEM_cert_to_DER_cert(simulator.certificate.certificate.read_text())
    return ":".join(f"{byte:02X}" for byte in hashlib.sha1(der).digest())


async def test_host_of_a_lease_is_known_by_its_thumbprint(
    datastore: VsphereDatastore, source: Path, front: Front
) -> None:
    front.nfc_thumbprint = sha1(front.simulator)
    await datastore.put_image_disk("one", source)
    source.write_bytes(b"two")
    front.nfc_thumbprint = "00:" * 19 + "00"
    posts = front.calls["POST"]
    with pytest.raises(DriverError, match="is not the one that vCenter says it has"):
        await datastore.put_image_disk("two", source)
    assert front.calls["POST"] == posts
    assert source.exists()


async def test_a_star_is_where_the_lease_came_from(datastore: VsphereDatastore, source: Path, front: Front) -> None:
    front.nfc_host = "*"
    await datastore.put_image_disk("one", source)
    assert await datastore.has_image_disk("one")
    assert front.calls["POST"] == 1


async def test_without_a_place_for_vms_it_is_refused(session: Session, vsan: Path, tmp_path: Path) -> None:
    found = await at(session, f"/DC0/datastore/{vsphere_vsan.DATASTORE}")
    with pytest.raises(InvalidArgumentError, match="no place for VMs is named"):
        await VsphereDatastore(session, await at(session, "/DC0"), found, DIRECTORY, tmp_path).open()
    assert not list(vsan.iterdir())


async def test_without_drs_a_host_is_named(front: Front, vsan: Path, source: Path, tmp_path: Path) -> None:
    there = dataclasses.replace(settings(front), datastore=vsphere_vsan.DATASTORE)
    with front.simulator.connected() as instance:
        cluster = instance.RetrieveContent().rootFolder.childEntity[0].hostFolder.childEntity[0]
        switch = lambda on: outcome(  # noqa: E731
            cluster.ReconfigureComputeResource_Task(
                vim.cluster.ConfigSpecEx(drsConfig=vim.cluster.DrsConfigInfo(enabled=on)), True
            )
        )
        switch(False)
        try:
            named: list[str | None] = []
            front.inject("ImportVApp", cut_before(), when=lambda call: named.append(call.text("host")) is not None)
            image = guest_image(tmp_path / "guest")
            async with site_driver.opened(there, WHO, tmp_path / "state", image) as (driver, datastore):
                await datastore.put_image_disk("image", source)
                assert await driver.dismantle() == []
                await datastore.remove_all()
            assert {*named} <= {host._moId for host in cluster.host}
            assert named
        finally:
            switch(True)


async def test_containers_are_made_there(front: Front, vsan: Path, source: Path, tmp_path: Path) -> None:
    """Images, writable disks and the VM itself; a leftover of an import goes when the driver is opened again."""
    there = dataclasses.replace(settings(front), datastore=vsphere_vsan.DATASTORE)
    image = guest_image(tmp_path / "guest")
    spec = MachineSpec("ab" * 32, "web", 64 << 20, 1, "image", 16 << 20)
    async with site_driver.opened(there, WHO, tmp_path / "state", image) as (driver, datastore):
        await datastore.put_image_disk("image", source)
        machine = await driver.create(spec, b"record")
        assert list(root(vsan).glob(f"disks/{spec.id}.vmdk"))
        left = front.inject("POST", held(threading.Event()))
        source.write_bytes(b"two")
        broken = asyncio.create_task(datastore.put_image_disk("two", source))
        await asyncio.to_thread(left.hit.wait)
        contents = await inventory_load.load(driver.session, driver._placement.scope, None, {})
        assert len(contents.leftovers) == 1
        broken.cancel()
        await asyncio.gather(broken, return_exceptions=True)
        await driver.destroy(machine)
        assert await driver.dismantle() == []
        await datastore.remove_all()
    assert not list(vsan.glob("*/images"))
