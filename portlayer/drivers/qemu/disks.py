"""Writable disks: prepared empty ext4 file systems, one for each size, copied on write for each machine."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from portlayer.drivers.qemu import files
from portlayer.errors import DriverError, ExhaustedError, InvalidArgumentError

MINIMUM_BYTES = 8 << 20
_GRAIN = 1 << 20

# Nothing is zeroed: the file is new and full of holes, and the inode tables are marked as zeroed (discard). No blocks
# are kept for root, whose disk it is alone.
_MKFS = ("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "discard,lazy_journal_init=1,root_owner=0:0")
_SQUASHFS_OPTIONS = ("-comp", "lz4", "-all-root", "-no-progress", "-quiet")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class EmptyDisks:
    """The prepared empties below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def copy(self, size: int, target: Path) -> None:
        """Makes `target` an empty file system of at least `size` bytes. On failure there is no `target`."""
        if size < MINIMUM_BYTES:
            raise InvalidArgumentError(f"a writable disk needs at least {MINIMUM_BYTES} bytes, {size} were asked for")
        empty = self._prepared(-(-size // _GRAIN) * _GRAIN)
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
                _run("mksquashfs", f"{scratch}/root", str(made), *_SQUASHFS_OPTIONS, package="squashfs-tools")
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
            image.touch()
            os.truncate(image, size)
            _make_file_system(image)
            files.sync_file(image)
            image.rename(empty)
        files.sync_directory(self._root)
        return empty


def _make_file_system(image: Path) -> None:
    _run(*_MKFS, str(image), package="e2fsprogs")


def _run(*argv: str, package: str) -> None:
    environment = {"PATH": _PATH, "LC_ALL": "C"}
    try:
        result = subprocess.run(argv, env=environment, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise DriverError(f"{argv[0]} is missing: install {package}") from error
    if result.returncode != 0:
        kind = ExhaustedError if "No space left" in result.stderr else DriverError
        raise kind(f"{argv[0]} failed: {result.stderr.strip()}")
