"""Process 1 of a container VM: from the kernel's hands to serving the host.

Whatever fails here ends process 1, which panics the kernel and so cuts the VM's power: the host sees a machine that
went away without an exit report, never a clean end.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tether import linux, modules, rootfs, serial, vsock
from tether.cgroup import Group
from tether.loop import Loop
from tether.sandbox import Sandbox
from tether.service import Service

if TYPE_CHECKING:
    from tether.guestinfo import Hypervisor

VERSION = "0.1.0"
_VIRTIO_NAME = "vch.agent"
_SERIAL_DEVICE = "/dev/ttyS1"
# Enough for output on its way; more is given back.
_KEPT_BYTES = 8 << 20
_OPEN_FILES = 1 << 20


def _mount_base() -> None:
    """Covers the initramfs, which nobody can pivot away from, with a mount of itself; adds the kernel's own mounts."""
    os.makedirs("/run/base", exist_ok=True)
    linux.mount("/", "/run/base", "", linux.MS_BIND)
    os.chdir("/run/base")
    linux.mount(".", "/", "", linux.MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    for source, target, flags in (
        ("proc", "/proc", 0),
        ("sysfs", "/sys", 0),
        ("devtmpfs", "/dev", 0),
        ("tmpfs", "/run", linux.MS_NOSUID | linux.MS_NODEV),
    ):
        os.makedirs(target, exist_ok=True)
        linux.mount(source, target, source, flags)
    _mount_cgroups("/sys/fs/cgroup")
    linux.mount("", "/", "", linux.MS_REC | linux.MS_SHARED)  # a stem is to see the disks that are mounted later


def _mount_cgroups(target: str) -> None:
    """So that processes join their group at once: by default each waits for a grace period of RCU (Linux 6.0)."""
    try:
        linux.mount("cgroup2", target, "cgroup2", 0, "favordynmods")
    except OSError:
        linux.mount("cgroup2", target, "cgroup2", 0)


def _lift_limits() -> None:
    """The kernel's own limits for process 1 are lower than what containers inherit from a Docker daemon."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_NPROC, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _kernel_option(name: str, default: str) -> str:
    for word in Path("/proc/cmdline").read_text().split():
        key, _, value = word.partition("=")
        if key == name:
            return value
    return default


def _open_channel(loop: Loop, attach: Callable[[int], None], platforms: list[str]) -> None:
    kind = _kernel_option("vch.channel", "virtio")
    if kind == "virtio":
        attach(_open_virtio())
    elif kind == "vsock":
        _listen_on_vsock(loop, attach, platforms)
    elif kind == "serial":
        attach(serial.open_raw(_SERIAL_DEVICE))
    else:
        raise SystemExit(f"unknown channel {kind!r}")


def _listen_on_vsock(loop: Loop, attach: Callable[[int], None], platforms: list[str]) -> None:
    modules.load("vsock")
    vsock.serve(loop, vsock.listen(), attach)
    modules.load_for("vsock", platforms)


def _open_virtio() -> int:
    """Waits for the port to be announced by the kernel: the driver finds its ports after it was loaded."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15) as uevents:
        uevents.bind((0, 1))
        uevents.settimeout(30)
        while True:
            for name in Path("/sys/class/virtio-ports").glob("*/name"):
                if name.read_text().strip() == _VIRTIO_NAME:
                    return os.open(f"/dev/{name.parent.name}", os.O_RDWR | os.O_CLOEXEC)
            uevents.recv(8192)


def main() -> None:
    """Runs until the power is off."""
    os.umask(0o022)
    linux.keep_freed_memory(_KEPT_BYTES)
    _mount_base()
    Path("/proc/self/oom_score_adj").write_text("-1000")
    _lift_limits()
    platforms = modules.platforms()
    modules.load_for("load", platforms)
    modules.load("load")
    loop = Loop()
    sandbox = Sandbox(Group(), rootfs.mount_disks)

    def power_off() -> None:
        sandbox.dispose()
        linux.power_off()

    def hypervisor() -> Hypervisor:
        from tether import guestinfo

        modules.load("vsock")
        modules.load_for("vsock", platforms)
        return guestinfo.connect()

    service = Service(loop, sandbox, VERSION, power_off, hypervisor)
    _open_channel(loop, service.attach, platforms)
    sys.stderr.write("tether: listening\n")
    loop.run()


if __name__ == "__main__":
    main()
