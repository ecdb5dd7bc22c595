"""The uploaded archive: a tar whose members are read in place, by name.

Members are never unpacked under their names; links between them (Docker's `save` once wrote repeated layers as
symbolic links) are followed inside the archive alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from portlayer.errors import InvalidArgumentError
from portlayer.storage.limits import SYMLINKS_FOLLOWED, Limits
from portlayer.storage.tar import Entry, Kind, TarReader


@dataclass(frozen=True)
class Member:
    """A regular file of the archive. Equal members are the same bytes, under whichever name they were asked for."""

    position: int
    size: int


class Archive:
    """An uncompressed tar file, indexed by name. Blocking."""

    def __init__(self, file: BinaryIO, limits: Limits, check: Callable[[], None]) -> None:
        """Reads all headers; InvalidArgumentError when the archive is broken."""
        self._file = file
        self._limits = limits
        self._members: dict[str, Member] = {}
        self._links: dict[str, str] = {}
        for count, entry in enumerate(TarReader(file, "the archive", limits, check, trailer=True), 1):
            if count > limits.archive_members:
                raise InvalidArgumentError(f"the archive has more than {limits.archive_members} members")
            self._add(entry)

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def member(self, name: str) -> Member:
        """Raises InvalidArgumentError when there is none."""
        member = self._find(name)
        if member is None:
            raise InvalidArgumentError(f"the archive has no file {name[:200]!r}")
        return member

    def read(self, name: str) -> bytes:
        """A document, whole; InvalidArgumentError when it is too large to be one."""
        member = self.member(name)
        if member.size > self._limits.document_bytes:
            raise InvalidArgumentError(
                f"{name[:200]!r} has {member.size} bytes; {self._limits.document_bytes} are the most"
            )
        return self.reader(member)(member.size)

    def reader(self, member: Member) -> Callable[[int], bytes]:
        """A function that gives the next bytes of the member, at most as many as asked for, b"" at its end."""
        position = member.position
        end = member.position + member.size

        def read(size: int) -> bytes:
            nonlocal position
            self._file.seek(position)
            data = self._file.read(min(size, end - position))
            position += len(data)
            return data

        return read

    def _add(self, entry: Entry) -> None:
        name = _clean(entry.name.decode(errors="surrogateescape"), "")
        self._members.pop(name, None)
        self._links.pop(name, None)
        link = entry.link.decode(errors="surrogateescape")
        if entry.kind is Kind.FILE:
            self._members[name] = self._place(entry)
        elif entry.kind is Kind.HARD_LINK:
            self._links[name] = _clean(link, "")
        elif entry.kind is Kind.SYMLINK:
            self._links[name] = _clean(link, str(PurePosixPath(name).parent))
        # Directories mean nothing here, and devices are nobody's layer.

    def _place(self, entry: Entry) -> Member:
        if not entry.size:
            return Member(0, 0)
        if len(entry.segments) != 1 or entry.segments[0].length != entry.size:
            raise InvalidArgumentError(f"the archive's file {entry.name[:200]!r} is sparse")
        return Member(entry.segments[0].position, entry.size)

    def _find(self, name: str) -> Member | None:
        name = _clean(name, "")
        for _ in range(SYMLINKS_FOLLOWED):
            if name not in self._links:
                return self._members.get(name)
            name = self._links[name]
        raise InvalidArgumentError(f"the archive's file {name[:200]!r} is a link in a circle")


def _clean(path: str, base: str) -> str:
    """`path`, seen from directory `base`, as a name of the archive's own."""
    if "\0" in path:
        raise InvalidArgumentError("the archive speaks of a name with a NUL byte")
    parts: list[str] = []
    for part in f"{base}/{path}".split("/"):
        if part == "..":
            if not parts:
                raise InvalidArgumentError(f"the archive has a path that leads out of it: {path[:200]!r}")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)
