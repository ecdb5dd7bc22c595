"""The guest's own interpreter, run on the host while the image is built.

The image carries bytecode in the place of sources ("sourceless"): smaller, and nothing to compile or compare at boot.
Running the guest's interpreter makes the build independent of the host's Python version, and shows before any VM boots
whether what the agent imports is all there.
"""

from __future__ import annotations

import json
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import libraries
from cpio import Entry
from errors import BuildError

# {path in the image: source text} on stdin -> files below argv[1]. Unchecked hashes keep file times out of the bytes.
_COMPILE = """
import importlib._bootstrap_external as external, json, os, sys
for name, source in sorted(json.load(sys.stdin).items()):
    code = compile(source.encode("latin-1"), "/" + name, "exec", dont_inherit=True)
    target = os.path.join(sys.argv[1], name + "c")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb") as file:
        file.write(external._code_to_hash_pyc(code, bytes(8), checked=False))
"""
_IMPORT = """
import importlib, sys
sys.path = sys.path[1:] + [sys.argv[1]]
for name in sys.argv[2:]:
    importlib.import_module(name)
"""


class GuestPython:
    """The interpreter `version` unpacked below `root`."""

    def __init__(self, root: Path, version: str) -> None:
        self._root = root
        self._program = f"usr/bin/python{version}"

    def compile(self, sources: Mapping[str, bytes]) -> dict[str, bytes]:
        """{path.py: source} to {path.pyc: bytecode}. Raises BuildError."""
        request = json.dumps({name: source.decode("latin-1") for name, source in sources.items()}).encode()
        with tempfile.TemporaryDirectory() as scratch:
            self._run(self._root, "compiling for the guest", _COMPILE, scratch, request=request)
            return {f"{name}c": (Path(scratch) / f"{name}c").read_bytes() for name in sources}

    def check_imports(self, packages: str, entries: Mapping[str, Entry], modules: Sequence[str]) -> None:
        """Raises BuildError unless the modules can be imported from what the image holds, and nothing else."""
        # Beside the interpreter: where temporary files go, nothing may be executable.
        with tempfile.TemporaryDirectory(dir=self._root.parent) as scratch:
            root = Path(scratch)
            for path, entry in entries.items():
                if path.startswith(("usr/", "lib")) and not path.startswith("lib/modules/"):
                    _lay_out(root / path, entry)
            self._run(root, "importing in the guest", _IMPORT, str(root / packages), *modules)

    def _run(self, root: Path, doing: str, program: str, *arguments: str, request: bytes = b"") -> None:
        path = ":".join(str(directory) for directory in libraries.directories(root))
        command = [
            # The loader's cache is the build machine's.
            *(str(libraries.Libraries(root).loader.resolve()), "--inhibit-cache", "--library-path", path),
            *(str(root / self._program), "-S", "-s", "-X", "no_debug_ranges"),
            *("-c", program, *arguments),
        ]
        # A fixed hash seed: the order of sets shows in bytecode.
        environment = {"PYTHONHOME": str(root / "usr"), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        result = subprocess.run(command, input=request, env=environment, capture_output=True)
        if result.returncode != 0:
            raise BuildError(f"{doing} failed: {result.stderr.decode(errors='replace').strip()}")


def _lay_out(path: Path, entry: Entry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if stat.S_ISDIR(entry.mode):
        path.mkdir(exist_ok=True)
    elif stat.S_ISLNK(entry.mode):
        path.symlink_to(entry.data.decode())
    else:
        path.write_bytes(entry.data)
        path.chmod(stat.S_IMODE(entry.mode))
