"""Where a local file has content, and where nothing but holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import BinaryIO


def size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def extents(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Beginning and end of each piece with content, in order. Blocks: lseek(2), SEEK_DATA."""
    end = 0
    while end < size(file):
        try:
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            raise
        end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
        yield start, end
