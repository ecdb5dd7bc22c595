"""The files of an image: its layers laid over each other, in memory, without their content.

Rules, as overlayfs and Docker have them:
- an entry replaces what lower layers have under its name; a directory over a directory changes its attributes only;
- `.wh.NAME` takes NAME of the lower layers away, `.wh..wh..opq` all they have in its directory, wherever in their
  layer they stand; other names that begin with `.wh..wh.` are aufs's own and mean nothing;
- a parent that is a symbolic link (or any other non-directory) of a lower layer is replaced by a directory; one of the
  same layer is followed, inside the image's root.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NoReturn

from portlayer.errors import InvalidArgumentError
from portlayer.storage.limits import NAME_BYTES, PATH_BYTES, SYMLINKS_FOLLOWED
from portlayer.storage.tar import Entry, Kind
from portlayer.storage.tar_sparse import Segment

_WHITEOUT = b".wh."
_META = b".wh..wh."
_OPAQUE = b".wh..wh..opq"
# What squashfs can hold. Anything else (POSIX ACLs of other systems, for one) is left out, as Docker leaves out what
# its file system cannot store; overlayfs's own marks would be taken for orders in the guest.
_XATTR_SPACES = (b"user.", b"trusted.", b"security.")
_XATTR_OVERLAY = (b"trusted.overlay.", b"user.overlay.")
_MAX_ID = 2**32 - 1
_MAX_OWNERS = 60_000
_MAX_MTIME = 2**32 - 1
_MAX_MAJOR, _MAX_MINOR = 0xFFF, 0xFFFFF
_IMPLIED_MODE = 0o755


class Node:
    """A file, directory, link or device: what an inode is. Hard links share it."""

    __slots__ = (
        "children",
        "device",
        "fresh",
        "fresh_layer",
        "gid",
        "kind",
        "layer",
        "link",
        "mode",
        "mtime",
        "segments",
        "size",
        "uid",
        "xattrs",
    )

    def __init__(self, kind: Kind, mode: int, layer: int) -> None:
        self.kind = kind
        self.mode = mode
        self.uid = self.gid = self.mtime = self.size = 0
        self.link = b""
        self.device = (0, 0)
        self.xattrs: dict[bytes, bytes] = {}
        # The layer in which its content lies, and where.
        self.layer = layer
        self.segments: tuple[Segment, ...] = ()
        self.children: dict[bytes, Node] = {}
        # Names in `children` that belong to layer `fresh_layer`.
        self.fresh: set[bytes] = set()
        self.fresh_layer = -1

    @property
    def is_directory(self) -> bool:
        return self.kind is Kind.DIRECTORY

    def is_fresh(self, name: bytes, layer: int) -> bool:
        """Whether `name` was put here, or gone through, in this layer."""
        return self.fresh_layer == layer and name in self.fresh

    def refresh(self, name: bytes, layer: int) -> None:
        if self.fresh_layer != layer:
            self.fresh, self.fresh_layer = set(), layer
        self.fresh.add(name)


class RootTree:
    """An image's root directory, grown layer by layer, the lowest first."""

    def __init__(self, *, max_entries: int, max_bytes: int) -> None:
        self.root = Node(Kind.DIRECTORY, _IMPLIED_MODE, 0)
        self.newest_mtime = 0
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries = 0
        self._bytes = 0
        self._owners: set[int] = set()
        self._layer = -1
        self._what = ""

    def apply(self, entries: Iterable[Entry], what: str) -> int:
        """Lays one more layer over the tree; the bytes of its files. `what` names it in messages."""
        self._layer += 1
        self._what = what
        before = self._bytes
        for entry in entries:
            self._count(entry)
            self._apply(entry)
        return self._bytes - before

    def _count(self, entry: Entry) -> None:
        self._entries += 1
        self._bytes += entry.size
        if self._entries > self._max_entries:
            self._refuse(f"brings the image to more than {self._max_entries} entries")
        if self._bytes > self._max_bytes:
            self._refuse(f"declares files of {self._bytes} bytes in all; there is room for {self._max_bytes}", entry)

    def _apply(self, entry: Entry) -> None:
        parts = self._parts(entry.name, entry)
        if not parts:
            if entry.kind is not Kind.DIRECTORY:
                self._refuse("has a root that is no directory", entry)
            self._set_attributes(self.root, entry)
            return
        if any(part.startswith(_META) and part != _OPAQUE for part in parts):
            return
        parent = self._directory(parts[:-1], entry)
        name = parts[-1]
        if name == _OPAQUE:
            _remove_lower(parent, self._layer)
        elif name.startswith(_WHITEOUT):
            self._whiteout(parent, name.removeprefix(_WHITEOUT), entry)
        else:
            self._place(parent, name, entry)

    def _whiteout(self, parent: Node, name: bytes, entry: Entry) -> None:
        if name in (b"", b".", b".."):
            self._refuse("has a whiteout of nothing", entry)
        child = parent.children.get(name)
        if child is None:
            return
        if not parent.is_fresh(name, self._layer):
            del parent.children[name]
        elif child.is_directory:
            _remove_lower(child, self._layer)

    def _place(self, parent: Node, name: bytes, entry: Entry) -> None:
        existing = parent.children.get(name)
        if entry.kind is Kind.HARD_LINK:
            parent.children[name] = self._link_target(entry)
        elif entry.kind is Kind.DIRECTORY and existing is not None and existing.is_directory:
            self._set_attributes(existing, entry)
        else:
            node = Node(entry.kind, entry.mode, self._layer)
            self._set_attributes(node, entry)
            parent.children[name] = node
        parent.refresh(name, self._layer)

    def _set_attributes(self, node: Node, entry: Entry) -> None:
        if entry.uid > _MAX_ID or entry.gid > _MAX_ID:
            self._refuse(f"has an owner {entry.uid}:{entry.gid} beyond 32 bits", entry)
        self._owners.update((entry.uid, entry.gid))
        if len(self._owners) > _MAX_OWNERS:
            self._refuse(f"brings the image to more than {_MAX_OWNERS} owners", entry)
        if entry.device[0] > _MAX_MAJOR or entry.device[1] > _MAX_MINOR:
            self._refuse(f"has a device number {entry.device} that does not exist", entry)
        node.mode, node.uid, node.gid = entry.mode, entry.uid, entry.gid
        node.mtime = min(max(entry.mtime, 0), _MAX_MTIME)
        self.newest_mtime = max(self.newest_mtime, node.mtime)
        node.size, node.segments = entry.size, entry.segments
        node.link, node.device = entry.link, entry.device
        if entry.kind is Kind.SYMLINK and not entry.link:
            self._refuse("has a symbolic link to nothing", entry)
        node.xattrs = {
            key: value
            for key, value in entry.xattrs.items()
            if key.startswith(_XATTR_SPACES) and not key.startswith(_XATTR_OVERLAY)
        }

    def _directory(self, parts: list[bytes], entry: Entry) -> Node:
        """The directory an entry goes into, made where it is missing."""
        trail = [self.root]
        pending, followed = deque(parts), 0
        while pending:
            name = pending.popleft()
            if name in (b"", b".", b".."):  # .. from a symbolic link: of the root, it is the root
                if name == b".." and len(trail) > 1:
                    trail.pop()
                continue
            if name.startswith(_WHITEOUT):
                self._refuse("has an entry below a whiteout", entry)
            here = trail[-1]
            child = here.children.get(name)
            if child is None or not (child.is_directory or here.is_fresh(name, self._layer)):
                child = here.children[name] = Node(Kind.DIRECTORY, _IMPLIED_MODE, self._layer)
            if child.kind is Kind.SYMLINK:
                followed += 1
                self._follow(child.link, trail, pending, followed, entry)
                continue
            if not child.is_directory:
                self._refuse("has an entry below something that is no directory", entry)
            here.refresh(name, self._layer)
            trail.append(child)
        return trail[-1]

    def _follow(self, link: bytes, trail: list[Node], pending: deque[bytes], followed: int, entry: Entry) -> None:
        if followed > SYMLINKS_FOLLOWED:
            self._refuse("has an entry behind too many symbolic links", entry)
        if link.startswith(b"/"):
            del trail[1:]
        pending.extendleft(reversed(link.split(b"/")))

    def _link_target(self, entry: Entry) -> Node:
        """The inode that a hard link names: must exist, in this layer or below, and be no directory."""
        parts = self._parts(entry.link, entry)
        trail = [self.root]
        pending, followed = deque(parts), 0
        while pending:
            name = pending.popleft()
            if name in (b"", b".", b".."):
                if name == b".." and len(trail) > 1:
                    trail.pop()
                continue
            child = trail[-1].children.get(name)
            if child is None:
                self._refuse(f"has a hard link to {_show(entry.link)}, which does not exist", entry)
            if child.kind is Kind.SYMLINK and pending:
                followed += 1
                self._follow(child.link, trail, pending, followed, entry)
            else:
                trail.append(child)
        if trail[-1].is_directory:
            self._refuse(f"has a hard link to the directory {_show(entry.link)}", entry)
        return trail[-1]

    def _parts(self, path: bytes, entry: Entry) -> list[bytes]:
        """The names on the way to `path` from the root, cleaned of what leads nowhere."""
        parts: list[bytes] = []
        for part in path.split(b"/"):
            if part == b"..":
                if not parts:
                    self._refuse(f"has a path that leads out of the root: {_show(path)}", entry)
                parts.pop()
            elif part not in (b"", b"."):
                if len(part) > NAME_BYTES:
                    self._refuse(f"has a name of {len(part)} bytes, longer than {NAME_BYTES}", entry)
                parts.append(part)
        return parts

    def _refuse(self, reason: str, entry: Entry | None = None) -> NoReturn:
        where = f": {_show(entry.name)}" if entry else ""
        raise InvalidArgumentError(f"{self._what} {reason}{where}")


def walk(root: Node) -> Iterator[tuple[bytes, Node]]:
    """Everything below `root` with its path, each directory before what it holds, in the order of names."""
    stack = [(b"", root)]
    while stack:
        path, node = stack.pop()
        if path:
            yield path, node
        for name in sorted(node.children, reverse=True):
            below = path + b"/" + name if path else name
            if len(below) > PATH_BYTES:
                raise InvalidArgumentError(f"the image has a path longer than {PATH_BYTES} bytes: {_show(below)}")
            stack.append((below, node.children[name]))


def _remove_lower(directory: Node, layer: int) -> None:
    """Takes away what lower layers have below `directory`."""
    stack = [directory]
    while stack:
        node = stack.pop()
        node.children = {name: child for name, child in node.children.items() if node.is_fresh(name, layer)}
        stack.extend(child for child in node.children.values() if child.is_directory)


def _show(name: bytes) -> str:
    text = name[:200].decode(errors="backslashreplace")
    return repr(text) + ("..." if len(name) > 200 else "")
