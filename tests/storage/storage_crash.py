"""Run as a program: kills a store at every step that leaves a trace on disk, and looks at what the next one finds.

A process of its own because it forks, and because killing is meant literally: the child ends with os._exit in the
middle of an operation, so no `finally` has its say.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from storage_archives import File, Image, docker_save, load, make_tar
from storage_state import State

from portlayer.drivers.qemu import LocalDatastore

_STEPS = ("rename", "replace", "fsync", "unlink", "mkdir", "rmdir")
_KILLED = 99
OLD = Image([make_tar([File("old", b"old")])], ["old:1"])
NEW = [
    Image([OLD.layers[0], make_tar([File("new", b"new")])], ["new:1"], "gzip"),
    Image([make_tar([File("other", b"other")])], ["other:1"]),
]
# What may be seen after a crash: what was before one of the steps of `work`, or after it.
STAGES: list[set[str]] = [
    {"old:1"},
    {"old:1", "new:1", "other:1"},
    {"old:1", "new:1", "other:1", "again:1"},
    {"new:1", "other:1", "again:1"},
    {"new:1", "again:1"},
]


async def begin(state: State) -> None:
    store = state.store()
    await store.open()
    await load(store, docker_save(OLD))


async def work(state: State) -> None:
    store = state.store()
    await store.open()
    await load(store, docker_save(*NEW))
    await store.tag("new:1", "again:1")
    await store.remove("old:1", force=False, used_by=lambda _: [])
    await store.remove("other:1", force=False, used_by=lambda _: [])


async def inspect(state: State) -> None:
    store = state.store()
    await store.open()
    images = store.list()
    tags = {tag for image in images for tag in image.tags}
    assert tags in STAGES, f"found {tags}"
    blobs = {blob[7:] for image in images for stored in image.manifests for blob in stored.manifest.blobs}
    found = {path.name: path for path in (state.path / "images/blobs/sha256").iterdir()}
    assert found.keys() == blobs, f"blobs: {found.keys() ^ blobs}"
    for name, path in found.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == name
    disks = {path.name for path in (state.path / "disks").iterdir()}
    assert disks == {image.image_disk for image in images}, "disks"
    for image in images:
        assert state.disk(store, image.id).names
    rest = {path for path in state.files() if not path.startswith(("disks/", "images/blobs/"))}
    assert rest == {"images/oci-layout"}, f"left over: {rest}"
    assert not any((state.path / "tmp").iterdir())


def die_at(step: int) -> None:
    """Makes the process end just before its `step`th change of the disk."""
    count = 0

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kw: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                os._exit(_KILLED)
            return function(*args, **kw)

        return call

    for name in _STEPS:
        setattr(os, name, wrap(getattr(os, name)))


def in_child(job: Callable[[State], Awaitable[None]], state: State, step: int = 0) -> int:
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if step:
        die_at(step)

    async def run() -> None:
        await job(state)

    try:
        asyncio.run(run())
    except BaseException as error:
        os.write(2, f"step {step}: {error!r}\n".encode())
        os._exit(1)
    os._exit(0)


def main(root: Path) -> int:
    step, status = 0, _KILLED
    while status == _KILLED:
        step += 1
        path = root / str(step)
        path.mkdir()
        state = State(path, LocalDatastore(path))
        assert in_child(begin, state) == 0
        status = in_child(work, state, step)
        if in_child(inspect, state):
            sys.stderr.write(f"after a kill at step {step}\n")
            return 1
    sys.stdout.write(str(step))
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
