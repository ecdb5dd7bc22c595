"""Image disks in the datastore: made once for each set of layers, and never forgotten there.

A datastore cannot be asked for all it holds. So before a disk is put in, or an image that has one is taken out of the
index, a marker says that the disk is in doubt; it goes when index and datastore agree again. What a crash leaves in
doubt is settled at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from portlayer.drivers.base import Datastore
from portlayer.storage.files import storage_errors, sync_directory
from portlayer.storage.work import to_completion

# Part of each name: a change in how disks are made must change their names. The compression is the same for all of a
# datastore, and so no matter of names.
_FORMAT = "squashfs-lz4-1"


def disk_name(diff_ids: Sequence[str]) -> str:
    """The name of the disk that holds these layers. Images of the same layers share it."""
    return hashlib.sha256("\n".join([_FORMAT, *diff_ids]).encode()).hexdigest() + ".squashfs"


class ImageDisks:
    """The image disks of one store.

    `settle` and `pinned`'s beginning must be under the store's lock, so that no disk is taken away while someone
    relies on it.
    """

    def __init__(self, datastore: Datastore, doubts: Path) -> None:
        self._datastore = datastore
        self._doubts = doubts
        self._pins: Counter[str] = Counter()
        self._making: dict[str, asyncio.Lock] = {}

    async def open(self, referenced: Collection[str]) -> None:
        """Settles what an earlier process left in doubt."""
        with storage_errors("reading the markers of image disks"):
            self._doubts.mkdir(parents=True, exist_ok=True)
            names = [path.name for path in self._doubts.iterdir()]
        await self.settle(names, referenced)

    @contextlib.contextmanager
    def pinned(self, names: Iterable[str]) -> Iterator[None]:
        """In the block, these disks are not taken away."""
        held = list(names)
        self._pins.update(held)
        try:
            yield
        finally:
            self._pins -= Counter(held)
            for name in held:
                if not self._pins[name]:
                    self._making.pop(name, None)

    async def provide(self, name: str, make: Callable[[], Awaitable[Path]]) -> None:
        """Makes sure that the disk exists. Its name must be pinned.

        `make` gives a file with the content; of several who want the disk at once only one is asked.
        """
        async with self._making.setdefault(name, asyncio.Lock()):
            if await self._datastore.has_image_disk(name):
                return
            source = await make()
            await self.doubt([name])
            await self._datastore.put_image_disk(name, source)

    async def doubt(self, names: Iterable[str]) -> None:
        """Marks disks whose place in datastore or index is about to change; durable when this returns."""
        await to_completion(self._mark, list(names))

    async def settle(self, names: Iterable[str], referenced: Collection[str]) -> int:
        """Removes those of `names` that no image has and nobody relies on; the bytes that this frees."""
        freed = 0
        for name in names:
            if name not in referenced:
                if self._pins[name]:
                    continue  # whoever holds it settles it
                freed += await self._remove(name)
            with storage_errors("removing the marker of an image disk"):
                (self._doubts / name).unlink(missing_ok=True)
        return freed

    async def size(self, name: str) -> int:
        """Bytes in the datastore, 0 when it does not exist (yet)."""
        return await self._datastore.image_disk_bytes(name) if await self._datastore.has_image_disk(name) else 0

    async def free_bytes(self) -> int:
        return await self._datastore.free_bytes()

    async def _remove(self, name: str) -> int:
        size = await self.size(name)
        await self._datastore.remove_image_disk(name)
        return size

    def _mark(self, names: list[str]) -> None:
        with storage_errors("marking an image disk"):
            for name in names:
                (self._doubts / name).touch()
            sync_directory(self._doubts)
