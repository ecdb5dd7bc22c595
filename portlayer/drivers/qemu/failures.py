"""Errors of the operating system and of QEMU as errors of the port layer."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from portlayer.errors import DriverError, ExhaustedError, PortLayerError

_EXHAUSTED = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_MEMORY_WORDS = ("cannot allocate memory", "cannot set up guest memory")
_TAIL_BYTES = 2000


@contextmanager
def os_errors(action: str) -> Iterator[None]:
    """OSError in the block becomes ExhaustedError where something ran out, DriverError otherwise."""
    try:
        yield
    except OSError as error:
        kind = ExhaustedError if error.errno in _EXHAUSTED else DriverError
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise kind(f"{action}: {reason}") from error


def qemu_failure(action: str, log: Path) -> PortLayerError:
    """The error for a QEMU that gave up, quoting what it wrote last."""
    words = last_words(log)
    kind = ExhaustedError if any(word in words.lower() for word in _MEMORY_WORDS) else DriverError
    return kind(f"{action}: {words or 'QEMU ended without a word'}")


def last_words(log: Path) -> str:
    """The last lines of QEMU's own messages."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""
