"""A process that waits to become a container's first: forked, in its namespaces, the kernel's file systems mounted.

All that a start does in the same way for every container is done before there is one. A start that wants it otherwise
(see `fits`) forks a process of its own. The stem's mount namespace is a slave of the agent's: disks that the agent
mounts appear in it.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

from tether import linux, rootfs
from tether.cgroup import Group
from tether.process import become, let_go
from tether.v1 import tether_pb2

NAMESPACES = linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWCGROUP
_READY = b"r"
_PREPARE_S = 60
_LENGTH = struct.Struct("I")
_DESCRIPTORS = 4


def fits(request: tether_pb2.StartRequest) -> bool:
    """Whether what is mounted in the stem is what this container is to find."""
    return not (request.privileged or request.sysctls or request.shm_size_bytes)


class Stem:
    """The agent's hold on the process; its pid is as the agent sees it."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self._control = control

    def begin(self, request: tether_pb2.StartRequest, descriptors: list[int], report: int) -> int:
        """Has it become the program of the request, as a `Begin` of tether.process. Raises OSError when it is gone."""
        data = request.SerializeToString()
        with self._control as control:
            socket.send_fds(control, [_LENGTH.pack(len(data))], [*descriptors, report])
            control.sendall(data)
        return self.pid

    def drop(self) -> None:
        """It is not wanted: it ends by itself. The caller's loop collects it."""
        self._control.close()


def grow(group: Group) -> Stem:
    """Forks a stem and waits until it is ready; the caller has unshared the PID namespace. Raises OSError."""
    here, there = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        _wait(there, partial(_enter, group))
    there.close()
    here.settimeout(_PREPARE_S)
    try:
        if here.recv(1) != _READY:
            raise OSError(0, "the stem could not be prepared")
    except OSError:
        here.close()
        raise
    return Stem(pid, here)


# --- in the child


def _enter(group: Group) -> rootfs.Prepared:
    group.join()
    linux.unshare(NAMESPACES)
    linux.mount("", "/", "", linux.MS_REC | linux.MS_SLAVE)
    return rootfs.prepare()


def _wait(control: socket.socket, enter: Callable[[], rootfs.Prepared]) -> NoReturn:
    try:
        let_go()
        os.dup2(control.fileno(), 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        own = socket.socket(fileno=3)
        prepared = enter()
        own.sendall(_READY)
        begun = _receive(own)
        own.close()
        if begun is not None:
            _become(*begun, prepared)
    finally:
        os._exit(1)


def _receive(control: socket.socket) -> tuple[tether_pb2.StartRequest, list[int]] | None:
    """The request, and the descriptors of the streams and for the report; None when it is not wanted any more."""
    head, descriptors, _, _ = socket.recv_fds(control, _LENGTH.size, _DESCRIPTORS)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    with control.makefile("rb") as stream:
        return tether_pb2.StartRequest.FromString(stream.read(size)), descriptors


def _become(request: tether_pb2.StartRequest, descriptors: list[int], prepared: rootfs.Prepared) -> NoReturn:
    *streams, report = descriptors

    def enter() -> None:
        socket.sethostname(request.hostname)
        if request.domainname:
            Path("/proc/sys/kernel/domainname").write_text(request.domainname)
        rootfs.enter(request, prepared)

    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    become(rootfs.first_process(request), enter, request.hostname, streams, report)
