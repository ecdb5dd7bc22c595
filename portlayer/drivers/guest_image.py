"""The guest image that every machine boots, as photon-image/build.py made it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from portlayer.errors import DriverError


@dataclass(frozen=True)
class GuestImage:
    """Kernel and initramfs in one directory, told apart from other builds by their digest; and as an ISO.

    Images of former versions have no ISO.
    """

    directory: Path
    digest: str
    kernel_version: str
    iso: Path | None = None
    iso_digest: str = ""


def read(directory: Path, platform: str | None = None) -> GuestImage:
    """Raises DriverError when it is not there or not whole, or when its kernel has no drivers for `platform`.

    Platforms are those of photon-image/packages.toml: "virtio" (QEMU), "vmware".
    """
    try:
        manifest = json.loads((directory / "manifest.json").read_bytes())
        for name in ("vmlinuz", "initramfs"):
            if (directory / name).stat().st_size != manifest["sizes"][name]:
                raise ValueError(f"{name} is not of the size in manifest.json")
        platforms = manifest.get("platforms", [platform])  # images of former versions do not say
        if platform is not None and platform not in platforms:
            raise ValueError(f"its kernel has drivers for {', '.join(platforms)}, not for {platform}")
        directory = directory.absolute()
        digest, kernel_version = str(manifest["digest"]), str(manifest["kernel_version"])
        if (iso := manifest.get("iso")) is None:
            return GuestImage(directory, digest, kernel_version)
        return GuestImage(directory, digest, kernel_version, directory / Path(iso["file"]).name, str(iso["sha256"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "python photon-image/build.py --output DIR makes one"
        raise DriverError(f"no guest image in {directory} ({error}): {hint}") from error
