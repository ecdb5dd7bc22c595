#!/usr/bin/env python3
"""Builds the guest image: kernel and initramfs with the tether in it, and a CD that boots them.

    python photon-image/build.py --output build/photon-image

From Debian's or Ubuntu's packages by apt, or from Photon OS's: see README.md beside this file for how.

Makes DIR/vmlinuz, DIR/initramfs, DIR/guest.iso and DIR/manifest.json. The same inputs give the same bytes; when
nothing has changed since DIR was made, nothing is done.
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
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cpio
import declaration
import iso
import selection
import source_options
import tree
from errors import BuildError
from kernel import Kernel
from sources import SCRATCH, PackageSource, ResolvedPackage

_HERE = Path(__file__).resolve().parent
_REPOSITORY = _HERE.parent
_DECLARED = _HERE / "packages.toml"
_FILES = ("vmlinuz", "initramfs", "guest.iso")
_log = logging.getLogger("photon-image")


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the guest image (kernel, initramfs with the tether, CD).")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where to put it")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where downloads are kept (default: beside DIR)")
    parser.add_argument("--quiet", action="store_true", help="say nothing unless it fails")
    source_options.add_to(parser)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING if options.quiet else logging.INFO, format="%(name)s: %(message)s")
    cache = options.cache or options.output.resolve().parent / "photon-image-cache"
    try:
        with locked(cache), source_options.source_of(options, _DECLARED, cache) as source:
            build(options.output, source, cache, options.source, options.kernel)
    except BuildError as error:
        _log.error("%s", error)
        return 1
    except OSError as error:
        places = f"{options.output} (--output), {cache} (--cache), {os.environ.get('TMPDIR', '/tmp')} (TMPDIR)"
        hint = f"there must be room, and leave to write, in {places}"
        _log.error("%s", BuildError(f"the image is not built: {error}", hint=hint))
        return 1
    return 0


def build(output: Path, source: PackageSource, cache: Path, distribution: str = "debian", kernel: str = "") -> None:
    """Makes or renews the image in `output` of `distribution`'s packages, `kernel` among them if it is given."""
    declared = declaration.read(_DECLARED, distribution)
    python, packages = selection.choose(declared, source, kernel)
    resolved = selection.resolve(packages, source)
    wheel_versions, wheel_contents = tree.wheel_files(declared)
    inputs = tree.Inputs(
        declaration=declared,
        packages=tuple(packages),
        python=python,
        init=(_HERE / "init").read_bytes(),
        agent=tree.agent_files(_REPOSITORY),
        wheels=wheel_contents,
    )
    boot = iso.boot_files(declared.cd_command_line)
    digest = _inputs_digest(inputs, resolved, boot)
    if _is_current(output, digest):
        _log.info("%s is up to date", output)
        return
    # Unpacked for this one build, so that no file gets in which was not checked just now.
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=cache) as scratch:
        root = Path(scratch, "root")
        source.unpack(resolved, root)
        linux = Kernel(root)
        initramfs = io.BytesIO()
        cpio.write(initramfs, tree.build(root, inputs, linux))
        manifest = {
            "inputs": digest,
            "source": distribution,
            "kernel_version": linux.version,
            "platforms": [platform.name for platform in tree.platforms(linux, declared)],
            "python": python,
            "packages": [{"name": p.name, "version": p.version, "sha256": p.sha256} for p in resolved],
            "wheels": wheel_versions,
        }
        image = {"vmlinuz": linux.image.read_bytes(), "initramfs": initramfs.getvalue()}
    image["guest.iso"] = iso.make(image["vmlinuz"], image["initramfs"], boot)
    _write(output, image, manifest)
    _log.info("%s: kernel %s, initramfs %.1f MB", output, linux.version, len(image["initramfs"]) / 1e6)


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    """One build at a time with the same cache; others wait. What builds left there that were killed is removed."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in (*cache.glob(f"{SCRATCH}*"), *cache.glob(f"*/{SCRATCH}*")):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _inputs_digest(inputs: tree.Inputs, resolved: list[ResolvedPackage], boot: iso.BootFiles) -> str:
    digest = hashlib.sha256()
    for file in sorted(_HERE.iterdir()):
        if file.is_file() and file.suffix != ".md":
            _feed(digest, file.name, file.read_bytes())
    for contents in (inputs.agent, inputs.wheels):
        for path, data in sorted(contents.items()):
            _feed(digest, path, data)
    for package in resolved:
        _feed(digest, package.name, package.sha256.encode())
    _feed(digest, "boot", boot.digest().encode())
    return digest.hexdigest()


def _feed(digest: Any, name: str, data: bytes) -> None:
    digest.update(f"{len(name)} {name} {len(data)} ".encode() + data)


def _is_current(output: Path, digest: str) -> bool:
    try:
        manifest = json.loads((output / "manifest.json").read_text())
        sizes = {name: (output / name).stat().st_size for name in _FILES}
    except (OSError, ValueError):
        return False
    return bool(manifest.get("inputs") == digest and manifest.get("sizes") == sizes)


def _write(output: Path, image: dict[str, bytes], manifest: dict[str, Any]) -> None:
    """Replaces the image in `output`. What fails before, for want of room as a rule, leaves the former one whole.

    The manifest is the first to go and the last to come: who is killed in between leaves no image, never two halves.
    """
    digest = hashlib.sha256()
    for name in ("vmlinuz", "initramfs"):  # what boots, in whatever way
        _feed(digest, name, image[name])
    manifest["digest"] = f"sha256:{digest.hexdigest()}"
    manifest["iso"] = {"file": "guest.iso", "sha256": hashlib.sha256(image["guest.iso"]).hexdigest()}
    manifest["sizes"] = {name: len(image[name]) for name in _FILES}
    files = image | {"manifest.json": (json.dumps(manifest, indent=2) + "\n").encode()}
    output.mkdir(parents=True, exist_ok=True)
    for left in output.glob(f"{SCRATCH}*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=output) as scratch:
        for name, data in files.items():
            Path(scratch, name).write_bytes(data)
        (output / "manifest.json").unlink(missing_ok=True)
        for name in files:
            os.replace(Path(scratch, name), output / name)


if __name__ == "__main__":
    sys.exit(main())
