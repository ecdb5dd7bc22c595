"""Process 1 of a container VM: from the kernel's hands to serving the host.

Whatever fails here ends process 1, which panics the kernel and so cuts the VM's power: the host sees a machine that
went away without an exit report, never a clean end.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from tether import linux
from tether.loop import Loop
from tether.sandbox import Sandbox
from tether.service import Service

VERSION = "0.1.0"
_VIRTIO_NAME = "vch.agent"


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
    linux.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0)


def _load_modules() -> None:
    base = Path("/lib/modules")
    for line in Path("/etc/modules.load").read_text().splitlines():
        if line and not line.startswith("#"):
            linux.load_module(str(base / line))


def _kernel_option(name: str, default: str) -> str:
    for word in Path("/proc/cmdline").read_text().split():
        key, _, value = word.partition("=")
        if key == name:
            return value
    return default


def _open_channel() -> int:
    kind = _kernel_option("vch.channel", "virtio")
    if kind == "virtio":
        return _open_virtio()
    if kind == "serial":
        return os.open("/dev/ttyS1", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    raise SystemExit(f"unknown channel {kind!r}")


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
    _mount_base()
    Path("/proc/self/oom_score_adj").write_text("-1000")
    _load_modules()
    loop = Loop()
    sandbox = Sandbox()

    def power_off() -> None:
        sandbox.dispose()
        linux.power_off()

    Service(loop, _open_channel(), sandbox, VERSION, power_off)
    sys.stderr.write("tether: listening\n")
    loop.run()


if __name__ == "__main__":
    main()
