"""The shared libraries of the image: those that something in it needs, found in the unpacked packages.

Distributions lay libraries out in their own ways (Debian below x86_64-linux-gnu, Photon in /usr/lib and /lib64), and
name the loader's directories when they build it. So nothing here knows a path: files say which libraries they need, and
the loader says where it will look for them.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import cpio
import elf
from cpio import Entry
from errors import BuildError

_DIRECTORIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64", "lib", "usr/lib")
_MAXIMUM_LINKS = 16


def directories(root: Path) -> list[Path]:
    """Where libraries may be below `root`."""
    return [root / directory for directory in _DIRECTORIES if (root / directory).is_dir()]


class Libraries:
    """The libraries in the packages unpacked below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def needed_by(self, entries: Mapping[str, Entry]) -> dict[str, Entry]:
        """Entries for all libraries that `entries` need, and theirs in turn; and for their loader.

        Raises BuildError for a library that no package has.
        """
        found: dict[str, Entry] = {}
        pending = [(path, entry.data) for path, entry in entries.items() if entry.data.startswith(elf.MAGIC)]
        present = {path.rpartition("/")[2] for path in entries}
        while pending:
            path, data = pending.pop()
            needs = elf.needs(data)
            if needs.interpreter:
                found[needs.interpreter.lstrip("/")] = cpio.file(self.loader.read_bytes(), executable=True)
            for name in needs.libraries:
                if name == self.loader.name or name in present:
                    continue
                present.add(name)
                library = self._find(name)
                if library is None:
                    raise BuildError(
                        f"{path} needs {name}, which is in no declared package",
                        hint="declare the package that has it, in photon-image/packages.toml",
                    )
                data = library.read_bytes()
                found[f"{self._searched_first}/{name}"] = cpio.file(data)
                pending.append((name, data))
        return found

    @cached_property
    def loader(self) -> Path:
        """The dynamic loader. Raises BuildError when there is none."""
        found = self._find("ld-linux-x86-64.so.2")
        if found is None:
            raise BuildError(f"no dynamic loader below {self._root}", hint="is the C library's package declared?")
        return found

    @cached_property
    def _searched_first(self) -> str:
        """The first of the loader's own directories: with everything there, it looks nowhere else."""
        command = [str(self.loader), "--list-diagnostics"]
        result = subprocess.run(command, capture_output=True, text=True)
        match = re.search(r'^path\.system_dirs\[0x0\]="/(.*?)/?"$', result.stdout, re.MULTILINE)
        if not match:
            raise BuildError("the loader does not say where it looks for libraries", hint="glibc 2.33 and later do")
        return match[1]

    def _find(self, name: str) -> Path | None:
        for directory in directories(self._root):
            file = self._resolved(directory / name)
            if file is not None:
                return file
        return None

    def _resolved(self, path: Path) -> Path | None:
        """The file that `path` leads to, where absolute links mean `root`; never one outside."""
        for _ in range(_MAXIMUM_LINKS):
            if not path.is_symlink():
                inside = path.resolve().is_relative_to(self._root.resolve())
                return path if path.is_file() and inside else None
            target = path.readlink()
            path = self._root / target.relative_to("/") if target.is_absolute() else path.parent / target
        return None
