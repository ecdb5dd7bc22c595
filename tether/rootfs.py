"""The container's file system: two disks joined by overlayfs, and what a process finds around it.

`assemble` runs once, in the agent. `enter` runs in the child that becomes the container's first process: it makes the
root its own, and lets go of the agent's file system, before it looks at anything inside, so that links in the image
lead nowhere but into the image.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tether import disks, linux
from tether.launch import LaunchError, Step
from tether.mounts import parse_tmpfs_options
from tether.v1 import tether_pb2

BASE = "/run/vch"
ROOT = f"{BASE}/root"
IMAGE = f"{BASE}/image"
WRITABLE = f"{BASE}/rw"
_ETC = f"{BASE}/etc"
_STAGE = f"{BASE}/stage"
_ETC_FILES = ("hosts", "hostname", "resolv.conf")
INIT_PROGRAM = "/sbin/docker-init"
_MACHINE_ID = "/etc/machine-id"
_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
    "core": "/proc/kcore",
}
_MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_SECURE = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC


def mount_disks(request: tether_pb2.StartRequest) -> None:
    """Mounts the image at IMAGE and the writable disk at WRITABLE."""
    image = disks.find(request.image_disk.serial)
    linux.mount(image, IMAGE, request.image_disk.filesystem, linux.MS_RDONLY)
    writable = disks.find(request.writable_disk.serial)
    linux.mount(writable, WRITABLE, request.writable_disk.filesystem, linux.MS_NOATIME)


def assemble(request: tether_pb2.StartRequest, mount_disks: Callable[[tether_pb2.StartRequest], None]) -> None:
    """Mounts the container's disks and joins them at ROOT; LaunchError when that fails."""
    try:
        for path in (IMAGE, WRITABLE, ROOT, _ETC):
            os.makedirs(path, exist_ok=True)
        mount_disks(request)
        if not os.path.isdir(f"{WRITABLE}/work"):  # last to be made: a container that died before begins again
            _prepare_upper()
        layers = f"lowerdir={IMAGE},upperdir={WRITABLE}/upper,workdir={WRITABLE}/work"
        linux.mount("overlay", ROOT, "overlay", 0, layers)
    except OSError as error:
        raise LaunchError(Step.MOUNT, error.errno or 0, f"mounting the container's disks: {error}") from error
    _write_etc(request)


def _prepare_upper() -> None:
    """Gives the writable layer the root directory of the image; from then on that is the container's to change."""
    os.makedirs(f"{WRITABLE}/upper", exist_ok=True)
    root = os.stat(IMAGE)
    os.chown(f"{WRITABLE}/upper", root.st_uid, root.st_gid)
    os.chmod(f"{WRITABLE}/upper", stat.S_IMODE(root.st_mode))
    os.mkdir(f"{WRITABLE}/work")


def disassemble() -> None:
    """Unmounts what `assemble` mounted, so that the disks are clean."""
    for target in (ROOT, WRITABLE, IMAGE):
        try:
            linux.unmount(target)
        except OSError:
            continue
    os.sync()


def forget() -> None:
    """Undoes `assemble`, so that other disks may take the place of these. Raises OSError when one stays in use."""
    for target in (ROOT, WRITABLE, IMAGE):
        if os.path.ismount(target):
            linux.unmount(target)
    disks.let_go()


def write_machine_id(machine_id: str) -> None:
    """The VM's own; nothing of an id that another clone of the same template has may stay."""
    with suppress(FileNotFoundError):
        os.unlink(_MACHINE_ID)
    if machine_id:
        Path(_MACHINE_ID).write_text(f"{machine_id}\n")


def _write_etc(request: tether_pb2.StartRequest) -> None:
    """The three files that Docker users find mounted in /etc."""
    name = request.hostname
    full = f"{name}.{request.domainname} {name}" if request.domainname else name
    hosts = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback", f"127.0.1.1\t{full}"]
    hosts += ["\t".join(line.split(None, 1)) for line in request.extra_hosts]
    for file, lines in zip(_ETC_FILES, (hosts, [name], list(request.resolv_conf)), strict=True):
        Path(_ETC, file).write_text("".join(f"{line}\n" for line in lines))


@dataclass(frozen=True)
class Prepared:
    """Mounts of the kernel's file systems that are mounted nowhere yet, by where they belong."""

    mounts: dict[str, int]


def prepare() -> Prepared:
    """Makes what every container without privileges finds at /proc, /sys and /dev, in the namespaces it will have."""
    os.makedirs(_STAGE, exist_ok=True)
    linux.mount("tmpfs", _STAGE, "tmpfs", _SECURE & ~linux.MS_NODEV)
    _mount_kernel(_STAGE, privileged=False, shm_size=0)
    _hide(_STAGE)
    return Prepared({path: linux.open_tree(f"{_STAGE}{path}", recursive=True) for path in ("/proc", "/sys", "/dev")})


def first_process(request: tether_pb2.StartRequest) -> tether_pb2.ProcessSpec:
    """The process of a start, behind the small init where one is asked for."""
    spec = tether_pb2.ProcessSpec()
    spec.CopyFrom(request.process)
    if request.init_process:
        spec.args[:0] = [INIT_PROGRAM, "--"]
    return spec


def enter(request: tether_pb2.StartRequest, prepared: Prepared | None = None) -> None:
    """Makes ROOT the root of this process, which has its own mount namespace, and mounts what belongs into it."""
    linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    files = {f"/etc/{name}": linux.open_tree(f"{_ETC}/{name}") for name in _ETC_FILES}
    if request.machine_id:
        files[_MACHINE_ID] = linux.open_tree(_MACHINE_ID)
    if request.init_process:
        files[INIT_PROGRAM] = linux.open_tree("/usr/bin/tini-static")
    os.chdir(ROOT)
    linux.pivot_root(".", ".")
    linux.unmount(".", linux.MNT_DETACH)  # the old root, which now lies upon the new one
    os.chdir("/")
    if prepared is None:
        _mount_kernel("", request.privileged, request.shm_size_bytes)
    else:
        for path, mount in prepared.mounts.items():
            linux.move_mount(mount, _directory(path))
            os.close(mount)
    for tmpfs in sorted(request.tmpfs, key=lambda tmpfs: tmpfs.target.rstrip("/").count("/")):
        _mount_tmpfs(tmpfs)
    for target, file in files.items():
        if target != _MACHINE_ID or os.path.isfile(target):  # an image without one is to stay without
            linux.move_mount(file, _touch(target))
        os.close(file)
    _write_sysctls(dict(request.sysctls))
    # As Docker: the first process's directory is made for it, by root, even where the root will be read-only. If it
    # cannot be, entering it says why.
    with suppress(OSError):
        os.makedirs(os.path.realpath(request.process.working_dir or "/"), exist_ok=True)
    if prepared is None and not request.privileged:
        _hide("")
    if request.read_only_root:
        linux.mount("", "/", "", linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY)


def _mount_kernel(root: str, privileged: bool, shm_size: int) -> None:
    """The kernel's own file systems, below `root`."""
    read_only = 0 if privileged else linux.MS_RDONLY
    _mount("proc", f"{root}/proc", "proc", _SECURE)
    _mount("sysfs", f"{root}/sys", "sysfs", _SECURE | read_only)
    _mount("cgroup", f"{root}/sys/fs/cgroup", "cgroup2", _SECURE | read_only)
    _populate_dev(f"{root}/dev", shm_size or 64 << 20)


# Paths of the image may be links, even dangling ones: they are followed, and what is missing at their end is made.
# realpath also takes the magic links of /proc for what they say rather than for where they lead.


def _directory(target: str) -> str:
    target = os.path.realpath(target)
    os.makedirs(target, exist_ok=True)
    return target


def _mount(source: str, target: str, filesystem: str, flags: int, data: str = "") -> None:
    linux.mount(source, _directory(target), filesystem, flags, data)


def _mount_tmpfs(tmpfs: tether_pb2.Tmpfs) -> None:
    """Mounts one with the mode of the directory that it covers, as Docker does, unless the options name another."""
    flags, data = parse_tmpfs_options(tmpfs.options)
    with suppress(FileNotFoundError):
        mode = stat.S_IMODE(os.stat(tmpfs.target).st_mode)
        if not any(option.startswith("mode=") for option in data.split(",")):
            data = ",".join(filter(None, (data, f"mode={mode:o}")))
    _mount("tmpfs", tmpfs.target, "tmpfs", flags, data)


def _touch(path: str) -> str:
    """Makes a file to mount something over, unless there is one; returns where it really is."""
    path = os.path.realpath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC, 0o644))
    return path


def _populate_dev(dev: str, shm_size: int) -> None:
    _mount("tmpfs", dev, "tmpfs", linux.MS_NOSUID | linux.MS_STRICTATIME, "mode=755,size=65536k")
    for name, (major, minor) in _DEVICES.items():
        os.mknod(f"{dev}/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
        os.chmod(f"{dev}/{name}", 0o666)
    for name, target in _LINKS.items():
        os.symlink(target, f"{dev}/{name}")
    pts = "newinstance,ptmxmode=0666,mode=0620,gid=5"
    _mount("devpts", f"{dev}/pts", "devpts", linux.MS_NOSUID | linux.MS_NOEXEC, pts)
    _mount("shm", f"{dev}/shm", "tmpfs", _SECURE, f"mode=1777,size={shm_size}")
    _mount("mqueue", f"{dev}/mqueue", "mqueue", _SECURE)


def _write_sysctls(sysctls: dict[str, str]) -> None:
    for name, value in sysctls.items():
        try:
            Path("/proc/sys", *name.split(".")).write_text(value)
        except OSError as error:
            raise LaunchError(Step.SETUP, error.errno or 0, f"setting sysctl {name}={value}: {error}") from error


def _hide(root: str) -> None:
    """Masks and protects the same paths of /proc and /sys as Docker does, below `root`."""
    for path in (f"{root}{masked}" for masked in _MASKED):
        if os.path.isdir(path):
            linux.mount("tmpfs", path, "tmpfs", linux.MS_RDONLY, "size=0k")
        elif os.path.exists(path):
            linux.mount(f"{root}/dev/null", path, "", linux.MS_BIND)
    for path in (f"{root}{protected}" for protected in _READ_ONLY):
        if os.path.exists(path):
            linux.mount(path, path, "", linux.MS_BIND | linux.MS_REC)
            linux.mount("", path, "", linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | _SECURE)
