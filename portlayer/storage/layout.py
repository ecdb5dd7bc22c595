"""The OCI image layout on disk: blobs by digest, and index.json, the one file that says which images exist.

An image exists from the moment index.json names it, and blobs are in place before that. What a crash leaves behind is
therefore only blobs that nothing names; `sweep` takes them away.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from portlayer.errors import InvalidArgumentError
from portlayer.storage import references
from portlayer.storage.documents import Document
from portlayer.storage.files import sync_directory, write_durably
from portlayer.storage.manifest import NAME_ANNOTATION, OCI_INDEX, REF_ANNOTATION, Manifest, parse_descriptor
from portlayer.storage.references import SHA256, Reference

LAYOUT_VERSION = b'{"imageLayoutVersion":"1.0.0"}'
# Bytes of the files in each layer, as "12,0,7": known since the image was loaded, dear to find out again.
_SIZES_ANNOTATION = "vch.layer-sizes"


@dataclass(frozen=True)
class IndexEntry:
    """A manifest that exists, under a name or (None) under none."""

    manifest_digest: str
    reference: Reference | None
    layer_sizes: tuple[int, ...]


class Layout:
    """A directory in the OCI image layout. All methods block."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "blobs" / "sha256"
        self._index = root / "index.json"

    def create(self) -> None:
        """Makes what is missing of an empty layout."""
        self._blobs.mkdir(parents=True, exist_ok=True)
        if not (self._root / "oci-layout").exists():
            write_durably(self._root / "oci-layout", LAYOUT_VERSION)
        if not self._index.exists():
            self.write_index([], {})

    def read_index(self) -> list[IndexEntry]:
        """Raises InvalidArgumentError when the file is not as written here."""
        where = str(self._index)
        entries = []
        for item in Document.parse(self._index.read_bytes(), where)["manifests"].items():
            descriptor = parse_descriptor(item)
            name = descriptor.annotations.get(NAME_ANNOTATION)
            sizes = descriptor.annotations.get(_SIZES_ANNOTATION, "").split(",")
            if not all(size.isdigit() or sizes == [""] for size in sizes):
                raise InvalidArgumentError(f"{where}: {_SIZES_ANNOTATION} of {descriptor.digest} are no numbers")
            reference = references.parse(name) if name else None
            entries.append(IndexEntry(descriptor.digest, reference, tuple(int(size) for size in sizes if size)))
        return entries

    def write_index(self, entries: Iterable[IndexEntry], manifests: Mapping[str, Manifest]) -> None:
        """Replaces the index, durably and at once."""
        described = [_describe(entry, manifests[entry.manifest_digest]) for entry in entries]
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": described}
        write_durably(self._index, json.dumps(document, indent=1).encode())

    def path(self, digest: str) -> Path:
        """Where the blob lies or would lie."""
        if not SHA256.fullmatch(digest):
            raise InvalidArgumentError(f"{digest[:80]!r} is no sha256 digest")
        return self._blobs / digest.removeprefix("sha256:")

    def read(self, digest: str) -> bytes:
        return self.path(digest).read_bytes()

    def size(self, digest: str) -> int:
        """Bytes on disk, 0 when it does not exist."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return 0

    def adopt(self, blobs: Mapping[str, Path]) -> list[str]:
        """Moves files in that are already on stable storage, and gives the digests of those that were not there.

        Durable when this returns; nothing is moved when it raises.
        """
        moved: list[str] = []
        try:
            for digest, source in blobs.items():
                target = self.path(digest)
                if not target.exists():
                    source.rename(target)
                    moved.append(digest)
            sync_directory(self._blobs)
        except BaseException:
            self.remove(moved)
            raise
        return moved

    def remove(self, digests: Iterable[str]) -> int:
        """Removes blobs; the bytes that this frees."""
        freed = 0
        for digest in digests:
            freed += self.size(digest)
            self.path(digest).unlink(missing_ok=True)
        return freed

    def sweep(self, named: frozenset[str]) -> None:
        """Removes whatever is no blob in `named`, and half-written files."""
        keep = {self.path(digest) for digest in named}
        self._unlink(path for path in self._blobs.iterdir() if path not in keep)
        self._unlink(self._root.glob(".*.new"))

    def total_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._blobs.iterdir())

    def _unlink(self, paths: Iterable[Path]) -> None:
        for path in list(paths):
            path.unlink(missing_ok=True)


def describe_reference(reference: Reference) -> dict[str, str]:
    """The annotations by which an index names an image."""
    return {NAME_ANNOTATION: str(reference), REF_ANNOTATION: reference.tag}


def _describe(entry: IndexEntry, manifest: Manifest) -> dict[str, object]:
    annotations = {_SIZES_ANNOTATION: ",".join(str(size) for size in entry.layer_sizes)}
    if entry.reference:
        annotations |= describe_reference(entry.reference)
    return {
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": len(manifest.data),
        "annotations": annotations,
    }
