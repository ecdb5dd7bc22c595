#!/usr/bin/env python3
"""Builds the guest image: kernel and initramfs with the tether in it.

    python photon-image/build.py --output build/photon-image

Makes DIR/vmlinuz, DIR/initramfs and DIR/manifest.json. The same inputs give the same bytes; when nothing has changed
since DIR was made, nothing is done.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cpio
import declaration
import tree
from declaration import Declaration, Package
from errors import BuildError
from kernel import Kernel
from sources import AptSource, PackageSource, ResolvedPackage

_HERE = Path(__file__).resolve().parent
_REPOSITORY = _HERE.parent
_log = logging.getLogger("photon-image")


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the guest image (kernel and initramfs with the tether).")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where to put it")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where downloads are kept (default: beside DIR)")
    parser.add_argument("--quiet", action="store_true", help="say nothing unless it fails")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING if options.quiet else logging.INFO, format="%(name)s: %(message)s")
    cache = options.cache or options.output.resolve().parent / "photon-image-cache"
    try:
        with _locked(cache):
            build(options.output, AptSource(cache / "packages"), cache)
    except BuildError as error:
        _log.error("%s", error)
        return 1
    return 0


def build(output: Path, source: PackageSource, cache: Path) -> None:
    """Makes or renews the image in `output`."""
    declared = declaration.read(_HERE / "packages.toml")
    python, packages = _choose(declared, source)
    resolved = _resolve(packages, source)
    wheel_versions, wheel_contents = tree.wheel_files(declared)
    inputs = tree.Inputs(
        declaration=declared,
        packages=tuple(packages),
        python=python,
        init=(_HERE / "init").read_bytes(),
        agent=tree.agent_files(_REPOSITORY),
        wheels=wheel_contents,
    )
    digest = _inputs_digest(inputs, resolved)
    if _is_current(output, digest):
        _log.info("%s is up to date", output)
        return
    root = _unpacked(source, resolved, cache)
    kernel = Kernel(root)
    initramfs = io.BytesIO()
    cpio.write(initramfs, tree.build(root, inputs, kernel))
    manifest = {
        "inputs": digest,
        "kernel_version": kernel.version,
        "python": python,
        "packages": [{"name": p.name, "version": p.version, "sha256": p.sha256} for p in resolved],
        "wheels": wheel_versions,
    }
    _write(output, kernel.image.read_bytes(), initramfs.getvalue(), manifest)
    _log.info("%s: kernel %s, initramfs %.1f MB", output, kernel.version, len(initramfs.getbuffer()) / 1e6)


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """One build at a time with the same cache; others wait."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _choose(declared: Declaration, source: PackageSource) -> tuple[str, list[Package]]:
    """(version of Python, packages with exactly one name each)."""
    wanted = [name for version in declared.python for p in declared.packages for name in p.for_python(version).names]
    available = source.available(sorted(set(wanted)))
    for version in declared.python:
        packages = [package.for_python(version) for package in declared.packages]
        names = [next((name for name in package.names if name in available), None) for package in packages]
        if None not in names:
            chosen = zip(packages, names, strict=True)
            return version, [Package((str(name),), p.files, p.resolve, p.kernel) for p, name in chosen]
    missing = [p.names for p in (p.for_python(declared.python[0]) for p in declared.packages)]
    lacking = [" or ".join(names) for names in missing if not available & set(names)]
    raise BuildError(f"packages not found: {', '.join(lacking)}", hint="run: sudo apt-get update")


def _resolve(packages: list[Package], source: PackageSource) -> list[ResolvedPackage]:
    names: list[str] = []
    for package in packages:
        found = source.dependencies(package.names[0], package.resolve) if package.resolve else list(package.names)
        if not found:
            raise BuildError(f"{package.names[0]} depends on nothing like {package.resolve}")
        names += found
    return source.resolve(names)


def _inputs_digest(inputs: tree.Inputs, resolved: list[ResolvedPackage]) -> str:
    digest = hashlib.sha256()
    for file in sorted(_HERE.iterdir()):
        if file.is_file():
            _feed(digest, file.name, file.read_bytes())
    for contents in (inputs.agent, inputs.wheels):
        for path, data in sorted(contents.items()):
            _feed(digest, path, data)
    for package in resolved:
        _feed(digest, package.name, package.sha256.encode())
    return digest.hexdigest()


def _feed(digest: Any, name: str, data: bytes) -> None:
    digest.update(f"{len(name)} {name} {len(data)} ".encode() + data)


def _is_current(output: Path, digest: str) -> bool:
    try:
        manifest = json.loads((output / "manifest.json").read_text())
        sizes = {name: (output / name).stat().st_size for name in ("vmlinuz", "initramfs")}
    except (OSError, ValueError):
        return False
    return bool(manifest.get("inputs") == digest and manifest.get("sizes") == sizes)


def _unpacked(source: PackageSource, resolved: list[ResolvedPackage], cache: Path) -> Path:
    """The packages' files, unpacked once for each set of packages; older sets are removed."""
    key = hashlib.sha256("".join(package.sha256 for package in resolved).encode()).hexdigest()[:16]
    root = cache / "roots" / key
    if root.is_dir():
        return root
    shutil.rmtree(root.parent, ignore_errors=True)
    root.parent.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
        unpacked = Path(scratch) / "root"
        source.unpack(resolved, unpacked)
        _check_libraries(unpacked)
        unpacked.rename(root)
    return root


def _check_libraries(root: Path) -> None:
    """Fails early, and clearly, when the interpreter needs a library that no declared package brings."""
    loader = next(root.glob("lib*/**/ld-linux-x86-64.so.2"))
    libraries = ":".join(str(root / prefix / "x86_64-linux-gnu") for prefix in ("lib", "usr/lib"))
    for program in root.glob("usr/bin/python3.[0-9]*"):
        command = [str(loader.resolve()), "--library-path", libraries, "--list", str(program)]
        result = subprocess.run(command, capture_output=True, text=True)
        strays = [line for line in result.stdout.splitlines() if "=>" in line and str(root) not in line]
        if result.returncode != 0 or strays:
            raise BuildError(f"{program.name} needs libraries that are not declared: {strays or result.stderr}")


def _write(output: Path, kernel: bytes, initramfs: bytes, manifest: dict[str, Any]) -> None:
    """The manifest goes last: an image is complete when its manifest says so."""
    digest = hashlib.sha256()
    _feed(digest, "vmlinuz", kernel)
    _feed(digest, "initramfs", initramfs)
    manifest["digest"] = f"sha256:{digest.hexdigest()}"
    manifest["sizes"] = {"vmlinuz": len(kernel), "initramfs": len(initramfs)}
    output.mkdir(parents=True, exist_ok=True)
    for name, data in (
        ("vmlinuz", kernel),
        ("initramfs", initramfs),
        ("manifest.json", (json.dumps(manifest, indent=2) + "\n").encode()),
    ):
        temporary = output / f".{name}.new"
        temporary.write_bytes(data)
        os.replace(temporary, output / name)


if __name__ == "__main__":
    sys.exit(main())
