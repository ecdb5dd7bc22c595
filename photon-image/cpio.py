"""Archive in the kernel's initramfs format (cpio "newc"), the same bytes for the same entries.

Owner, times and inode numbers of the build machine never reach the archive, and entries are sorted, so nothing but
the contents decides its digest. Nothing here touches the file system.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True)
class Entry:
    """One file of the archive. `mode` carries the type, as in stat; `data` is a symbolic link's target."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(permissions: int = 0o755) -> Entry:
    return Entry(stat.S_IFDIR | permissions)


def file(data: bytes, *, executable: bool = False) -> Entry:
    return Entry(stat.S_IFREG | (0o755 if executable else 0o644), data)


def symlink(target: str) -> Entry:
    return Entry(stat.S_IFLNK | 0o777, target.encode())


def character_device(major: int, minor: int, permissions: int) -> Entry:
    return Entry(stat.S_IFCHR | permissions, device=(major, minor))


def write(out: BinaryIO, entries: Mapping[str, Entry]) -> None:
    """Writes all entries, and the directories above them that are missing. Paths are relative, without "./"."""
    complete = dict(entries)
    for path in entries:
        parent = path.rpartition("/")[0]
        while parent and parent not in complete:
            complete[parent] = directory()
            parent = parent.rpartition("/")[0]
    for inode, path in enumerate(sorted(complete), start=1):
        _write_entry(out, path, complete[path], inode)
    _write_entry(out, "TRAILER!!!", Entry(0), 0)


def _write_entry(out: BinaryIO, path: str, entry: Entry, inode: int) -> None:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    uid = gid = mtime = 0
    fields = (inode, entry.mode, uid, gid, links, mtime, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    out.write(_padded(header + name))
    out.write(_padded(entry.data))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
