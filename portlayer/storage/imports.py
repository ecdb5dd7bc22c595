"""Images made from a root file system in tar (`docker import`): one layer, and a configuration written here."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from portlayer.errors import InvalidArgumentError
from portlayer.storage import references
from portlayer.storage.changes import apply_changes
from portlayer.storage.files import digest_of
from portlayer.storage.image_config import parse_image_config
from portlayer.storage.intake import Intake, PreparedImage
from portlayer.storage.manifest import HOST_ARCHITECTURE, build_manifest
from portlayer.storage.references import Reference

_PLATFORM = re.compile(r"([a-z0-9_]+)(?:/([a-z0-9_]+))?(?:/([a-z0-9_.]+))?", re.ASCII)


@dataclass(frozen=True)
class ImportOptions:
    """What an imported image shall be. Made before the upload is read, so that mistakes show at once."""

    tags: tuple[Reference, ...]
    comment: str
    config: dict[str, object]
    platform: dict[str, str]

    @classmethod
    def parse(cls, reference: str, comment: str, changes: Sequence[str], platform: str) -> ImportOptions:
        """Raises InvalidArgumentError."""
        tags = (references.parse_tag(reference),) if reference else ()
        return cls(tags, comment, apply_changes({}, changes), _parse_platform(platform))


def prepare_import(intake: Intake, upload: Path, options: ImportOptions, now: datetime) -> PreparedImage:
    """The image of an uploaded root file system. All but `now` being equal, so is the image. Blocking."""
    layer = intake.take_upload(upload)
    created = now.astimezone(UTC).isoformat().replace("+00:00", "Z")
    document = {
        **options.platform,
        "config": options.config,
        "created": created,
        "comment": options.comment,
        "history": [{"created": created, "comment": options.comment}],
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
    }
    config_json = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    config = parse_image_config(config_json, "the new image's configuration")
    manifest = build_manifest(
        (digest_of(config_json), len(config_json)), [(layer.digest, layer.size, layer.compression)]
    )
    return intake.describe(manifest, config, config_json, [layer], options.tags, trailer=True)


def _parse_platform(text: str) -> dict[str, str]:
    """os/arch/variant; the host's where nothing is said."""
    if not text:
        return {"architecture": HOST_ARCHITECTURE, "os": "linux"}
    match = _PLATFORM.fullmatch(text)
    if not match:
        raise InvalidArgumentError(f'"{text}" is an invalid platform: it must be os/architecture')
    if match[1] != "linux":
        raise InvalidArgumentError(f'"{text}": operating system is not supported')
    platform = {"architecture": match[2] or HOST_ARCHITECTURE, "os": "linux"}
    return platform | ({"variant": match[3]} if match[3] else {})
