"""Writes images as one tar that is an OCI layout and a `docker save` archive both. Same images, same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from portlayer.storage import tar_write
from portlayer.storage.files import CHUNK_BYTES
from portlayer.storage.images import StoredManifest
from portlayer.storage.layout import LAYOUT_VERSION, Layout, describe_reference
from portlayer.storage.manifest import OCI_INDEX
from portlayer.storage.references import Reference
from portlayer.storage.tar import Kind

_BLOBS = "blobs/sha256/"


@dataclass(frozen=True)
class SavedImage:
    """An image for an archive, under the names it shall have there."""

    stored: StoredManifest
    tags: tuple[Reference, ...]


def archive_chunks(layout: Layout, images: Sequence[SavedImage]) -> Iterator[bytes]:
    """The archive in pieces of at most CHUNK_BYTES. Blocking. All blobs must stay until the end."""
    buffered = bytearray()
    for piece in _pieces(layout, images):
        buffered += piece
        while len(buffered) >= CHUNK_BYTES:
            yield bytes(buffered[:CHUNK_BYTES])
            del buffered[:CHUNK_BYTES]
    if buffered:
        yield bytes(buffered)


def _pieces(layout: Layout, images: Sequence[SavedImage]) -> Iterator[bytes]:
    for directory in ("blobs/", _BLOBS):
        yield tar_write.header(directory.encode(), Kind.DIRECTORY, mode=0o755)
    for digest in sorted(frozenset().union(*(image.stored.manifest.blobs for image in images))):
        yield from _blob(_BLOBS + digest.removeprefix("sha256:"), layout.path(digest))
    yield from _document("index.json", _index(images))
    yield from _document("manifest.json", _docker_manifest(images))
    yield from _document("oci-layout", LAYOUT_VERSION)
    yield tar_write.TRAILER


def _blob(name: str, path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        size = path.stat().st_size
        yield tar_write.header(name.encode(), Kind.FILE, size=size)
        while data := file.read(CHUNK_BYTES):
            yield data
        yield tar_write.padding(size)


def _document(name: str, data: bytes) -> Iterator[bytes]:
    yield tar_write.header(name.encode(), Kind.FILE, size=len(data))
    yield data + tar_write.padding(len(data))


def _index(images: Sequence[SavedImage]) -> bytes:
    """An entry for each name; one without a name for an image that has none."""
    entries = [_entry(image.stored, describe_reference(tag)) for image in images for tag in image.tags]
    entries += [_entry(image.stored, {}) for image in images if not image.tags]
    return _json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})


def _entry(stored: StoredManifest, annotations: dict[str, str]) -> dict[str, object]:
    manifest, config = stored.manifest, stored.config
    entry: dict[str, object] = {
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": len(manifest.data),
        "platform": {"architecture": config.architecture, "os": config.os},
    }
    return entry | ({"annotations": annotations} if annotations else {})


def _docker_manifest(images: Sequence[SavedImage]) -> bytes:
    return _json(
        [
            {
                "Config": _BLOBS + image.stored.image_id.removeprefix("sha256:"),
                "RepoTags": [tag.familiar for tag in image.tags] or None,
                "Layers": [_BLOBS + layer.digest.removeprefix("sha256:") for layer in image.stored.manifest.layers],
            }
            for image in images
        ]
    )


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
