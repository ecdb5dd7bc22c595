"""The image store: what is asked of it, on top of the repository that keeps it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from portlayer.drivers.base import Datastore
from portlayer.errors import InvalidArgumentError
from portlayer.storage import images, references
from portlayer.storage.catalogue import Catalogue
from portlayer.storage.disks import disk_name
from portlayer.storage.images import HistoryLine, LoadedImage, StoredImage
from portlayer.storage.imports import ImportOptions, prepare_import
from portlayer.storage.intake import Intake, PreparedImage
from portlayer.storage.limits import Limits
from portlayer.storage.references import Reference
from portlayer.storage.removal import RemovalPlan, UsedBy, plan_removal
from portlayer.storage.repository import DiskUse, Repository
from portlayer.storage.save import SavedImage, archive_chunks
from portlayer.storage.work import Work, staging, sweep_staging, to_completion
from portlayer.v1.storage_pb2 import ImportImageOptions


@dataclass(frozen=True)
class Removal:
    """What a removal did."""

    # Names as Docker shows them, each with its image's id.
    untagged: tuple[tuple[str, str], ...]
    # Image ids.
    deleted: tuple[str, ...]
    reclaimed_bytes: int


class Identified(Protocol):
    """Whatever has an image's id."""

    @property
    def id(self) -> str: ...


class ImageStore:
    """The images of one VCH. `open` comes first; methods raise the errors of portlayer.errors."""

    def __init__(self, root: Path, tmp: Path, datastore: Datastore, limits: Limits | None = None) -> None:
        """`root` holds the OCI layout, `tmp` what is being taken in: best on the same file system."""
        self._repository = Repository(root, datastore)
        self._squashfs_compression = datastore.squashfs_compression
        self._tmp = tmp
        self._limits = limits or Limits()

    async def open(self) -> None:
        """Reads what there is, and removes what a crash has left half-made."""
        await to_completion(sweep_staging, self._tmp)
        await self._repository.open()

    async def load(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[LoadedImage, None]:
        """Takes in an archive: its images, once all of them are stored. On any error none is."""
        async with staging(self._tmp) as directory:
            intake = await self._intake(directory)
            archive, found = await intake.work.run(intake.open_archive, await intake.spool(chunks))
            async with self._repository.using_disks() as disks:
                prepared = []
                for image in found:
                    prepared.append(await intake.work.run(intake.prepare, archive, image))
                    await _provide_disk(disks, intake, prepared[-1])
                loaded = await self._store(intake, prepared)
        for result in loaded:
            yield result

    async def import_rootfs(self, options: ImportImageOptions, chunks: AsyncIterator[bytes]) -> str:
        """Makes an image of one layer from a root file system; its id."""
        parsed = ImportOptions.parse(options.reference, options.comment, options.changes, options.platform)
        async with staging(self._tmp) as directory:
            intake = await self._intake(directory)
            upload = await intake.spool(chunks)
            image = await intake.work.run(prepare_import, intake, upload, parsed, datetime.now(UTC))
            async with self._repository.using_disks() as disks:
                await _provide_disk(disks, intake, image)
                await self._store(intake, [image])
        return image.stored.image_id

    async def save(self, names: Sequence[str]) -> AsyncGenerator[bytes, None]:
        """Images as an archive, in pieces of at most 1 MiB. Removing them meanwhile does not disturb it."""
        chosen = self._choose_saved(names)
        blobs = frozenset[str]().union(*(image.stored.manifest.blobs for image in chosen))
        async with self._repository.reading(blobs):
            pieces = archive_chunks(self._repository.layout, chosen)
            work = Work()
            while piece := await work.run(next, pieces, b""):
                yield piece

    def list(self) -> Sequence[StoredImage]:
        """All images, newest first."""
        return list(self._repository.catalogue.images.values())

    def get(self, name: str) -> StoredImage:
        """By name:tag, name@digest, id or an unambiguous start of one."""
        return self._repository.catalogue.find(name)

    def history(self, name: str) -> Sequence[HistoryLine]:
        """How the image was made, newest step first."""
        return images.history(self.get(name))

    async def tag(self, source: str, target: str) -> tuple[StoredImage, str]:
        """Gives an image one more name, taking it from whichever had it; the image, and the name as Docker shows it."""
        tag = references.parse_tag(target)
        async with self._repository.lock:
            image = self.get(source)
            await self._repository.commit(self._repository.catalogue.with_tag(image, tag))
        return image, tag.familiar

    async def remove(self, name: str, *, force: bool, used_by: UsedBy) -> Removal:
        """`docker rmi`: takes a name off an image, and removes the image with its last name."""
        async with self._repository.lock:
            plan = plan_removal(self._repository.catalogue, name, force=force, used_by=used_by)
            return await self._carry_out([plan])

    async def prune(
        self,
        *,
        all_unused: bool,
        used_by: UsedBy,
        created_before_unix_ns: int = 0,
        labels: Sequence[str] = (),
        labels_not: Sequence[str] = (),
    ) -> Removal:
        """Removes images that no container uses: those without a name, or with `all_unused` any."""
        async with self._repository.lock:
            plans = [
                RemovalPlan(image, image.references, deletes=True)
                for image in self.list()
                if (all_unused or not image.references)
                and not (created_before_unix_ns and image.created_unix_ns >= created_before_unix_ns)
                and all(images.matches_labels(image, labels))
                and not any(images.matches_labels(image, labels_not))
                and not used_by(image.id)
            ]
            return await self._carry_out(plans)

    async def ensure_disk(self, image: Identified) -> str:
        """The datastore's name of the image's disk, which is made from the layers if it is missing."""
        stored = self.get(image.id)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._repository.reading(stored.manifests[0].manifest.blobs))
            disks = await stack.enter_async_context(self._repository.using_disks())

            async def remake() -> Path:
                intake = await self._intake(await stack.enter_async_context(staging(self._tmp)))
                return await intake.work.run(self._remake_disk, intake, stored)

            await disks.provide(stored.image_disk, remake)
        return stored.image_disk

    async def images_bytes(self) -> int:
        """Bytes on the host that blobs and image disks take."""
        disks = [await self._repository.disks.size(name) for name in self._repository.catalogue.disks]
        return await to_completion(self._repository.layout.total_bytes) + sum(disks)

    async def free_bytes(self) -> int:
        """Bytes free on the datastore."""
        return await self._repository.disks.free_bytes()

    async def _intake(self, directory: Path) -> Intake:
        unpacked_bytes = self._limits.unpacked_bytes
        if unpacked_bytes is None:
            unpacked_bytes = await self._repository.disks.free_bytes()
        return Intake(directory, self._limits, unpacked_bytes, Work(), self._squashfs_compression)

    async def _store(self, intake: Intake, prepared: Sequence[PreparedImage]) -> Sequence[LoadedImage]:
        """Adds images, all at once. An image in the archive twice is one with the names of both."""
        async with self._repository.lock:
            catalogue = self._repository.catalogue
            loaded: dict[str, LoadedImage] = {}
            for image in prepared:
                image_id = image.stored.image_id
                notes = tuple(_moved_names(catalogue, image))
                catalogue = catalogue.with_image(image.stored, image.tags)
                earlier = loaded.get(image_id, LoadedImage(image_id, ()))
                tags = tuple(tag.familiar for tag in image.tags)
                loaded[image_id] = LoadedImage(image_id, earlier.tags + tags, earlier.notes + notes)
            await self._repository.commit(catalogue, intake.blobs)
        return list(loaded.values())

    async def _carry_out(self, plans: Iterable[RemovalPlan]) -> Removal:
        """Needs the lock."""
        catalogue = self._repository.catalogue
        untagged: list[tuple[str, str]] = []
        deleted: list[str] = []
        for plan in plans:
            untagged += [(tag.familiar, plan.image.id) for tag in plan.untagged]
            catalogue = catalogue.without_tags(plan.untagged)
            if plan.deletes:
                deleted.append(plan.image.id)
                catalogue = catalogue.without_image(plan.image)
        reclaimed = await self._repository.commit(catalogue) if untagged or deleted else 0
        return Removal(tuple(untagged), tuple(deleted), reclaimed)

    def _choose_saved(self, names: Sequence[str]) -> Sequence[SavedImage]:
        """What `docker save` means by names: a bare repository is all its tags, an id comes without any."""
        if not names:
            raise InvalidArgumentError("no image was named to save")
        chosen: dict[str, SavedImage] = {}
        for name in names:
            for saved in self._saved_by(name):
                earlier = chosen.get(saved.stored.digest)
                tags = dict.fromkeys((*(earlier.tags if earlier else ()), *saved.tags))
                chosen[saved.stored.digest] = SavedImage(saved.stored, tuple(tags))
        return list(chosen.values())

    def _saved_by(self, name: str) -> Sequence[SavedImage]:
        catalogue = self._repository.catalogue
        repository = _repository_of(catalogue, name)
        if repository:
            return [SavedImage(catalogue.stored[catalogue.tags[tag]], (tag,)) for tag in repository]
        image = catalogue.find(name)
        named = catalogue.named(image, name)
        if not named:
            return [SavedImage(image.manifests[0], ())]
        return [SavedImage(catalogue.stored[catalogue.tags[tag]], (tag,)) for tag in named]

    def _remake_disk(self, intake: Intake, image: StoredImage) -> Path:
        """Blocking."""
        stored = image.manifests[0]
        layers = []
        for descriptor in stored.manifest.layers:
            blob = self._repository.layout.path(descriptor.digest)
            layers.append(intake.take_blob(blob, descriptor.digest, descriptor.size, f"layer {descriptor.digest}"))
        tree, _ = intake.merge(layers)
        return intake.make_disk(PreparedImage(stored, (), tree, layers))


async def _provide_disk(disks: DiskUse, intake: Intake, image: PreparedImage) -> None:
    await disks.provide(disk_name(image.stored.config.diff_ids), lambda: intake.work.run(intake.make_disk, image))
    image.tree = None


def _moved_names(catalogue: Catalogue, image: PreparedImage) -> Iterator[str]:
    """A sentence, as Docker says it, for each name that another image loses."""
    for tag in image.tags:
        owner = catalogue.find_reference(tag)
        if owner and owner.id != image.stored.image_id:
            yield (f"The image {tag.familiar} already exists, renaming the old one with ID {owner.id} to empty string")


def _repository_of(catalogue: Catalogue, name: str) -> Sequence[Reference]:
    """All tags of the repository, when `name` is one's bare name; empty when it is anything else."""
    if references.id_prefix(name) and len(name) >= 64:
        return []
    reference = references.parse(name)
    if not reference.name_only:
        return []
    return [tag for tag in catalogue.tags if (tag.domain, tag.path) == (reference.domain, reference.path)]
