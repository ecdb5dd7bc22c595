"""Which images an archive holds: as an OCI layout (index.json), as `docker save` writes it (manifest.json), or both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from portlayer.errors import InvalidArgumentError
from portlayer.storage import references
from portlayer.storage.archive import Archive, Member
from portlayer.storage.documents import Document
from portlayer.storage.files import digest_of
from portlayer.storage.limits import Limits
from portlayer.storage.manifest import (
    HOST_ARCHITECTURE,
    NAME_ANNOTATION,
    REF_ANNOTATION,
    Descriptor,
    Manifest,
    ManifestKind,
    parse_index,
    parse_manifest,
)
from portlayer.storage.references import Reference

_INDEX = "index.json"
_DOCKER_MANIFEST = "manifest.json"
_MAX_NESTING = 4


@dataclass(frozen=True)
class LayerMember:
    """A layer's file. `digest` is what it must have, "" where the archive's format says nothing."""

    member: Member
    name: str
    digest: str


@dataclass(frozen=True)
class ArchiveImage:
    """An image as the archive describes it; its layers are not looked at yet."""

    # None: docker-save, where it has to be made.
    manifest: Manifest | None
    config_json: bytes
    layers: tuple[LayerMember, ...]
    tags: tuple[Reference, ...]

    @property
    def id(self) -> str:
        return digest_of(self.config_json)


def find_images(archive: Archive, limits: Limits) -> list[ArchiveImage]:
    """All images, in the archive's order. InvalidArgumentError when there are none, or it is no image archive."""
    docker = _docker_images(archive, limits) if _DOCKER_MANIFEST in archive else []
    if _INDEX not in archive:
        if _DOCKER_MANIFEST not in archive:
            raise InvalidArgumentError("the archive holds no images: it has neither manifest.json nor index.json")
        images = docker
    else:
        # The layout has the manifests, and so the digests; docker-save's table may know more names.
        images = _with_tags(_OciReader(archive, limits).images(), docker)
    if not images:
        raise InvalidArgumentError("the archive holds no images")
    if len(images) > limits.images:
        raise InvalidArgumentError(f"the archive holds {len(images)} images; {limits.images} are the most")
    return images


def _docker_images(archive: Archive, limits: Limits) -> list[ArchiveImage]:
    images = []
    for item in Document.parse(archive.read(_DOCKER_MANIFEST), _DOCKER_MANIFEST).items():
        paths = item["Layers"].texts()
        _check_layer_count(len(paths), item.where, limits)
        images.append(
            ArchiveImage(
                manifest=None,
                config_json=archive.read(item["Config"].text()),
                layers=tuple(LayerMember(archive.member(path), f"layer {path}", "") for path in paths),
                tags=tuple(references.parse_tag(tag) for tag in item["RepoTags"].texts()),
            )
        )
    return images


def _with_tags(images: Iterable[ArchiveImage], others: Iterable[ArchiveImage]) -> list[ArchiveImage]:
    tags = {image.id: image.tags for image in others}
    return [
        ArchiveImage(
            image.manifest, image.config_json, image.layers, tuple(dict.fromkeys(image.tags + tags.get(image.id, ())))
        )
        for image in images
    ]


@dataclass(frozen=True)
class _Candidate:
    descriptor: Descriptor
    tags: tuple[Reference, ...]


class _OciReader:
    def __init__(self, archive: Archive, limits: Limits) -> None:
        self._archive = archive
        self._limits = limits

    def images(self) -> list[ArchiveImage]:
        """One image for each name (or nameless entry) of index.json: the one for this host, where there are several."""
        groups: dict[tuple[Reference, ...], list[_Candidate]] = {}
        nameless: list[list[_Candidate]] = []
        for descriptor in parse_index(self._archive.read(_INDEX), _INDEX):
            tags = _tags(descriptor)
            found = self._candidates(descriptor, tags, 0)
            if tags:
                groups.setdefault(tags, []).extend(found)
            elif found:
                nameless.append(found)
        chosen = [self._choose(group, ", ".join(tag.familiar for tag in tags)) for tags, group in groups.items()]
        chosen += self._choose_nameless(nameless)
        merged: dict[str, _Candidate] = {}
        for candidate in chosen:
            digest = candidate.descriptor.digest
            earlier = merged[digest].tags if digest in merged else ()
            merged[digest] = _Candidate(candidate.descriptor, earlier + candidate.tags)
        return [self._image(candidate) for candidate in merged.values()]

    def _candidates(self, descriptor: Descriptor, tags: tuple[Reference, ...], depth: int) -> list[_Candidate]:
        if descriptor.kind is ManifestKind.IMAGE:
            return [_Candidate(descriptor, tags)]
        if descriptor.kind is ManifestKind.OTHER:
            return []
        if depth == _MAX_NESTING:
            raise InvalidArgumentError(f"the archive nests indexes more than {_MAX_NESTING} deep")
        children = parse_index(self._blob(descriptor), f"index {descriptor.digest}")
        if len(children) > self._limits.images:
            raise InvalidArgumentError(f"index {descriptor.digest} has {len(children)} entries")
        return [found for child in children for found in self._candidates(child, tags, depth + 1)]

    def _choose(self, candidates: list[_Candidate], name: str) -> _Candidate:
        for candidate in candidates:
            if candidate.descriptor.for_host:
                return candidate
        # Without a word about platforms, or made for another one alone: its owner means it, as Docker takes it.
        if len({candidate.descriptor.digest for candidate in candidates}) != 1:
            found = ", ".join(sorted({f"{c.descriptor.os}/{c.descriptor.architecture}" for c in candidates}))
            raise InvalidArgumentError(
                f"the archive has no image for linux/{HOST_ARCHITECTURE} as {name or 'its only image'}"
                f" (it has: {found or 'none'})"
            )
        return candidates[0]

    def _choose_nameless(self, groups: list[list[_Candidate]]) -> list[_Candidate]:
        """Of entries for several platforms side by side only those for this host."""
        chosen = [self._choose(group, "") for group in groups]
        return [candidate for candidate in chosen if candidate.descriptor.for_host] or chosen

    def _image(self, candidate: _Candidate) -> ArchiveImage:
        where = f"manifest {candidate.descriptor.digest}"
        manifest = parse_manifest(self._blob(candidate.descriptor), where)
        _check_layer_count(len(manifest.layers), where, self._limits)
        return ArchiveImage(
            manifest=manifest,
            config_json=self._blob(manifest.config),
            layers=tuple(self._layer(layer) for layer in manifest.layers),
            tags=candidate.tags,
        )

    def _layer(self, descriptor: Descriptor) -> LayerMember:
        name = _blob_name(descriptor)
        member = self._archive.member(name)
        if member.size != descriptor.size:
            raise InvalidArgumentError(f"{name} has {member.size} bytes, not {descriptor.size} as its manifest says")
        return LayerMember(member, f"layer {descriptor.digest}", descriptor.digest)

    def _blob(self, descriptor: Descriptor) -> bytes:
        """A document, checked against its digest."""
        data = self._archive.read(_blob_name(descriptor))
        if digest_of(data) != descriptor.digest:
            raise InvalidArgumentError(f"{_blob_name(descriptor)} has another content than its name says")
        return data


def _blob_name(descriptor: Descriptor) -> str:
    return "blobs/" + descriptor.digest.replace(":", "/")


def _check_layer_count(count: int, where: str, limits: Limits) -> None:
    if count > limits.layers:
        raise InvalidArgumentError(f"{where} has {count} layers; {limits.layers} are the most")


def _tags(descriptor: Descriptor) -> tuple[Reference, ...]:
    """containerd's annotation has the whole name. OCI's own may be one, or only a tag, which names no image."""
    if name := descriptor.annotations.get(NAME_ANNOTATION):
        return (references.parse_tag(name),)
    name = descriptor.annotations.get(REF_ANNOTATION, "")
    if ":" not in name and "/" not in name:
        return ()
    return (references.parse_tag(name),)
