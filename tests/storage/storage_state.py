"""A state directory with its stores, and what can be seen in it from outside."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from portlayer.drivers.qemu import LocalDatastore
from portlayer.storage import ImageStore, Limits

_LISTING = re.compile(r"^([-dlcbp]\S{9}) (\d+)/(\d+)\s+(\d+|\d+,\s*\d+) (\S+ \S+) squashfs-root(.*)$")


@dataclass
class Listed:
    """A file as unsquashfs shows it."""

    mode: str
    uid: int
    gid: int
    size: str
    target: str


class Disk:
    """Looks into an image disk."""

    def __init__(self, datastore: LocalDatastore, name: str) -> None:
        self.path: Path = datastore.path(name)

    @property
    def files(self) -> dict[str, Listed]:
        result = subprocess.run(["unsquashfs", "-lln", str(self.path)], capture_output=True, check=True)
        files = {}
        for line in result.stdout.decode(errors="surrogateescape").splitlines():
            match = _LISTING.match(line)
            if not match:
                continue
            name, _, target = match[6].partition(" -> ")
            files[name or "/"] = Listed(match[1], int(match[2]), int(match[3]), match[4].replace(" ", ""), target)
        return files

    @property
    def names(self) -> set[str]:
        return set(self.files) - {"/"}

    @property
    def compression(self) -> str:
        result = subprocess.run(["unsquashfs", "-s", str(self.path)], capture_output=True, check=True, text=True)
        found = re.search(r"^Compression (\S+)$", result.stdout, re.MULTILINE)
        assert found
        return found[1]

    def unpack(self, target: Path) -> None:
        subprocess.run(["unsquashfs", "-q", "-n", "-d", str(target), str(self.path)], check=True)

    def read(self, name: str) -> bytes:
        command = ["unsquashfs", "-cat", str(self.path), name.lstrip("/")]
        return subprocess.run(command, capture_output=True, check=True).stdout


@dataclass
class State:
    """A state directory."""

    path: Path
    datastore: LocalDatastore

    def store(self, limits: Limits | None = None) -> ImageStore:
        """A new store on it, as a new process would have; to be opened."""
        return ImageStore(self.path / "images", self.path / "tmp", self.datastore, limits)

    def disk(self, store: ImageStore, name: str) -> Disk:
        return Disk(self.datastore, store.get(name).image_disk)

    def files(self) -> set[str]:
        """Everything but index.json, whose content changes."""
        return {
            str(path.relative_to(self.path))
            for path in self.path.rglob("*")
            if path.is_file() and path.name != "index.json"
        }
