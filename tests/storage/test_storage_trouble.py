"""Crashes, full disks, cancellation, and several things at once: nothing half-made, nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from storage_archives import File, Image, chunked, digest, docker_save, load, make_tar, oci_layout, save
from storage_state import Disk, State

from portlayer.drivers.qemu import LocalDatastore
from portlayer.errors import ExhaustedError, InvalidArgumentError, NotFoundError, PortLayerError, UnavailableError
from portlayer.storage import ImageStore, Limits, squashfs, tar_write
from portlayer.storage.tar import Kind
from portlayer.storage.work import Work
from portlayer.v1.storage_pb2 import ImportImageOptions

LAYER = make_tar([File("f", b"12345")])
NOISE = make_tar([File("noise", os.urandom(3 << 20))])


@pytest.mark.slow
def test_a_kill_at_any_step_leaves_the_state_before_or_after(tmp_path: Path) -> None:
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}:{here.parents[1]}"}
    command = [sys.executable, str(here / "storage_crash.py"), str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 40


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "vch-test", str(path)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system can only be mounted as root")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


FULL = [(size, kind) for size in ("1m", "2m", "3500k", "5m", "6600k", "7m", "8m") for kind in ("", "gzip")]


@pytest.mark.parametrize(("size", "compression"), [*FULL, ("9500k", "gzip"), ("10m", "gzip")])
async def test_a_full_disk(tmp_path: Path, size: str, compression: str) -> None:
    """Too small for the upload, for the blobs, for the disk: whichever, it says so and cleans up, and then goes on."""
    with small_disk(tmp_path / "state", size) as path:
        state = State(path, LocalDatastore(path))
        store = state.store(Limits(reserve_bytes=0, unpacked_bytes=1 << 30))
        await store.open()
        await load(store, docker_save(Image([LAYER], ["small:1"])))
        before = state.files()
        with pytest.raises(ExhaustedError, match="no space left on device"):
            await load(store, docker_save(Image([NOISE], ["big:1"], compression)))
        assert state.files() == before
        assert [image.tags for image in store.list()] == [("small:1",)]
        await store.tag("small:1", "small:2")


async def test_the_reserve_is_kept(state: State) -> None:
    free = os.statvfs(state.path)
    store = state.store(Limits(reserve_bytes=free.f_bavail * free.f_frsize * 2))
    await store.open()
    with pytest.raises(ExhaustedError, match="which must stay free"):
        await store.import_rootfs(ImportImageOptions(), chunked(LAYER))
    assert store.list() == []


async def test_no_new_index_no_change(store: ImageStore, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    await load(store, docker_save(Image([LAYER], ["box:1"])))
    before, index = state.files(), (state.path / "images/index.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("portlayer.storage.layout.write_durably", full)
        with pytest.raises(ExhaustedError):
            await load(store, docker_save(Image([NOISE], ["box:1"])))
        with pytest.raises(ExhaustedError):
            await store.tag("box:1", "box:2")
        with pytest.raises(ExhaustedError):
            await store.remove("box:1", force=False, used_by=lambda _: [])
    assert (state.path / "images/index.json").read_bytes() == index
    assert store.get("box:1").tags == ("box:1",)
    assert state.files() - before == {f"images/disks-in-doubt/{store.get('box:1').image_disk}"}
    await store.remove("box:1", force=False, used_by=lambda _: [])
    assert state.files() == {"images/oci-layout"}


async def test_a_datastore_that_refuses(state: State) -> None:
    class Refusing(LocalDatastore):
        async def put_image_disk(self, name: str, source: Path) -> None:
            raise UnavailableError("the datastore is away")

    state.datastore = Refusing(state.path)
    store = state.store()
    await store.open()
    with pytest.raises(UnavailableError, match="is away"):
        await load(store, docker_save(Image([LAYER], ["box:1"])))
    assert state.files() == {"images/oci-layout"}


async def test_all_images_or_none(store: ImageStore, state: State) -> None:
    """The second image is broken: the first, whole by then, is not kept either."""
    good = Image([LAYER], ["good:1"])
    bad = Image([NOISE], ["bad:1"], extra={"rootfs": {"type": "layers", "diff_ids": [digest(b"")]}})
    with pytest.raises(InvalidArgumentError):
        await load(store, docker_save(good, bad))
    assert state.files() == {"images/oci-layout"}


async def test_a_client_that_vanishes(store: ImageStore, state: State) -> None:
    class GoneError(Exception):
        pass

    async def upload() -> AsyncIterator[bytes]:
        yield docker_save(Image([LAYER]))[:3000]
        raise GoneError

    with pytest.raises(GoneError):
        async for _ in store.load(upload()):
            pass
    assert state.files() == {"images/oci-layout"}


@pytest.mark.parametrize("moment", ["portlayer.storage.intake.copy_hashed", "portlayer.storage.intake.make_squashfs"])
async def test_cancelling_stops_the_thread_and_cleans_up(
    store: ImageStore, state: State, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """At the first byte copied, and while mksquashfs runs."""
    loop = asyncio.get_running_loop()
    reached = asyncio.Event()
    ended: list[str] = []

    def slow(*args: object) -> None:
        work = next(arg for arg in args if isinstance(arg, Work)) if "squashfs" in moment else None
        check: Callable[[], None] = work.check if work else args[2]  # type: ignore[assignment]
        loop.call_soon_threadsafe(reached.set)
        try:
            while True:
                check()
        finally:
            ended.append("thread")

    monkeypatch.setattr(moment, slow)
    task = asyncio.create_task(load(store, docker_save(Image([LAYER]))))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["thread"]
    assert state.files() == {"images/oci-layout"}


async def test_cancelling_kills_mksquashfs(store: ImageStore, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    reached = asyncio.Event()

    def endless(_tree: object, _layers: object, sink: squashfs.Sink, check: Callable[[], None]) -> None:
        loop.call_soon_threadsafe(reached.set)
        while True:
            sink.write(bytes(512))  # no check: the pipe breaks when the process is killed
            sink.write(tar_write.header(os.urandom(8).hex().encode(), Kind.FILE))

    monkeypatch.setattr(squashfs, "write_tree", endless)
    task = asyncio.create_task(load(store, docker_save(Image([LAYER]))))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert state.files() == {"images/oci-layout"}


async def test_mksquashfs_that_fails(
    store: ImageStore, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "bin" / "mksquashfs"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho it hurts\nexit 3\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    before = state.files()
    with pytest.raises(UnavailableError, match="mksquashfs ended with 3: it hurts"):
        await load(store, docker_save(Image([NOISE])))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="mksquashfs is not installed on this host"):
        await load(store, docker_save(Image([NOISE])))
    assert state.files() == before


@pytest.mark.slow
async def test_many_things_at_once(store: ImageStore, state: State) -> None:
    """The same image twice, others, removals and tags in between: at the end memory, index and disk agree."""
    shared = [LAYER, NOISE]
    archives = [docker_save(Image(shared[: 1 + n % 2], [f"box:{n}"], run={"User": str(n % 3)})) for n in range(12)]

    async def load_and_remove(number: int) -> None:
        await load(store, archives[number])
        await store.tag(f"box:{number}", f"again:{number}")
        await asyncio.gather(
            store.remove(f"box:{number}", force=False, used_by=lambda _: []),
            save(store, f"again:{number}"),
        )
        if number % 3:
            await store.remove(f"again:{number}", force=False, used_by=lambda _: [])

    async with asyncio.TaskGroup() as group:
        for number in range(len(archives)):
            group.create_task(load_and_remove(number))
    assert sorted(tag for image in store.list() for tag in image.tags) == ["again:0", "again:3", "again:6", "again:9"]
    files = state.files()
    again = state.store()
    await again.open()
    assert state.files() == files, "opening found something to sweep"
    assert [image.id for image in again.list()] == [image.id for image in store.list()]
    assert {path.name for path in (state.path / "disks").iterdir()} == {image.image_disk for image in store.list()}


async def test_two_loads_of_one_image_make_one_disk(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    original = squashfs.make_squashfs

    def counting(*args: object) -> None:
        made.append(args)
        original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("portlayer.storage.intake.make_squashfs", counting)
    archive = docker_save(Image([NOISE], ["box:1"]))
    await asyncio.gather(*(load(store, archive) for _ in range(4)))
    assert len(made) == 1
    assert store.get("box:1")


@pytest.mark.slow
async def test_a_disk_stays_while_another_load_relies_on_it(store: ImageStore, state: State) -> None:
    """Removing an image in the middle of loading one with the same layers."""
    await load(store, docker_save(Image([LAYER], ["one:1"])))
    archive = docker_save(Image([LAYER], ["two:1"], run={"User": "x"}))
    for _ in range(20):
        await asyncio.gather(load(store, archive), store.remove("one:1", force=False, used_by=lambda _: []))
        assert state.disk(store, "two:1").names == {"/f"}
        await load(store, docker_save(Image([LAYER], ["one:1"])))
        await store.remove("two:1", force=False, used_by=lambda _: [])


async def test_saving_outlives_the_image(store: ImageStore, state: State) -> None:
    await load(store, oci_layout(Image([NOISE], ["docker.io/library/box:1"])))
    whole = await save(store, "box:1")
    chunks = store.save(["box:1"])
    pieces = [await anext(chunks)]
    await store.remove("box:1", force=False, used_by=lambda _: [])
    assert digest(NOISE)[7:] in {path.rpartition("/")[2] for path in state.files()}
    pieces += [piece async for piece in chunks]
    assert b"".join(pieces) == whole
    assert state.files() == {"images/oci-layout"}


async def test_an_abandoned_save_lets_go(store: ImageStore, state: State) -> None:
    await load(store, docker_save(Image([NOISE], ["box:1"])))
    chunks = store.save(["box:1"])
    await anext(chunks)
    await store.remove("box:1", force=False, used_by=lambda _: [])
    await chunks.aclose()
    assert state.files() == {"images/oci-layout"}


async def test_a_missing_disk_is_made_again(store: ImageStore, state: State) -> None:
    await load(store, docker_save(Image([LAYER, NOISE], ["box:1"], "gzip")))
    image = store.get("box:1")
    path = state.datastore.path(image.image_disk)
    before = path.read_bytes()
    path.unlink()
    names = await asyncio.gather(store.ensure_disk(image), store.ensure_disk(image))
    assert set(names) == {image.image_disk}
    assert path.read_bytes() == before
    assert not any((state.path / "tmp").iterdir())
    await store.remove("box:1", force=False, used_by=lambda _: [])
    with pytest.raises(NotFoundError):
        await store.ensure_disk(image)


async def test_a_damaged_image_does_not_hide_the_others(store: ImageStore, state: State) -> None:
    bad, good = Image([LAYER], ["bad:1"]), Image([LAYER], ["good:1"], run={"User": "x"})
    await load(store, docker_save(bad, good))
    (state.path / "images/blobs/sha256" / bad.id[7:]).unlink()
    again = state.store()
    await again.open()
    assert [image.tags for image in again.list()] == [("good:1",)]


async def test_an_index_that_is_not_ours_is_left_alone(state: State) -> None:
    (state.path / "images").mkdir()
    (state.path / "images/index.json").write_text("{")
    with pytest.raises(PortLayerError, match=r"index\.json is not JSON"):
        await state.store().open()


@pytest.mark.slow
async def test_round_trip_keeps_every_digest(store: ImageStore, tmp_path: Path) -> None:
    one = Image([LAYER, NOISE], ["docker.io/library/one:1", "quay.io/x/one:2"], "gzip")
    two = Image([LAYER], ["docker.io/library/two:1"], "zstd", extra={"unknown": "field"})
    plain = Image([LAYER], run={"User": "nobody"})
    await load(store, oci_layout(one, two, plain))
    archive = await save(store, "one:1", "quay.io/x/one:2", "two", plain.id)
    assert archive == await save(store, "one:1", "quay.io/x/one:2", "two", plain.id)
    other_state = State(tmp_path / "other", LocalDatastore(tmp_path / "other"))
    other = other_state.store()
    await other.open()
    await load(other, archive)
    assert {(i.id, i.manifest_digest, i.tags, i.config_json) for i in other.list()} == {
        (i.id, i.manifest_digest, i.tags, i.config_json) for i in store.list()
    }
    assert other.get("one:1").manifest_digest == digest(one.manifest)
    assert await save(other, "one:1", "quay.io/x/one:2", "two", plain.id) == archive
    disk = Disk(other_state.datastore, other.get("one:1").image_disk)
    assert disk.names == {"/f", "/noise"}


async def test_what_save_takes_for_names(store: ImageStore) -> None:
    image = Image([LAYER], ["box:1", "box:2", "other:1"])
    await load(store, docker_save(image))
    assert b'"RepoTags":["box:1","box:2"]' in await save(store, "box")
    assert b'"RepoTags":["box:2"]' in await save(store, "box:2")
    assert b'"RepoTags":null' in await save(store, image.id[7:19])
    assert b'"RepoTags":["other:1","box:1"]' in await save(store, "other:1", "box:1")
    for name, error in (("no", NotFoundError), ("A", InvalidArgumentError)):
        with pytest.raises(error):
            await save(store, name)
    with pytest.raises(InvalidArgumentError, match="no image was named"):
        await save(store)


async def test_saved_pieces_are_small(store: ImageStore) -> None:
    await load(store, docker_save(Image([NOISE], ["box:1"])))
    sizes = [len(chunk) async for chunk in store.save(["box:1"])]
    assert max(sizes) <= 1 << 20
    assert sum(sizes) % 512 == 0


async def test_bytes_on_disk(store: ImageStore, state: State) -> None:
    await load(store, docker_save(Image([NOISE], ["box:1"])))
    expected = sum((state.path / name).stat().st_size for name in state.files() if name != "images/oci-layout")
    assert await store.images_bytes() == expected
    assert await store.free_bytes() > 0
