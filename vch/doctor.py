"""Looks at this machine the way a VCH will use it, and says what each finding costs."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from portlayer.drivers import guest_image
from portlayer.drivers.findings import Finding
from portlayer.drivers.qemu import accelerator, vsock
from portlayer.errors import PortLayerError
from vch import sense
from vch.settings import MAX_SOCKET_PATH
from vch.vsphere_options import Vsphere

_GIB = 1 << 30
_TOOLS = {
    "mksquashfs": ("squashfs-tools 4.5 or later", "no image disks: docker load fails"),
    "mkfs.ext4": ("e2fsprogs", "no writable disks: containers cannot be created"),
}


def examine(state_dir: Path, image_dir: Path) -> list[Finding]:
    """All findings; the proof of KVM boots a kernel and takes up to some seconds."""
    return [
        _python(),
        *asyncio.run(_qemu(image_dir)),
        _vsock(),
        *_tools(),
        *_space(state_dir),
        _memory(),
        _sockets(state_dir),
    ]


def examine_vsphere(vsphere: Vsphere, password: str, state_dir: Path, image_dir: Path) -> list[Finding]:
    """All findings for a VCH whose containers are on vSphere. ConfigurationError for options that make no sense."""
    # With pyvmomi, which takes a moment.
    from portlayer.drivers.vsphere import doctor

    logging.getLogger("portlayer").addHandler(logging.NullHandler())  # what matters is in the findings
    return [
        _python(),
        *asyncio.run(doctor.examine(sense.vsphere_settings(vsphere, password))),
        _iso(image_dir),
        *_tools(),
        *_space(state_dir),
        _sockets(state_dir),
    ]


def _iso(image_dir: Path) -> Finding:
    try:
        image = guest_image.read(image_dir, "vmware")
    except PortLayerError as error:
        return Finding("guest image", "fail", str(error), "no container can start")
    if image.iso is None:
        found = f"{image_dir} has no ISO; photon-image/build.py makes one"
        return Finding("guest image", "fail", found, "no container can start")
    return Finding("guest image", "ok", f"{image.iso}, kernel {image.kernel_version}")


def _python() -> Finding:
    return Finding("python", "ok", ".".join(map(str, sys.version_info[:3])))


async def _qemu(image_dir: Path) -> list[Finding]:
    findings = []
    qemu = image = None
    try:
        qemu = await accelerator.inspect_qemu()
        findings.append(Finding("qemu", "ok", f"{qemu.program} {qemu.version}"))
        if not qemu.sandbox:
            findings.append(Finding("sandbox", "warn", "QEMU has no seccomp", "an escaped guest meets no second wall"))
    except PortLayerError as error:
        findings.append(Finding("qemu", "fail", str(error), "no container can start"))
    try:
        image = guest_image.read(image_dir)
        findings.append(Finding("guest image", "ok", f"{image_dir}, kernel {image.kernel_version}"))
    except PortLayerError as error:
        findings.append(Finding("guest image", "fail", str(error), "no container can start"))
    if qemu and image:
        findings.append(await _accelerator(qemu, image))
    return findings


async def _accelerator(qemu: accelerator.Qemu, image: guest_image.GuestImage) -> Finding:
    with tempfile.TemporaryDirectory() as scratch:
        choice = await accelerator.choose(qemu, image, Path(scratch) / "accelerator.json", None)
    if choice.accelerator == "kvm":
        return Finding("accelerator", "ok", choice.reason)
    return Finding("accelerator", "warn", choice.reason, "boots take seconds, programs run about ten times slower")


def _vsock() -> Finding:
    if obstacle := vsock.probe():
        return Finding("vsock", "ok", obstacle, "nothing but some speed: agents are reached over virtio-serial")
    return Finding("vsock", "ok", "works; `vch up --channel vsock` uses it")


def _tools() -> Iterator[Finding]:
    # Tools of e2fsprogs are in sbin, which is not on every user's PATH.
    search = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    for tool, (package, costs) in _TOOLS.items():
        where = shutil.which(tool, path=search)
        if where:
            yield Finding(tool, "ok", where)
        else:
            yield Finding(tool, "fail", f"missing, install {package}", costs)


def _space(state_dir: Path) -> Iterator[Finding]:
    there = next(path for path in (state_dir, *state_dir.parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    words = f"{free / _GIB:.1f} GiB free in {there}"
    if free < _GIB:
        yield Finding("disk", "fail", words, "images and writable disks will not fit")
    elif free < 10 * _GIB:
        yield Finding("disk", "warn", words, "room for a few small images only")
    else:
        yield Finding("disk", "ok", words)
    if not os.access(there, os.W_OK):
        yield Finding("state directory", "fail", f"{there} is not writable", "a VCH cannot keep its state")


def _memory() -> Finding:
    available = psutil.virtual_memory().available
    words = f"{available / _GIB:.1f} GiB available, {os.cpu_count()} CPUs"
    if available < _GIB:
        return Finding("memory", "warn", words, "room for one or two containers only")
    return Finding("memory", "ok", words)


def _sockets(state_dir: Path) -> Finding:
    longest = len(os.fsencode(state_dir / "portlayer.sock"))
    if longest > MAX_SOCKET_PATH:
        costs = "give short paths with --host and --grpc"
        return Finding("socket paths", "warn", f"{longest} bytes, {MAX_SOCKET_PATH} fit", costs)
    return Finding("socket paths", "ok", f"{longest} of {MAX_SOCKET_PATH} bytes")
