"""The machines of a VCH, by their ids and by their VMs, and the port layer's own directory for each of them."""

from __future__ import annotations

import contextlib
import logging
import shutil
import uuid
from pathlib import Path
from typing import Any

from portlayer.drivers.vsphere.machine import VsphereMachine

# In a machine's directory: its VM's instanceUuid, by which it is found when it was moved while no port layer was there.
_UUID_FILE = "instance-uuid"
_log = logging.getLogger(__name__)


class Roster:
    """`directory` has those of the machines. Methods that say so block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._machines: dict[str, VsphereMachine] = {}
        self._by_vm: dict[str, VsphereMachine] = {}  # by the ids that vSphere gave the VMs

    def prepare(self) -> None:
        """Called first. Blocks."""
        self._directory.mkdir(parents=True, exist_ok=True)

    def all(self) -> list[VsphereMachine]:
        return list(self._machines.values())

    def get(self, machine_id: str) -> VsphereMachine | None:
        return self._machines.get(machine_id)

    def of(self, vm: Any) -> VsphereMachine | None:
        """The machine whose VM this is now."""
        return self._by_vm.get(vm._moId)

    def add(self, machine: VsphereMachine) -> None:
        self._machines[machine.id] = machine
        self.note_vm(machine)

    def note_vm(self, machine: VsphereMachine, before: Any = None) -> None:
        """Its VM is another one than before."""
        if before is not None:
            self._by_vm.pop(before._moId, None)
        self._by_vm[machine.vm._moId] = machine
        file = machine.directory / _UUID_FILE
        try:
            # After a start it is as it was, for hundreds of machines: those are not written again.
            if _uuid_in(file) != machine.vc_uuid:
                file.write_text(machine.vc_uuid)
        except OSError as error:
            _log.warning("if %s is moved, the next port layer may not find it: %s", machine.location, error)

    def forget(self, machine: VsphereMachine) -> None:
        self._machines.pop(machine.id, None)
        self._by_vm.pop(machine.vm._moId, None)

    # --- directories

    def directory_of(self, machine_id: str) -> Path:
        """Of one machine; made when there is none."""
        directory = self._directory / machine_id
        directory.mkdir(mode=0o700, exist_ok=True)
        return directory

    def expected(self) -> dict[str, str]:
        """The machines that the port layer before had, by their ids, with the instanceUuids of their VMs. Blocks."""
        files = self._directory.glob(f"*/{_UUID_FILE}")
        return {file.parent.name: vc_uuid for file in files if (vc_uuid := _uuid_in(file))}

    def remove_stray_directories(self) -> None:
        """Those that are no machine's. Blocks."""
        for path in self._directory.iterdir():
            if path.name not in self._machines:
                shutil.rmtree(path, ignore_errors=True)


def _uuid_in(file: Path) -> str:
    """Empty when there is none, or something else: with that vSphere could not be asked."""
    with contextlib.suppress(OSError, ValueError):
        return str(uuid.UUID(file.read_text()))
    return ""
