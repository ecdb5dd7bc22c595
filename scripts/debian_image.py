#!/usr/bin/env python3
"""Makes an image of programs that use glibc, debian:minbase, with debootstrap. Needs root, some minutes and 400 MB."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from image_archive import Format, Image, Layer, write

DEFAULT_OUTPUT = Path(__file__).resolve().parent.parent / "build" / "images" / "debian.tar"
TAG = "debian:minbase"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MOUNT_POINTS = ("dev", "proc", "sys")
_DOCUMENTS = ("usr/share/doc", "usr/share/man", "usr/share/locale")
# Downloaded files, and what tells one run from the next.
_TRACES = (
    *("debootstrap", "var/cache", "var/lib/apt/lists", "var/log"),
    *("etc/machine-id", "etc/hostname", "etc/resolv.conf"),
)


def missing() -> str:
    """Why this machine cannot make it; empty when it can."""
    if os.geteuid() != 0:
        return "debootstrap needs root"
    return "" if shutil.which("debootstrap", path="/usr/sbin:/usr/bin") else "debootstrap is not installed"


def ensure(output: Path = DEFAULT_OUTPUT) -> Path:
    """The archive, made when it is not there yet."""
    if not output.exists():
        build(output)
    return output


def build(output: Path, layout: Format = Format.BOTH) -> None:
    """Makes the archive from the release and the mirror that apt is set to."""
    mirror, release = _origin()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        command = ["/usr/sbin/debootstrap", "--variant=minbase", release, scratch, mirror]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        layer = Layer()
        layer.tree(Path(scratch), (*_MOUNT_POINTS, *_DOCUMENTS, *_TRACES))
        for path in _MOUNT_POINTS:
            layer.directory(path)
        write(Image(TAG, (layer.finish(),), {"Cmd": ["bash"], "Env": [_PATH]}), output, layout)


def _origin() -> tuple[str, str]:
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return words[0], words[1]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    options = parser.parse_args()
    if why := missing():
        sys.stderr.write(f"debian image: {why}\n")
        return 1
    build(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
