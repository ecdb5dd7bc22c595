"""What a VMDK of vcsim lacks of one that ESXi made. README.md lists it.

A disk is a descriptor, `NAME.vmdk`, and its content, `NAME-flat.vmdk`. vcsim writes the descriptor and leaves the
content empty; nothing it ever does fills it but an upload or a copy. The lab makes it true when a VM powers on.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from lab_hardware import LabError

SECTOR_BYTES = 512
_MAX_DESCRIPTOR_BYTES = 64 << 10
_EXTENT = re.compile(r'^RW (\d+) VMFS "([^"/]+)"\s*$', re.MULTILINE)
_TYPE = re.compile(r'^createType="vmfs"\s*$', re.MULTILINE)


def prepare(chain: tuple[Path, ...]) -> None:
    """Makes a disk and those it is a delta of into what ESXi would have made. LabError when one is broken.

    A delta is a copy of its parent, taken when it is first used: a parent is never written to once it has a child.
    """
    parent: Path | None = None
    for descriptor in reversed(chain):
        _prepare(descriptor, parent)
        parent = content_file(descriptor)


def content_file(descriptor: Path) -> Path:
    return descriptor.with_name(f"{descriptor.stem}-flat.vmdk")


def _prepare(descriptor: Path, parent: Path | None) -> None:
    content = content_file(descriptor)
    try:
        data = descriptor.read_bytes()[:_MAX_DESCRIPTOR_BYTES]
    except FileNotFoundError:
        raise LabError(f"{descriptor} does not exist") from None
    text = data.decode(errors="replace")
    extents = _EXTENT.findall(text)
    if not text.startswith("# Disk DescriptorFile") or not _TYPE.search(text) or len(extents) != 1:
        raise LabError(f"{descriptor} is no descriptor of a VMFS disk with one extent")
    sectors, named = extents[0]
    if not content.is_file():
        raise LabError(f"{descriptor} has no {content.name}")
    if named != content.name:  # a copy by vcsim, whose descriptor still names the content of the original
        descriptor.write_text(text.replace(f'"{named}"', f'"{content.name}"'))
    size = int(sectors) * SECTOR_BYTES
    if parent is not None and content.stat().st_size == 0:
        subprocess.run(["cp", "--reflink=auto", "--sparse=always", "--", parent, content], check=True)
    if content.stat().st_size < size:
        os.truncate(content, size)
