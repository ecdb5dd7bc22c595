"""Users and groups as the container's own /etc/passwd and /etc/group name them.

Called with the container's root file system as /. The files belong to the workload: what is read of them is bounded,
and malformed lines are passed over.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from tether.launch import LaunchError, Step

_MAX_FILE_BYTES = 1 << 20
_MAX_ID = 2**31 - 1


@dataclass(frozen=True)
class Identity:
    """Who a process is."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def _records(path: str, fields: int) -> Iterator[list[str]]:
    """Lines of a colon-separated file that have enough fields; nothing when there is no such regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return
        text = file.read(_MAX_FILE_BYTES).decode("utf-8", "surrogateescape")
    for line in text.split("\n"):
        record = line.split(":")
        if len(record) >= fields:
            yield record


def _number(text: str) -> int | None:
    # Ten digits at most: int() itself refuses absurdly many, with another error.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _MAX_ID else None


def _group(name: str) -> int:
    for record in _records("/etc/group", 3):
        gid = _number(record[2])
        if gid is not None and record[0] == name:
            return gid
    gid = _number(name)
    if gid is None:
        raise LaunchError(Step.USER, errno.EINVAL, f"unable to find group {name}: no matching entries in group file")
    return gid


def _passwd(user: str) -> tuple[str | None, int, int, str]:
    """Name (None when only a number is known), uid, gid and home directory."""
    wanted = _number(user)
    for record in _records("/etc/passwd", 6):
        uid, gid = _number(record[2]), _number(record[3])
        if uid is not None and gid is not None and (record[0] == user or uid == wanted):
            return record[0], uid, gid, record[5] or "/"
    if wanted is None:
        raise LaunchError(Step.USER, errno.EINVAL, f"unable to find user {user}: no matching entries in passwd file")
    return None, wanted, 0, "/"


def resolve(user: str, additional: list[str]) -> Identity:
    """The identity that Docker's --user and --group-add mean; LaunchError when a name is unknown."""
    wanted, _, group = user.partition(":")
    name, uid, gid, home = _passwd(wanted or "0")
    groups: list[int] = []
    if group:
        gid = _group(group)
    elif name is not None:
        for record in _records("/etc/group", 4):
            number = _number(record[2])
            if number is not None and name in record[3].split(","):
                groups.append(number)
    groups += [_group(extra) for extra in additional]
    return Identity(uid, gid, tuple(dict.fromkeys([gid, *groups])), home)


def names() -> dict[int, str]:
    """User names by number, for process lists."""
    found: dict[int, str] = {}
    for record in _records("/etc/passwd", 3):
        uid = _number(record[2])
        if uid is not None:
            found.setdefault(uid, record[0])
    return found
