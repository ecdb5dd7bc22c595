"""Which images exist, and by which names: a value without any disk behind it, changed by making a new one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from portlayer.errors import InvalidArgumentError, NotFoundError
from portlayer.storage import references
from portlayer.storage.disks import disk_name
from portlayer.storage.images import StoredImage, StoredManifest
from portlayer.storage.layout import IndexEntry
from portlayer.storage.manifest import Manifest
from portlayer.storage.references import SHA256, Reference


class Catalogue:
    """Manifests by digest and tags by name. Never changed once made."""

    def __init__(self, manifests: Iterable[StoredManifest] = (), tags: Mapping[Reference, str] | None = None) -> None:
        """`tags` gives the manifest's digest for each name."""
        self.tags = dict(sorted((tags or {}).items()))
        self.stored = _tidied({stored.digest: stored for stored in manifests}, set(self.tags.values()))

    @cached_property
    def images(self) -> dict[str, StoredImage]:
        """By id; newest first."""
        groups: dict[str, list[StoredManifest]] = {}
        for stored in self.stored.values():
            groups.setdefault(stored.image_id, []).append(stored)
        images = [self._image(image_id, tuple(group)) for image_id, group in groups.items()]
        images.sort(key=lambda image: (-image.created_unix_ns, image.id))
        return {image.id: image for image in images}

    @property
    def manifests(self) -> dict[str, Manifest]:
        return {digest: stored.manifest for digest, stored in self.stored.items()}

    @property
    def blobs(self) -> frozenset[str]:
        """Digests of all blobs that must exist."""
        return frozenset().union(*(stored.manifest.blobs for stored in self.stored.values()))

    @property
    def disks(self) -> frozenset[str]:
        """Names of all image disks that must exist."""
        return frozenset(image.image_disk for image in self.images.values())

    @property
    def entries(self) -> list[IndexEntry]:
        """As index.json keeps them."""
        named = {digest for digest in self.tags.values()}
        tagged = [IndexEntry(digest, tag, self.stored[digest].layer_sizes) for tag, digest in self.tags.items()]
        untagged = [IndexEntry(digest, None, s.layer_sizes) for digest, s in self.stored.items() if digest not in named]
        return tagged + untagged

    def find(self, name: str) -> StoredImage:
        """By name:tag, name@digest, id or the start of one. NotFoundError, InvalidArgumentError when ambiguous."""
        if not SHA256.fullmatch(name) and not _is_full_id(name):
            reference = references.parse(name)
            if found := self.find_reference(reference):
                return found
            missing = reference.with_default_tag().familiar
        else:
            missing = name if SHA256.fullmatch(name) else f"sha256:{name}"
        if found := self._by_id(name):
            return found
        raise NotFoundError(f"No such image: {missing}")

    def find_reference(self, reference: Reference) -> StoredImage | None:
        """The image with this very name; by its digest when the name has one."""
        if reference.digest:
            wanted = Reference(reference.domain, reference.path, digest=reference.digest)
            return next((image for image in self.images.values() if wanted.familiar in image.digests), None)
        digest = self.tags.get(reference.with_default_tag())
        return self.images[self.stored[digest].image_id] if digest else None

    def named(self, image: StoredImage, name: str) -> tuple[Reference, ...]:
        """Those tags of `image` that `name` speaks of: none when `name` is its id."""
        if _is_id_of(image, name):
            return ()
        reference = references.parse(name)
        if reference.digest:
            return tuple(
                tag
                for tag in image.references
                if tag.familiar_name == reference.familiar_name and self.tags[tag] == reference.digest
            )
        return (reference.with_default_tag(),)

    def with_image(self, stored: StoredManifest, tags: Iterable[Reference]) -> Catalogue:
        """With one more image, which takes `tags` from whichever had them."""
        return Catalogue([*self.stored.values(), stored], {**self.tags, **dict.fromkeys(tags, stored.digest)})

    def with_tag(self, image: StoredImage, tag: Reference) -> Catalogue:
        return Catalogue(self.stored.values(), {**self.tags, tag: image.manifest_digest})

    def without_tags(self, tags: Iterable[Reference]) -> Catalogue:
        """Images stay, even those that have lost their last tag."""
        gone = set(tags)
        return Catalogue(self.stored.values(), {tag: digest for tag, digest in self.tags.items() if tag not in gone})

    def without_image(self, image: StoredImage) -> Catalogue:
        left = [stored for stored in self.stored.values() if stored.image_id != image.id]
        return Catalogue(left, {tag: digest for tag, digest in self.tags.items() if tag not in image.references})

    def _by_id(self, name: str) -> StoredImage | None:
        prefix = references.id_prefix(name)
        found = [image for image in self.images.values() if prefix and image.id.startswith(f"sha256:{prefix}")]
        if len(found) > 1:
            raise InvalidArgumentError(f"image id {name!r} is ambiguous: {len(found)} images begin so")
        return found[0] if found else None

    def _image(self, image_id: str, manifests: tuple[StoredManifest, ...]) -> StoredImage:
        own = {stored.digest for stored in manifests}
        tags = tuple(tag for tag, digest in self.tags.items() if digest in own)
        digests = sorted({Reference(tag.domain, tag.path, digest=self.tags[tag]).familiar for tag in tags})
        return StoredImage(image_id, manifests, tags, tuple(digests), disk_name(manifests[0].config.diff_ids))


def _is_full_id(name: str) -> bool:
    return len(name) == 64 and bool(references.id_prefix(name))


def _is_id_of(image: StoredImage, name: str) -> bool:
    """As Docker decides it: a name that could be both an id and a name is the id."""
    prefix = references.id_prefix(name)
    return bool(prefix) and image.id.startswith(f"sha256:{prefix}") and name not in image.tags


def _tidied(manifests: dict[str, StoredManifest], tagged: set[str]) -> dict[str, StoredManifest]:
    """Without untagged manifests of images that have another: one is enough to keep an image."""
    kept: dict[str, StoredManifest] = {d: s for d, s in manifests.items() if d in tagged}
    kept_images = {stored.image_id for stored in kept.values()}
    for digest, stored in manifests.items():
        if stored.image_id not in kept_images:
            kept[digest] = stored
            kept_images.add(stored.image_id)
    return kept
