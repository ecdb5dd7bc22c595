"""The port layer's record in a VM's extraConfig: read, and replaced unless somebody else has written another one.

Two port layers must not manage one container, say after a state directory was copied. So what a VM has is compared with
what was last written or read here, and the change is made only if the VM has not been changed since that look: vSphere
refuses a reconfiguration whose changeVersion is not the VM's (ConcurrentAccess).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from pyVmomi import vim

from portlayer.drivers.uninterrupted import remotely
from portlayer.drivers.vsphere import config_spec, extra_config, operations, virtual_machines
from portlayer.drivers.vsphere.faults import caused_by
from portlayer.drivers.vsphere.session import Session
from portlayer.errors import ConflictError

# Others change a VM too, or vSphere itself does: each time is another look.
_ATTEMPTS = 5
_VERSION = virtual_machines.CHANGE_VERSION


class VmRecord:
    """Of one container. `where` gives its VM, which may be another one each time, and the VM's name.

    Methods raise PortLayerError.
    """

    def __init__(
        self,
        session: Session,
        where: Callable[[], tuple[vim.VirtualMachine, str]],
        written: bytes | None,
        found: Mapping[str, str],
    ) -> None:
        """`written`: what the VM was made with, or None. `found`: of its record, what was read with those of others."""
        self._session = session
        self._where = where
        # For the first look, unless something is written before.
        self._found = found
        self._written = written
        self._lock = asyncio.Lock()

    async def read(self) -> bytes:
        """What the VM has, which is what `write` expects from now on."""
        found, self._found = self._found, {}
        if found and all(key in found for key in extra_config.record_keys(found)):
            self._written = extra_config.read_record(found)
        else:
            self._written, _ = await self._look(*self._where())
        return self._written

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[bytes]:
        """What the VM has. Nobody writes another one before this is left, then to the VM that it is by then."""
        async with self._lock:
            yield await self.read() if self._written is None else self._written

    def doubt(self) -> None:
        """The VM may have an older one than was written last."""
        self._written, self._found = None, {}

    async def write(self, record: bytes) -> None:
        """Replaces it, whole or not at all; harmless when repeated. ConflictError when somebody else has written."""
        await remotely(self._write(record))

    async def _write(self, record: bytes) -> None:
        async with self._lock:
            self._found = {}
            vm, name = self._where()
            values = config_spec.options(extra_config.record(record))
            for _ in range(_ATTEMPTS):
                found, version = await self._look(vm, name)
                if self._written is not None and found not in (self._written, record):
                    raise ConflictError(
                        f"the record of the VM {name} was written by somebody else: is there another VCH?"
                    )
                spec = vim.vm.ConfigSpec(extraConfig=values, changeVersion=version)
                try:
                    if found != record:
                        await operations.reconfigure(self._session, vm, spec, f"writing the record of the VM {name}")
                    self._written = record
                    return
                except ConflictError as error:
                    if not caused_by(error, vim.fault.ConcurrentAccess):
                        raise
            raise ConflictError(f"the VM {name} is changed by others all the time: its record is not written")

    async def _look(self, vm: Any, name: str) -> tuple[bytes, str]:
        """Record and changeVersion of one instant, mostly by one call."""
        keys = [extra_config.RECORD_SIZE, *extra_config.pieces_of(len(self._written or b""))]
        while True:
            paths = {operations.extra_config_path(key): key for key in keys}
            found = await operations.properties(self._session, vm, name, [*paths, _VERSION])
            values = {paths[path]: str(value) for path, value in found.items() if path in paths}
            wanted = extra_config.record_keys(values)
            if set(wanted) <= set(keys):
                return extra_config.read_record(values), str(found.get(_VERSION, ""))
            keys = [extra_config.RECORD_SIZE, *wanted]  # it is larger than the one before: once more, all at once
