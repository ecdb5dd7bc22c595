"""Manifests and descriptors of OCI and Docker: what ties an image's configuration to its layers."""

from __future__ import annotations

import json
import platform as host
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from portlayer.errors import InvalidArgumentError
from portlayer.storage.compression import Compression
from portlayer.storage.documents import Document
from portlayer.storage.files import digest_of
from portlayer.storage.references import SHA256

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"

# Annotations that carry an image's name in an index.
NAME_ANNOTATION = "io.containerd.image.name"
REF_ANNOTATION = "org.opencontainers.image.ref.name"
# Docker marks what is no image (a statement about one) so.
_ATTESTATION_ANNOTATION = "vnd.docker.reference.type"

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
HOST_ARCHITECTURE = _ARCHITECTURES.get(host.machine(), host.machine())


class ManifestKind(Enum):
    """What a descriptor points at."""

    INDEX = auto()
    IMAGE = auto()
    # Not for us: a signature, a statement, a chart.
    OTHER = auto()


@dataclass(frozen=True)
class Descriptor:
    """Points at a blob."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str]
    architecture: str
    os: str

    @property
    def kind(self) -> ManifestKind:
        if self.media_type in (OCI_INDEX, _DOCKER_LIST):
            return ManifestKind.INDEX
        if _ATTESTATION_ANNOTATION in self.annotations or self.media_type not in (OCI_MANIFEST, _DOCKER_MANIFEST):
            return ManifestKind.OTHER
        return ManifestKind.IMAGE

    @property
    def for_host(self) -> bool:
        """Whether it says that it runs here."""
        return (self.os, self.architecture) == ("linux", HOST_ARCHITECTURE)


@dataclass(frozen=True)
class Manifest:
    """An image's manifest, with the very bytes its digest is of."""

    data: bytes
    digest: str
    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def blobs(self) -> frozenset[str]:
        """Digests of all that belongs to it, itself included."""
        return frozenset({self.digest, self.config.digest, *(layer.digest for layer in self.layers)})


def parse_descriptor(document: Document) -> Descriptor:
    digest = document["digest"].text()
    if not SHA256.fullmatch(digest):
        raise InvalidArgumentError(f"{document.where} has no sha256 digest: {digest[:80]!r}")
    return Descriptor(
        document["mediaType"].text(),
        digest,
        document["size"].integer(),
        document["annotations"].text_fields(),
        document["platform"]["architecture"].text(),
        document["platform"]["os"].text(),
    )


def parse_index(data: bytes, where: str) -> tuple[Descriptor, ...]:
    """The descriptors of an index or of Docker's manifest list."""
    return tuple(parse_descriptor(item) for item in Document.parse(data, where)["manifests"].items())


def parse_manifest(data: bytes, where: str) -> Manifest:
    """An image manifest; InvalidArgumentError for one of something else."""
    document = Document.parse(data, where)
    media_type = document["mediaType"].text() or OCI_MANIFEST
    if media_type.startswith(_SCHEMA_1):
        raise InvalidArgumentError(f"{where} is of Docker's schema 1, which is not supported any more")
    if media_type not in (OCI_MANIFEST, _DOCKER_MANIFEST):
        raise InvalidArgumentError(f"{where} is of type {media_type[:80]!r}, not an image's manifest")
    config = parse_descriptor(document["config"])
    if config.media_type not in (OCI_CONFIG, _DOCKER_CONFIG):
        raise InvalidArgumentError(f"{where} is of something else than an image: {config.media_type[:80]!r}")
    layers = tuple(parse_descriptor(item) for item in document["layers"].items())
    return Manifest(data, digest_of(data), media_type, config, layers)


def build_manifest(config: tuple[str, int], layers: Iterable[tuple[str, int, Compression]]) -> Manifest:
    """An OCI manifest for blobs given by digest and size. The same blobs give the same bytes."""
    described = [
        {"mediaType": f"{_OCI_LAYER}+{kind}" if kind else _OCI_LAYER, "digest": digest, "size": size}
        for digest, size, kind in layers
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": config[0], "size": config[1]},
        "layers": described,
    }
    return parse_manifest(json.dumps(document, separators=(",", ":")).encode(), "manifest")
