"""What the store says of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from portlayer.storage.image_config import ImageConfig
from portlayer.storage.manifest import Manifest
from portlayer.storage.references import Reference


@dataclass(frozen=True)
class StoredManifest:
    """A manifest of the store and what it points at. Several may share one configuration: they are one image."""

    manifest: Manifest
    config: ImageConfig
    config_json: bytes
    # Bytes of the files in each layer, lowest first.
    layer_sizes: tuple[int, ...]

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def image_id(self) -> str:
        return self.manifest.config.digest


@dataclass(frozen=True)
class StoredImage:
    """An image. `id` is the digest of its configuration."""

    id: str
    manifests: tuple[StoredManifest, ...]
    references: tuple[Reference, ...]
    digests: tuple[str, ...]
    # Its name in the datastore.
    image_disk: str

    @property
    def tags(self) -> tuple[str, ...]:
        """As Docker shows them: busybox:latest."""
        return tuple(reference.familiar for reference in self.references)

    @property
    def config(self) -> ImageConfig:
        return self.manifests[0].config

    @property
    def config_json(self) -> bytes:
        """The very bytes."""
        return self.manifests[0].config_json

    @property
    def manifest_digest(self) -> str:
        return self.manifests[0].digest

    @property
    def diff_ids(self) -> tuple[str, ...]:
        return self.config.diff_ids

    @property
    def created_unix_ns(self) -> int:
        return self.config.created_unix_ns

    @property
    def size_bytes(self) -> int:
        """Of all files in all layers."""
        return sum(self.manifests[0].layer_sizes)


@dataclass(frozen=True)
class LoadedImage:
    """One image of a loaded archive."""

    image_id: str
    tags: tuple[str, ...]
    # Sentences for people: names that were taken from another image.
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class HistoryLine:
    """One step of an image's making as `docker history` shows it."""

    id: str
    created_unix_ns: int
    created_by: str
    size_bytes: int
    comment: str
    tags: tuple[str, ...] = field(default=())


def history(image: StoredImage) -> list[HistoryLine]:
    """Newest first. Layers that the configuration's history does not speak of come before its steps."""
    sizes = list(image.manifests[0].layer_sizes)
    steps = image.config.history
    unspoken = max(0, len(sizes) - sum(not step.empty_layer for step in steps))
    lines = [HistoryLine("<missing>", 0, "", size, "") for size in sizes[:unspoken]]
    remaining = iter(sizes[unspoken:])
    for step in steps:
        size = 0 if step.empty_layer else next(remaining, 0)
        lines.append(HistoryLine("<missing>", step.created_unix_ns, step.created_by, size, step.comment))
    lines.reverse()
    if lines:
        top = lines[0]
        lines[0] = HistoryLine(image.id, top.created_unix_ns, top.created_by, top.size_bytes, top.comment, image.tags)
    return lines


def matches_labels(image: StoredImage, labels: Sequence[str]) -> Sequence[bool]:
    """For each of "key" and "key=value", whether the image has it."""
    own = image.config.labels
    found = []
    for label in labels:
        key, equals, value = label.partition("=")
        found.append(key in own and (not equals or own[key] == value))
    return found
