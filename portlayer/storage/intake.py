"""From an upload to images ready to be stored: every digest checked, every layer read, nothing visible yet.

Everything here happens in a staging directory that its owner removes, and blocks: it runs in threads (see work.py).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from portlayer.drivers.base import SquashfsCompression
from portlayer.errors import InvalidArgumentError
from portlayer.storage.archive import Archive
from portlayer.storage.archive_images import ArchiveImage, LayerMember, find_images
from portlayer.storage.compression import Compression, detect, open_plain
from portlayer.storage.files import CHUNK_BYTES, SpaceWatch, copy_hashed, digest_of
from portlayer.storage.image_config import ImageConfig, parse_image_config
from portlayer.storage.images import StoredManifest
from portlayer.storage.limits import Limits
from portlayer.storage.manifest import Manifest, build_manifest
from portlayer.storage.references import Reference
from portlayer.storage.squashfs import make_squashfs
from portlayer.storage.tar import TarReader
from portlayer.storage.tree import RootTree
from portlayer.storage.work import Work


@dataclass(frozen=True)
class Layer:
    """A layer's blob, and the plain tar in it."""

    digest: str
    size: int
    compression: Compression
    diff_id: str
    # Its bytes without compression: the blob itself, or a file made of it.
    plain: Path


@dataclass
class PreparedImage:
    """An image whose blobs lie in the staging directory."""

    stored: StoredManifest
    tags: tuple[Reference, ...]
    # Needed to make its disk; None once that is done.
    tree: RootTree | None
    layers: list[Layer]


@dataclass
class Intake:
    """One staging directory with what has been taken in so far."""

    directory: Path
    limits: Limits
    unpacked_bytes: int
    work: Work
    squashfs_compression: SquashfsCompression
    # Files that hold blobs, by digest.
    blobs: dict[str, Path] = field(default_factory=dict)
    _layers: dict[LayerMember, Layer] = field(default_factory=dict)
    _count: int = 0

    async def spool(self, chunks: AsyncIterator[bytes]) -> Path:
        """The upload as a file."""
        path = self._new_path("upload")
        with path.open("wb") as file:
            watch = SpaceWatch(file, self.directory, self.limits.reserve_bytes)
            buffered = bytearray()
            async for chunk in chunks:
                buffered += chunk
                if len(buffered) >= CHUNK_BYTES:
                    await self.work.run(watch.write, bytes(buffered))
                    buffered.clear()
            await self.work.run(watch.write, bytes(buffered))
            await self.work.run(file.flush)
        return path

    def open_archive(self, upload: Path) -> tuple[Path, list[ArchiveImage]]:
        """The upload without compression, which takes its place, and the images in it."""
        compression = detect(upload, "the archive")
        plain = upload
        if compression:
            plain, _ = self._decompress(upload, compression, "the archive")
            upload.unlink()
        with plain.open("rb") as file:
            return plain, find_images(Archive(file, self.limits, self.work.check), self.limits)

    def prepare(self, archive: Path, image: ArchiveImage) -> PreparedImage:
        """Takes one image out of the archive."""
        what = f"configuration {image.id}"
        config = parse_image_config(image.config_json, what)
        layers = list(self._take_layers(archive, image))
        self._check_diff_ids(config, layers, what)
        manifest = image.manifest or build_manifest(
            (image.id, len(image.config_json)), [(layer.digest, layer.size, layer.compression) for layer in layers]
        )
        return self.describe(manifest, config, image.config_json, layers, image.tags)

    def describe(
        self,
        manifest: Manifest,
        config: ImageConfig,
        config_json: bytes,
        layers: list[Layer],
        tags: tuple[Reference, ...],
        *,
        trailer: bool = False,
    ) -> PreparedImage:
        """Reads the layers' headers and keeps the image's documents as blobs."""
        tree, sizes = self.merge(layers, trailer=trailer)
        for data in (config_json, manifest.data):
            self._keep_document(data)
        return PreparedImage(StoredManifest(manifest, config, config_json, tuple(sizes)), tags, tree, layers)

    def merge(self, layers: list[Layer], *, trailer: bool = False) -> tuple[RootTree, list[int]]:
        """The layers laid over each other, and the bytes of the files in each."""
        tree = RootTree(max_entries=self.limits.entries, max_bytes=self.unpacked_bytes)
        sizes = []
        for layer in layers:
            with layer.plain.open("rb") as file:
                what = f"layer {layer.digest}"
                sizes.append(tree.apply(TarReader(file, what, self.limits, self.work.check, trailer=trailer), what))
        return tree, sizes

    def make_disk(self, image: PreparedImage) -> Path:
        """The image's disk, from its tree; the tree is gone afterwards."""
        assert image.tree is not None
        target = self._new_path("disk")
        layers = [layer.plain for layer in image.layers]
        reserve = self.limits.reserve_bytes
        make_squashfs(image.tree, layers, target, self.squashfs_compression, self.work, reserve)
        image.tree = None
        return target

    def take_blob(self, blob: Path, digest: str, size: int, what: str) -> Layer:
        """A layer from a file that is its blob."""
        compression = detect(blob, what)
        if not compression:
            return Layer(digest, size, compression, digest, blob)
        plain, diff_id = self._decompress(blob, compression, what)
        return Layer(digest, size, compression, diff_id, plain)

    def take_upload(self, upload: Path) -> Layer:
        """A layer from the upload: its bytes are the blob."""
        with upload.open("rb") as file:
            digest = copy_hashed(file.read, lambda _: None, self.work.check)
            os.fsync(file.fileno())
        self.blobs[digest] = upload
        return self.take_blob(upload, digest, upload.stat().st_size, "the archive")

    def _take_layers(self, archive: Path, image: ArchiveImage) -> Iterator[Layer]:
        with archive.open("rb") as file:
            for layer in image.layers:
                if layer not in self._layers:
                    self._layers[layer] = self._take_layer(file.fileno(), layer)
                yield self._layers[layer]

    def _take_layer(self, archive: int, layer: LayerMember) -> Layer:
        path = self._new_path("blob")
        position, end = layer.member.position, layer.member.position + layer.member.size

        def read(size: int) -> bytes:
            nonlocal position
            data = os.pread(archive, min(size, end - position), position)
            position += len(data)
            return data

        with path.open("wb") as file:
            watch = SpaceWatch(file, self.directory, self.limits.reserve_bytes)
            digest = copy_hashed(read, watch.write, self.work.check)
            file.flush()
            os.fsync(file.fileno())
        if layer.digest not in ("", digest):
            raise InvalidArgumentError(f"{layer.name} has another content than its digest says: {digest}")
        if digest in self.blobs:
            path.unlink()
        return self.take_blob(self.blobs.setdefault(digest, path), digest, layer.member.size, layer.name)

    def _check_diff_ids(self, config: ImageConfig, layers: list[Layer], what: str) -> None:
        if len(config.diff_ids) != len(layers):
            raise InvalidArgumentError(
                f"{what} speaks of {len(config.diff_ids)} layers, the archive has {len(layers)} for it"
            )
        for diff_id, layer in zip(config.diff_ids, layers, strict=True):
            if diff_id != layer.diff_id:
                raise InvalidArgumentError(f"layer {layer.digest} holds {layer.diff_id}, not {diff_id} as {what} says")

    def _keep_document(self, data: bytes) -> None:
        digest = digest_of(data)
        if digest in self.blobs:
            return
        path = self._new_path("document")
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.blobs[digest] = path

    def _decompress(self, path: Path, compression: Compression, what: str) -> tuple[Path, str]:
        target = self._new_path("plain")
        with target.open("wb") as file, open_plain(path, compression, what) as source:
            watch = SpaceWatch(file, self.directory, self.limits.reserve_bytes)
            return target, copy_hashed(source.read, watch.write, self.work.check)

    def _new_path(self, kind: str) -> Path:
        self._count += 1
        return self.directory / f"{kind}-{self._count}"
