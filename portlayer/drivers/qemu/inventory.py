"""The machines on disk, one directory each: what they are, in files that are whole after a crash at any instant.

    machines/ID/machine.json    the shape (MachineSpec)
                record          the port layer's own, opaque here
                writable.img    the writable disk
    machines/.new-ID            being made; swept by `open`
    machines/.trash-ID...       being removed; swept by `open`

A machine exists when machines/ID does: it appears and vanishes with one rename. Everything here blocks; the driver
calls it in threads.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import secrets
import shutil
from pathlib import Path

from portlayer.drivers.base import MachineSpec
from portlayer.drivers.qemu import files
from portlayer.drivers.qemu.disks import EmptyDisks
from portlayer.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError

WRITABLE_DISK = "writable.img"
_SPEC = "machine.json"
_RECORD = "record"
_NEW = ".new-"
_TRASH = ".trash-"
_ID = re.compile(r"[0-9a-f]{12,64}")
_log = logging.getLogger(__name__)


class Inventory:
    """The machines below `root`."""

    def __init__(self, root: Path, empties: EmptyDisks) -> None:
        self._root = root
        self._empties = empties

    def open(self) -> None:
        """Removes what a crash left half made or half removed."""
        self._root.mkdir(parents=True, exist_ok=True)
        for path in self.rubbish():
            shutil.rmtree(path)

    def rubbish(self) -> list[Path]:
        """What `open` will remove; the caller has ended what still works there."""
        return [path for name in (_NEW, _TRASH) for path in self._root.glob(f"{name}*")]

    def directory(self, machine_id: str) -> Path:
        return self._root / machine_id

    def create(self, spec: MachineSpec, record: bytes) -> None:
        """All or nothing."""
        if not _ID.fullmatch(spec.id):
            raise InvalidArgumentError(f"{spec.id!r} is no machine id")
        if self.directory(spec.id).exists():
            raise AlreadyExistsError(f"machine {spec.id} exists")
        new = self._root / f"{_NEW}{spec.id}"
        try:
            new.mkdir(mode=0o700)
            self._empties.copy(spec.writable_disk_bytes, new / WRITABLE_DISK)
            files.sync_file(new / WRITABLE_DISK)
            files.write_durably(new / _SPEC, json.dumps(dataclasses.asdict(spec), indent=1).encode())
            files.write_durably(new / _RECORD, record)
            new.rename(self.directory(spec.id))
            files.sync_directory(self._root)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise

    def load(self) -> list[MachineSpec]:
        """All machines. One that cannot be read is reported in the log and left alone."""
        specs = []
        for path in sorted(self._root.iterdir()):
            if not _ID.fullmatch(path.name):
                continue
            try:
                specs.append(_read_spec(path))
            except (OSError, ValueError, TypeError) as error:
                _log.error("machine %s cannot be read and is left alone: %s", path.name, error)
        return specs

    def read_record(self, machine_id: str) -> bytes:
        try:
            return (self.directory(machine_id) / _RECORD).read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(f"machine {machine_id} does not exist") from error

    def write_record(self, machine_id: str, record: bytes) -> None:
        try:
            files.write_durably(self.directory(machine_id) / _RECORD, record)
        except FileNotFoundError as error:
            raise NotFoundError(f"machine {machine_id} does not exist") from error

    def put_away(self, machine_id: str) -> Path | None:
        """From now on it does not exist; `clear` removes what this returns, and so does `open`. None when it is gone.

        One rename, and nothing made: removing has to work on a full disk.
        """
        trash = self._root / f"{_TRASH}{machine_id}-{secrets.token_hex(4)}"
        try:
            self.directory(machine_id).rename(trash)
        except FileNotFoundError:
            return None
        files.sync_directory(self._root)
        return trash

    def clear(self, trash: Path) -> None:
        shutil.rmtree(trash, ignore_errors=True)


def _read_spec(directory: Path) -> MachineSpec:
    data = json.loads((directory / _SPEC).read_bytes())
    known = {field.name for field in dataclasses.fields(MachineSpec)}
    data["networks"] = tuple(data.get("networks", ()))  # JSON has lists
    spec = MachineSpec(**{key: value for key, value in data.items() if key in known})
    if spec.id != directory.name:
        raise ValueError(f"it says it is {spec.id}")
    return spec
