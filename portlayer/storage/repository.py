"""Index, blobs and disks, kept in step: one change at a time, and each change whole or not at all.

The order of every change is: blobs and disks in place; then index.json replaced; then what nothing names any more is
removed. Memory follows the index. A crash leaves nothing but surplus, and `open` removes that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from pathlib import Path

from portlayer.drivers.base import Datastore
from portlayer.errors import InvalidArgumentError
from portlayer.storage.catalogue import Catalogue
from portlayer.storage.disks import ImageDisks
from portlayer.storage.files import storage_errors
from portlayer.storage.image_config import parse_image_config
from portlayer.storage.images import StoredManifest
from portlayer.storage.layout import IndexEntry, Layout
from portlayer.storage.manifest import parse_manifest
from portlayer.storage.work import to_completion, uninterrupted

log = logging.getLogger(__name__)


class Repository:
    """What exists, in memory and on disk. Whoever reads `catalogue` in order to `commit` holds `lock` meanwhile."""

    def __init__(self, root: Path, datastore: Datastore) -> None:
        self.layout = Layout(root)
        self.disks = ImageDisks(datastore, root / "disks-in-doubt")
        self.lock = asyncio.Lock()
        self._catalogue = Catalogue()
        self._readers: Counter[str] = Counter()

    @property
    def catalogue(self) -> Catalogue:
        return self._catalogue

    async def open(self) -> None:
        """Reads the index and removes what a crash has left half-made."""
        self._catalogue = await to_completion(self._recover)
        await self.disks.open(self._catalogue.disks)

    async def commit(self, catalogue: Catalogue, blobs: Mapping[str, Path] | None = None) -> int:
        """Makes `catalogue` what exists, with `blobs` moved in; the bytes that became free. Needs the lock.

        When it raises, all is as before. Cancellation waits until it is done.
        """
        return await uninterrupted(self._commit(catalogue, blobs or {}))

    @contextlib.asynccontextmanager
    async def reading(self, blobs: Collection[str]) -> AsyncIterator[None]:
        """In the block these blobs stay, even when their image is removed."""
        self._readers.update(blobs)
        try:
            yield
        finally:
            self._readers -= Counter(blobs)
            if not self._catalogue.blobs.issuperset(blobs):
                await uninterrupted(self._collect_read(blobs))

    @contextlib.asynccontextmanager
    async def using_disks(self) -> AsyncIterator[DiskUse]:
        """In the block, disks can be made before an image has them; afterwards those that none has are gone."""
        use = DiskUse(self)
        try:
            yield use
        finally:
            await uninterrupted(use.end())

    def _recover(self) -> Catalogue:
        with storage_errors("opening the image store"):
            self.layout.create()
            stored: dict[str, StoredManifest] = {}
            tags = {}
            for entry in self.layout.read_index():
                if found := self._read_stored(entry):
                    stored[entry.manifest_digest] = found
                    if entry.reference:
                        tags[entry.reference] = entry.manifest_digest
            catalogue = Catalogue(stored.values(), tags)
            self.layout.sweep(catalogue.blobs)
            return catalogue

    def _read_stored(self, entry: IndexEntry) -> StoredManifest | None:
        """None for an image whose documents are damaged: the others must be usable without it."""
        try:
            manifest = parse_manifest(self.layout.read(entry.manifest_digest), f"manifest {entry.manifest_digest}")
            config_json = self.layout.read(manifest.config.digest)
            config = parse_image_config(config_json, f"configuration {manifest.config.digest}")
        except (FileNotFoundError, InvalidArgumentError) as error:
            log.error("left out image with manifest %s, it is damaged: %s", entry.manifest_digest, error)
            return None
        return StoredManifest(manifest, config, config_json, entry.layer_sizes)

    async def _commit(self, catalogue: Catalogue, blobs: Mapping[str, Path]) -> int:
        before = self._catalogue
        unused_disks = before.disks - catalogue.disks
        if unused_disks:
            await self.disks.doubt(unused_disks)
        await to_completion(self._write, catalogue, blobs)
        self._catalogue = catalogue
        freed = await self._collect(before.blobs - catalogue.blobs)
        return freed + await self.disks.settle(unused_disks, catalogue.disks)

    def _write(self, catalogue: Catalogue, blobs: Mapping[str, Path]) -> None:
        with storage_errors("storing images"):
            adopted = self.layout.adopt({digest: blobs[digest] for digest in catalogue.blobs & blobs.keys()})
            try:
                self.layout.write_index(catalogue.entries, catalogue.manifests)
            except BaseException:
                self.layout.remove(adopted)
                raise

    async def _collect(self, candidates: Collection[str]) -> int:
        """Removes those blobs that no image has and nobody reads. Needs the lock."""
        named = self._catalogue.blobs
        surplus = [digest for digest in candidates if digest not in named and not self._readers[digest]]
        with storage_errors("removing blobs"):
            return await to_completion(self.layout.remove, surplus)

    async def _collect_read(self, blobs: Collection[str]) -> None:
        async with self.lock:
            await self._collect(blobs)


class DiskUse:
    """Disks that one job relies on."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._pins = contextlib.ExitStack()
        self._names: list[str] = []

    async def provide(self, name: str, make: Callable[[], Awaitable[Path]]) -> None:
        """Makes sure that the disk exists, and stays until the job is done; `make` gives its content."""
        disks = self._repository.disks
        async with self._repository.lock:  # so that no removal of this very disk is under way
            self._pins.enter_context(disks.pinned([name]))
            self._names.append(name)
        await disks.provide(name, make)

    async def end(self) -> None:
        """Lets go of the disks, and removes those that have come to be no image's."""
        self._pins.close()
        async with self._repository.lock:
            await self._repository.disks.settle(self._names, self._repository.catalogue.disks)
