"""Python sources to the .pyc files of the image, compiled by the guest's own interpreter.

The image carries bytecode in the place of sources ("sourceless"): smaller, and nothing to compile or compare at boot.
Running the guest's interpreter makes the build independent of the host's Python version.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from errors import BuildError

# Runs inside the guest's interpreter: {path in the image: source text} on stdin -> files below argv[1].
# Unchecked hashes keep file times out of the bytes.
_PROGRAM = """
import importlib._bootstrap_external as external, json, os, sys
for name, source in sorted(json.load(sys.stdin).items()):
    code = compile(source.encode("latin-1"), "/" + name, "exec", dont_inherit=True)
    target = os.path.join(sys.argv[1], name + "c")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb") as file:
        file.write(external._code_to_hash_pyc(code, bytes(8), checked=False))
"""


class Compiler:
    """The interpreter `version` unpacked below `root`."""

    def __init__(self, root: Path, version: str) -> None:
        loaders = [*root.glob("lib*/**/ld-linux-x86-64.so.2"), *root.glob("usr/lib*/**/ld-linux-x86-64.so.2")]
        if not loaders:
            raise BuildError(f"no dynamic loader below {root}")
        libraries = [str(root / prefix / "x86_64-linux-gnu") for prefix in ("lib", "usr/lib")]
        self._command = [
            *(str(loaders[0].resolve()), "--library-path", ":".join(libraries)),
            *(str(root / "usr/bin" / f"python{version}"), "-S", "-s", "-X", "no_debug_ranges"),
        ]
        # A fixed hash seed: the order of sets shows in bytecode.
        self._environment = {"PYTHONHOME": str(root / "usr"), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}

    def compile(self, sources: Mapping[str, bytes]) -> dict[str, bytes]:
        """{path.py: source} to {path.pyc: bytecode}."""
        request = json.dumps({name: source.decode("latin-1") for name, source in sources.items()}).encode()
        with tempfile.TemporaryDirectory() as scratch:
            command = [*self._command, "-c", _PROGRAM, scratch]
            result = subprocess.run(command, input=request, env=self._environment, capture_output=True)
            if result.returncode != 0:
                raise BuildError(f"compiling for the guest failed: {result.stderr.decode(errors='replace').strip()}")
            return {f"{name}c": (Path(scratch) / f"{name}c").read_bytes() for name in sources}
