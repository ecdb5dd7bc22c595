"""System calls that Python's standard library does not have, through ctypes. Every function raises OSError."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_SYNCHRONOUS, MS_REMOUNT, MS_NOATIME, MS_NODIRATIME = 0x10, 0x20, 0x400, 0x800
MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 0x1000, 0x2000, 0x4000, 0x40000
MS_SLAVE, MS_SHARED = 0x80000, 0x100000
MS_RELATIME, MS_STRICTATIME = 0x200000, 0x1000000
MNT_DETACH = 0x2

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x20000, 0x2000000, 0x4000000
CLONE_NEWIPC, CLONE_NEWPID = 0x8000000, 0x20000000

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 4, 8, 24, 38
_RB_POWER_OFF = 0x4321FEDC
_SYS_CAPSET, _SYS_PIVOT_ROOT, _SYS_FINIT_MODULE, _SYS_OPEN_TREE, _SYS_MOVE_MOUNT = 126, 155, 313, 428, 429
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH, _AT_FDCWD, _AT_RECURSIVE = 1, 4, -100, 0x8000
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def keep_freed_memory(size: int) -> None:
    """Lets this process keep up to `size` bytes that it has freed (mallopt(3)).

    By default glibc gives what lies at the heap's end back to the kernel as soon as it is 128 KiB, and maps larger
    pieces one by one: a process that handles such pieces all the time spends most of its time on page faults.
    """
    for option, value in ((_M_TRIM_THRESHOLD, size), (_M_TOP_PAD, size // 8), (_M_MMAP_THRESHOLD, size)):
        if not _libc.mallopt(option, value):
            raise OSError(0, "mallopt refused", str(option))


def mount(source: str, target: str, filesystem: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            filesystem.encode() or None,
            ctypes.c_ulong(flags),
            data.encode() or None,
        ),
        target,
    )


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def open_tree(path: str, *, recursive: bool = False) -> int:
    """open_tree(2): a descriptor of a bind mount of `path`, or of all mounts there, that is mounted nowhere yet."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    descriptor = _libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)
    _check(descriptor, path)
    return int(descriptor)


def move_mount(mount: int, target: str) -> None:
    """move_mount(2): mounts what `open_tree` gave."""
    _check(_libc.syscall(_SYS_MOVE_MOUNT, mount, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH), target)


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    """setns(2)."""
    _check(_libc.setns(descriptor, kind), "setns")


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _check(_libc.syscall(_SYS_PIVOT_ROOT, os.fsencode(new_root), os.fsencode(put_old)), new_root)


def prctl(option: int, argument: int) -> None:
    """prctl(2) with one argument."""
    _check(_libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0), "prctl")


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) for this process; the sets are bit masks."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    sets = (effective, permitted, inheritable)
    low = struct.pack("=III", *(mask & 0xFFFFFFFF for mask in sets))
    high = struct.pack("=III", *(mask >> 32 for mask in sets))
    _check(_libc.syscall(_SYS_CAPSET, header, low + high), "capset")


def load_module(path: str) -> None:
    """finit_module(2); a module that is there already is no error."""
    with open(path, "rb") as module:
        try:
            _check(_libc.syscall(_SYS_FINIT_MODULE, module.fileno(), b"", 0), path)
        except FileExistsError:
            return


def power_off() -> None:
    """reboot(2): the VM is off when this takes effect."""
    os.sync()
    _check(_libc.reboot(ctypes.c_int(_RB_POWER_OFF)), "reboot")


def reseed(entropy: bytes) -> None:
    """Credits the host's randomness and makes the kernel's generator use it at once."""
    with open("/dev/urandom", "wb", buffering=0) as generator:
        fcntl.ioctl(generator, _RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
        fcntl.ioctl(generator, _RNDRESEEDCRNG)
