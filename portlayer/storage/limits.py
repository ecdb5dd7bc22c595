"""How much an archive may ask for, before it counts as broken or hostile."""

from __future__ import annotations

from dataclasses import dataclass

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds on images. Beyond one of them is InvalidArgumentError, except the reserve: ExhaustedError."""

    # Files, directories and links of one image, over all layers: each costs about half a KiB of memory while merging.
    entries: int = 1_000_000
    # Bytes that the files of one image may declare (sparse ones count in full); None: what the datastore has free.
    unpacked_bytes: int | None = None
    # Bytes of one JSON document (index, manifest, configuration).
    document_bytes: int = 8 * MEBIBYTE
    # Bytes of the extended headers of one tar entry: long names, extended attributes.
    tar_header_bytes: int = MEBIBYTE
    layers: int = 512
    images: int = 1000
    # Members of an uploaded archive.
    archive_members: int = 100_000
    # Bytes that always stay free on the host's disk, so that a full disk can still be cleaned up.
    reserve_bytes: int = 64 * MEBIBYTE


# As Linux has them.
NAME_BYTES = 255
PATH_BYTES = 4096
SYMLINKS_FOLLOWED = 40
