"""Datastores that keep objects (vSAN): what test_vsphere_disks.py does not ask of both kinds. Namespaces and leases."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import ssl
import threading
from pathlib import Path

import pytest
import vsphere_vsan
from pyVmomi import vim
from vsphere_front import Action, Forward, Front
from vsphere_machines import WHO, guest_image, settings
from vsphere_plain import outcome
from vsphere_simulator import HOST, Simulator
from vsphere_soap import Call, Reply
from vsphere_stores import OBJECTS, Kind, Store
from vsphere_trouble import cut_before, fail_task, held, raise_fault, rewritten

from portlayer.drivers.base import MachineSpec
from portlayer.drivers.vsphere import files, inventory_load, nfc_lease, site_driver
from portlayer.drivers.vsphere.datastore import VsphereDatastore
from portlayer.drivers.vsphere.stream_vmdk import StreamVmdk
from portlayer.errors import DriverError, InvalidArgumentError

# Of a lease's manifest.
SHA1, SIZE = b"<sha1>[^<]*</sha1>", b"<size>[^<]*</size>"


@pytest.fixture
def kind() -> Kind:
    return OBJECTS


@pytest.fixture
def simulator(vsan_simulator: Simulator) -> Simulator:
    return vsan_simulator


@pytest.mark.parametrize(
    ("type_", "top_level", "objects"),
    [
        *(("vsan", None, True), ("vsanD", None, True), ("VVOL", None, True), ("VMFS", False, True)),
        *(("VMFS", True, False), ("NFS41", None, False)),
    ],
)
def test_which_datastores_keep_objects(type_: str, top_level: bool | None, objects: bool) -> None:
    facts = dict(zip(files.KIND, (type_, top_level), strict=True))
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


async def test_the_directory_is_found_again(store: Store, source: Path, front: Front) -> None:
    async with store.opened() as datastore:
        await datastore.put_image_disk("one", source)
        path = datastore.image_path("one")
    async with store.opened("of another state directory") as datastore:
        assert datastore.image_path("one") == path
        assert await datastore.image_disks() == {"one"}
    await store.check()
    assert front.forwarded["ConvertNamespacePathToUuidPath"] == 0  # the shim asks past the front
    assert front.calls["ConvertNamespacePathToUuidPath"] == 1


@pytest.mark.parametrize(
    ("what", "by"),
    [
        (SIZE, b"<size>1</size>"),  # of the disk, perhaps: nobody says
        (SHA1, b"<sha1></sha1>"),
        (b"<returnval>.*</returnval>", b""),
    ],
)
async def test_what_the_host_does_not_tell_is_not_compared(
    datastore: VsphereDatastore, source: Path, front: Front, what: bytes, by: bytes
) -> None:
    told = front.inject("HttpNfcLeaseGetManifest", rewritten(what, by))
    await datastore.put_image_disk("one", source)
    assert told.hits == front.calls["ImportVApp"] == 1


@pytest.mark.parametrize("spoilt", [False, True])
async def test_a_host_may_tell_it_by_sha256(
    datastore: VsphereDatastore, store: Store, source: Path, front: Front, spoilt: bool
) -> None:
    content = source.read_bytes()
    with source.open("rb") as file:
        sent = hashlib.sha256(b"".join(StreamVmdk(source).pieces(file))).hexdigest()
    checksum = b"00" if spoilt else sent.upper().encode()
    told = b"<sha1></sha1><checksum>%b</checksum><checksumType>sha256</checksumType>" % checksum
    front.inject("HttpNfcLeaseGetManifest", rewritten(SHA1, told))
    await datastore.put_image_disk("one", source)
    assert front.calls["ImportVApp"] == 1 + spoilt
    assert (await store.disk("images/one")).startswith(content)


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


async def test_another_lease_after_one_that_a_host_out_of_reach_ended(
    datastore: VsphereDatastore, source: Path, front: Front
) -> None:
    error = b"<name>error</name><op>assign</op>"
    fault = b'<val xsi:type="LocalizedMethodFault"><fault xsi:type="HostCommunication"/><localizedMessage/></val>'
    ended: list[Call] = []

    async def end(front: Front, call: Call, forward: Forward) -> Reply:
        reply = await forward()
        if ended or b">ready<" not in reply.body:
            return reply
        ended.append(call)
        body = reply.body.replace(b">ready<", b">error<")
        if error in body:
            body = body.replace(error, error + fault)
        else:  # that there is none was told before
            body = body.replace(b"<changeSet>", b"<changeSet>" + error + fault + b"</changeSet><changeSet>", 1)
        return Reply(reply.status, body, reply.headers)

    front.inject("WaitForUpdatesEx", end, times=None)
    await datastore.put_image_disk("one", source)
    assert ended
    assert front.calls["ImportVApp"] == 2
    assert front.calls["POST"] == 1


async def test_lease_that_is_over_before_the_disk_is_there(
    datastore: VsphereDatastore, store: Store, source: Path, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it timed out: the next word of how far the disk is tells, not the end of sending."""
    monkeypatch.setattr(nfc_lease, "RENEW_S", 0.01)
    content = source.read_bytes()
    sent = front.inject("POST", held(threading.Event()))
    over = front.inject("HttpNfcLeaseProgress", raise_fault(vim.fault.InvalidState()), when=lambda _: bool(sent.hits))
    await datastore.put_image_disk("one", source)
    assert sent.hits == over.hits == 1
    assert (await store.disk("images/one")).startswith(content)


async def test_vm_that_cannot_be_removed_goes_with_the_next_import(
    datastore: VsphereDatastore, store: Store, source: Path, front: Front, tmp_path: Path
) -> None:
    (another := tmp_path / "another").write_bytes(b"another")
    front.inject("Destroy_Task", fail_task(vim.fault.FileLocked()))
    await datastore.put_image_disk("one", source)
    assert len(await store.machines()) == 1
    await datastore.put_image_disk("two", another)
    assert not await store.machines()


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


def thumbprint(simulator: Simulator, algorithm: str) -> str:
    der = ssl.PEM_cert_to_DER_cert(simulator.certificate.certificate.read_text())
    return ":".join(f"{byte:02X}" for byte in hashlib.new(algorithm, der).digest())


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
async def test_host_of_a_lease_is_known_by_its_thumbprint(
    datastore: VsphereDatastore, source: Path, front: Front, algorithm: str
) -> None:
    right = thumbprint(front.simulator, algorithm)
    front.nfc_thumbprint = right
    await datastore.put_image_disk("one", source)
    source.write_bytes(b"two")
    front.nfc_thumbprint = "00:" * right.count(":") + "00"
    posts = front.calls["POST"]
    with pytest.raises(DriverError, match="is not the one that vCenter says it has"):
        await datastore.put_image_disk("two", source)
    assert front.calls["POST"] == posts
    assert source.exists()


async def test_a_host_out_of_reach_is_passed_by_with_another_lease(
    datastore: VsphereDatastore, source: Path, front: Front
) -> None:
    """Nobody is where the first lease leads."""
    front.nfc_thumbprint = thumbprint(front.simulator, "sha1")
    for host in (f"{HOST}:1", ""):
        front.inject("ImportVApp", leading_to(host))
    await datastore.put_image_disk("one", source)
    assert front.calls["ImportVApp"] == 2
    assert front.calls["POST"] == 1


def leading_to(host: str) -> Action:
    async def act(front: Front, call: Call, forward: Forward) -> Reply:
        front.nfc_host = host
        return await forward()

    return act


async def test_a_star_is_where_the_lease_came_from(datastore: VsphereDatastore, source: Path, front: Front) -> None:
    front.nfc_host = "*"
    await datastore.put_image_disk("one", source)
    assert await datastore.has_image_disk("one")
    assert front.calls["POST"] == 1


async def test_without_a_place_for_vms_it_is_refused(store: Store) -> None:
    datastore = await store.unopened(import_site=None)
    with pytest.raises(InvalidArgumentError, match="no place for VMs is named"):
        await datastore.open()
    assert not list(store.top.iterdir())


async def test_without_drs_a_host_is_named(front: Front, source: Path, tmp_path: Path) -> None:
    there = dataclasses.replace(settings(front), datastore=OBJECTS.datastore)
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


async def test_containers_are_made_there(front: Front, source: Path, tmp_path: Path) -> None:
    """Images, writable disks and the VM itself; a leftover of an import goes when the driver is opened again."""
    there = dataclasses.replace(settings(front), datastore=OBJECTS.datastore)
    image, top = guest_image(tmp_path / "guest"), vsphere_vsan.files(front.simulator)
    spec = MachineSpec("ab" * 32, "web", 64 << 20, 1, "image", 16 << 20)
    async with site_driver.opened(there, WHO, tmp_path / "state", image) as (driver, datastore):
        await datastore.put_image_disk("image", source)
        machine = await driver.create(spec, b"record")
        assert list(top.glob(f"*/disks/{spec.id}.vmdk"))
        left = front.inject("POST", held(threading.Event()))
        source.write_bytes(b"two")
        broken = asyncio.create_task(datastore.put_image_disk("two", source))
        await asyncio.to_thread(left.hit.wait)
        contents = await inventory_load.load(driver.around.session, driver._placement.scope, None, {})
        assert len(contents.leftovers) == 1
        broken.cancel()
        await asyncio.gather(broken, return_exceptions=True)
        await driver.destroy(machine)
        assert await driver.dismantle() == []
        await datastore.remove_all()
    assert not list(top.glob("*/images"))
