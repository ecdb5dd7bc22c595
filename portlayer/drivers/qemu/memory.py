"""A template's memory: in a sealed memfd while it is used, in a file between the lives of a port layer.

QEMU opens a memory file for writing even where its mapping is private (7.2), so permissions cannot keep a clone, or a
QEMU that its guest has taken over, from writing to what all others are made of. A memfd that is sealed can: nobody
writes to it, cuts it or punches holes into it any more, and private mappings of it work (memfd_create(2), fcntl(2)).
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

from portlayer.drivers.qemu import files

_F_ADD_SEALS = 1033
_SEAL_S, _SEAL_RETRY_S = 20.0, 0.1
_SEAL_SEAL, _SEAL_SHRINK, _SEAL_GROW, _SEAL_WRITE = 1, 2, 4, 8


class TemplateMemory:
    """An open memfd; `close` it. Mappings that QEMUs have of it live on."""

    def __init__(self, size: int) -> None:
        self.fd = os.memfd_create("vch-template", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, size)
        except OSError:
            self.close()
            raise

    @classmethod
    def load(cls, path: Path) -> TemplateMemory:
        """What `save` wrote, sealed."""
        with path.open("rb") as source:
            memory = cls(os.fstat(source.fileno()).st_size)
            try:
                files.copy_data(source.fileno(), memory.fd)
                memory.seal()
            except OSError:
                memory.close()
                raise
            return memory

    def seal(self) -> None:
        """From now on nobody can change it. Blocks; raises OSError when somebody still maps it for writing.

        The kernel refuses it too while it holds on to a page for reasons of its own, which passes without a sign.
        """
        deadline = time.monotonic() + _SEAL_S
        while True:
            try:
                fcntl.fcntl(self.fd, _F_ADD_SEALS, _SEAL_SEAL | _SEAL_SHRINK | _SEAL_GROW | _SEAL_WRITE)
                return
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(_SEAL_RETRY_S)

    def save(self, path: Path) -> None:
        """Writes it to a new file that only its owner can read, with holes for what was never used."""
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400), "wb") as target:
            target.truncate(os.fstat(self.fd).st_size)
            files.copy_data(self.fd, target.fileno())
            os.fsync(target.fileno())

    @property
    def resident_bytes(self) -> int:
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        os.close(self.fd)
