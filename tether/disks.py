"""The container's disks among the block devices: by serial number, or by their place on the PVSCSI controller.

vSphere does not let anyone choose a disk's serial number, but it keeps a disk at its target: the name "scsi:N" stands
for the disk at target N (LUN 0) of the machine's PVSCSI controller. Any other name is a serial number.

The controller tells the kernel of disks that come and go, by messages in a ring. This does not rely on them: it asks
for a disk that is not there yet, again and again, and says when it has let go of one. (Under QEMU a restored machine
loses the ring.)
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress

_BLOCK = "/sys/block"
_HOSTS = "/sys/class/scsi_host"
_DEV = "/dev"
_WAIT_S = 30.0
_ASK_AGAIN_S = 1.0
_KOBJECT_UEVENT, _KERNEL_GROUP = 15, 1
_PVSCSI = "vmw_pvscsi"
_TARGET_PREFIX = "scsi:"
# More than any controller has; a name with a larger number is none.
_MAX_TARGETS = 256
# Block devices' names by the names of disks.
_last_seen: dict[str, str] = {}


def find(name: str) -> str:
    """Path of the block device; waits for the kernel to announce it, 30 s at most.

    Raises OSError: ENODEV when no such disk appears, EINVAL for a target that cannot be.
    """
    if name.startswith(_TARGET_PREFIX):
        target = _target(name)
        is_it = functools.partial(_is_at, target=target)
        return _wait_for(name, is_it, f"no disk is at target {target} of the controller", lambda: _ask_for(target))
    return _wait_for(name, lambda block: _serial(block) == name, f"no disk has the serial number {name!r}")


def let_go() -> None:
    """The disks found by target are used no more, and the host may take them away: others may come in their places."""
    for name in [name for name in _last_seen if name.startswith(_TARGET_PREFIX)]:
        _tell(f"{_BLOCK}/{_last_seen.pop(name)}/device/delete", "1")


def _target(name: str) -> int:
    digits = name.removeprefix(_TARGET_PREFIX)
    if not (digits.isascii() and digits.isdigit() and len(digits) < 4 and int(digits) < _MAX_TARGETS):
        raise OSError(errno.EINVAL, f"{name!r} names no target: {_TARGET_PREFIX}0 is the first")
    return int(digits)


def _wait_for(name: str, is_it: Callable[[str], bool], otherwise: str, ask: Callable[[], None] = lambda: None) -> str:
    if disk := _present(name, is_it):
        return disk
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _KOBJECT_UEVENT) as uevents:
        uevents.bind((0, _KERNEL_GROUP))
        ask_at = time.monotonic()
        deadline = ask_at + _WAIT_S
        while (now := time.monotonic()) < deadline:
            if now >= ask_at:
                ask()
                ask_at = now + _ASK_AGAIN_S
            if disk := _present(name, is_it):
                return disk
            with suppress(TimeoutError):
                uevents.settimeout(min(_ASK_AGAIN_S, deadline - now))
                uevents.recv(8192)
    raise OSError(errno.ENODEV, otherwise)


def _present(name: str, is_it: Callable[[str], bool]) -> str:
    """The disk, if it can be opened; where one of that name was before is looked first.

    The kernel makes its entry and its device file a moment before that, and announces it a moment after.
    """
    for block in sorted(os.listdir(_BLOCK), key=lambda block: block != _last_seen.get(name)):
        if is_it(block) and _opens(f"{_DEV}/{block}"):
            _last_seen[name] = block
            return f"{_DEV}/{block}"
    return ""


def _opens(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _is_at(block: str, target: int) -> bool:
    """Whether it is the disk at that target; a SCSI device is named HOST:CHANNEL:TARGET:LUN."""
    try:
        host, _, number, lun = os.path.basename(os.readlink(f"{_BLOCK}/{block}/device")).split(":")
        return (int(number), int(lun)) == (target, 0) and _driver(int(host)) == _PVSCSI
    except (OSError, ValueError):
        return False  # no SCSI device, or one that goes away


def _ask_for(target: int) -> None:
    """Has the kernel look for the disk; it announces what it finds."""
    with suppress(OSError, ValueError):
        for host in os.listdir(_HOSTS):
            if _driver(int(host.removeprefix("host"))) == _PVSCSI:
                _tell(f"{_HOSTS}/{host}/scan", f"0 {target} 0")


def _tell(file: str, word: str) -> None:
    with suppress(OSError), open(file, "w") as control:  # what is not there cannot be told
        control.write(word)


def _driver(host: int) -> str:
    with open(f"{_HOSTS}/host{host}/proc_name") as file:
        return file.read(64).strip()


def _serial(block: str) -> str:
    for name, skip in (("serial", 0), ("device/vpd_pg80", 4)):
        try:
            with open(f"{_BLOCK}/{block}/{name}", "rb") as file:
                return file.read(256)[skip:].strip(b" \0\n").decode("ascii", "replace")
        except OSError:
            continue
    return ""
