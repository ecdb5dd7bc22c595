"""Empty ext4 file systems, in files full of holes, for writable disks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from portlayer.errors import DriverError, ExhaustedError, InvalidArgumentError

MINIMUM_BYTES = 8 << 20
_GRAIN = 1 << 20

# Nothing is zeroed: the file is new and full of holes, and the inode tables are marked as zeroed (discard). No blocks
# are kept for root, whose disk it is alone.
_EXTENDED = ("discard", "lazy_journal_init=1", "root_owner=0:0")
_MKFS = ("mkfs.ext4", "-q", "-F", "-m", "0")
# All that is not zero comes first: bitmaps and inode tables stand together, and no copies of the superblock are spread.
_PACKED = ("packed_meta_blocks=1", "num_backup_sb=0")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def whole_size(size: int) -> int:
    """The size of the disk that is made when `size` bytes are asked for. InvalidArgumentError when that is too few."""
    if size < MINIMUM_BYTES:
        raise InvalidArgumentError(f"a writable disk needs at least {MINIMUM_BYTES} bytes, {size} were asked for")
    return -(-size // _GRAIN) * _GRAIN


def make(image: Path, size: int, *, packed: bool = False) -> None:
    """Makes the new file `image` an empty file system of `size` bytes. Blocks.

    `packed`: whatever is not zero lies near the beginning, for disks whose content has to be sent somewhere.
    """
    image.touch()
    os.truncate(image, size)
    extended = (*_EXTENDED, *_PACKED) if packed else _EXTENDED
    features = ("-O", "sparse_super2") if packed else ()
    run(*_MKFS, *features, "-E", ",".join(extended), str(image), package="e2fsprogs")


def run(*argv: str, package: str) -> None:
    """Runs a program that makes disks. DriverError when it fails, or is missing: then `package` has it."""
    environment = {"PATH": _PATH, "LC_ALL": "C"}
    try:
        result = subprocess.run(argv, env=environment, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise DriverError(f"{argv[0]} is missing: install {package}") from error
    if result.returncode != 0:
        kind = ExhaustedError if "No space left" in result.stderr else DriverError
        raise kind(f"{argv[0]} failed: {result.stderr.strip()}")
