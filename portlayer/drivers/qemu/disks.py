"""Writable disks: prepared empty ext4 file systems, one for each size, copied on write for each machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

from portlayer.drivers import ext4
from portlayer.drivers.qemu import files

_SQUASHFS_OPTIONS = ("-comp", "lz4", "-all-root", "-no-progress", "-quiet")


class EmptyDisks:
    """The prepared empties below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def copy(self, size: int, target: Path) -> None:
        """Makes `target` an empty file system of at least `size` bytes. On failure there is no `target`."""
        empty = self._prepared(ext4.whole_size(size))
        try:
            files.copy_sparse(empty, target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def practice_image(self) -> Path:
        """An image disk with nothing in it, for starts that are only rehearsed."""
        image = self._root / "practice.squashfs"
        if not image.exists():
            self._root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._root, prefix=".new-") as scratch:
                (Path(scratch) / "root").mkdir(mode=0o755)
                made = Path(scratch) / "image"
                ext4.run("mksquashfs", f"{scratch}/root", str(made), *_SQUASHFS_OPTIONS, package="squashfs-tools")
                made.rename(image)
        return image

    def _prepared(self, size: int) -> Path:
        """Two that prepare the same size at once make the same file; the later rename wins and nobody is hurt."""
        empty = self._root / f"ext4-{size}.img"
        if empty.exists():
            return empty
        self._root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._root, prefix=".new-") as scratch:
            image = Path(scratch) / "image"
            ext4.make(image, size)
            files.sync_file(image)
            image.rename(empty)
        files.sync_directory(self._root)
        return empty
