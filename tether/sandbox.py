"""Where the container's processes live: namespaces, limits and file system of the one container of this VM."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tether import linux, rootfs, usage, users
from tether.cgroup import Group
from tether.launch import LaunchError, Step
from tether.process import Launched, forked, launch
from tether.stem import NAMESPACES, Stem, fits, grow
from tether.v1 import tether_pb2

_KINDS = (
    ("ipc", linux.CLONE_NEWIPC),
    ("uts", linux.CLONE_NEWUTS),
    ("cgroup", linux.CLONE_NEWCGROUP),
    ("mnt", linux.CLONE_NEWNS),
)
_NOT_RUNNING = "the container is not running"


class Sandbox:
    """`start` may be called once until `reset`, `execute` as long as the first process lives."""

    def __init__(self, group: Group, mount_disks: Callable[[tether_pb2.StartRequest], None]) -> None:
        self._group = group
        self._mount_disks = mount_disks
        self._stem: Stem | None = None

    def start(self, request: tether_pb2.StartRequest) -> Launched:
        """Personalises the VM and launches the first process, process 1 of a PID namespace of its own."""
        linux.reseed(request.entropy)
        if request.wall_clock_unix_ns:
            time.clock_settime_ns(time.CLOCK_REALTIME, request.wall_clock_unix_ns)
        socket.sethostname(request.hostname)
        rootfs.write_machine_id(request.machine_id)
        _loopback_up()
        rootfs.assemble(request, self._mount_disks)
        try:
            self._group.create()
            self._group.limit(request)
        except OSError as error:
            raise LaunchError(Step.SETUP, error.errno or 0, f"setting the container's limits: {error}") from error
        stem, self._stem = self._stem, None
        if stem is not None and fits(request):
            return launch(request.process, partial(stem.begin, request))
        if stem is not None:
            stem.drop()
        spec = rootfs.first_process(request)
        with _new_pid_namespace():
            return launch(spec, forked(spec, partial(_enter_new, self._group, request), request.hostname))

    def execute(self, spec: tether_pb2.ProcessSpec, init: int, hostname: str) -> Launched:
        """Launches a further process in the namespaces of the first."""
        try:
            target = os.open(f"/proc/{init}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise LaunchError(Step.SETUP, errno.ESRCH, _NOT_RUNNING) from error
        own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            linux.setns(target, linux.CLONE_NEWPID)
            return launch(spec, forked(spec, partial(_join, self._group, init), hostname))
        finally:
            linux.setns(own, linux.CLONE_NEWPID)
            os.close(target)
            os.close(own)

    def oom_killed(self) -> bool:
        """Whether the kernel has killed a process of the container for want of memory."""
        return self._group.oom_kills() > 0

    def signal_all(self, number: int) -> None:
        """Sends a signal to every process of the container."""
        if number == signal.SIGKILL:
            self._group.kill()
            return
        for pid in self._group.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def processes(self) -> list[tether_pb2.Process]:
        """What runs in the container."""
        return usage.processes(self._group, self._user_names())

    def stats(self) -> tether_pb2.StatsResponse:
        """What the container uses."""
        return usage.stats(self._group)

    def _user_names(self) -> dict[int, str]:
        """User names by number, from the container's own file; read in a child that cannot leave its root."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.chroot(rootfs.ROOT)
                os.write(write, repr(dict(list(users.names().items())[:200])).encode()[:60000])
            finally:
                os._exit(0)
        os.close(write)
        with open(read, "rb") as answer:
            text = answer.read()
        os.waitpid(pid, 0)
        return _parse_names(text)

    def dispose(self) -> None:
        """Kills what is left of the container, and unmounts its disks when nothing uses them any more."""
        self._end_all()
        rootfs.disassemble()

    def reset(self) -> None:
        """Undoes a start, and prepares the next one as far as that goes. Raises OSError when a disk stays in use."""
        if self._stem is not None:
            self._stem.drop()
        self._end_all()
        rootfs.forget()
        self._group.remove()
        self._group.create()
        with _new_pid_namespace():
            self._stem = grow(self._group)

    def _end_all(self) -> None:
        with suppress(OSError):  # there is no group if nothing was ever started
            self._group.kill()
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)


@contextmanager
def _new_pid_namespace() -> Iterator[None]:
    """The next child is process 1 of a PID namespace of its own."""
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        linux.unshare(linux.CLONE_NEWPID)
        yield
    finally:
        linux.setns(own, linux.CLONE_NEWPID)
        os.close(own)


def _parse_names(text: bytes) -> dict[int, str]:
    from ast import literal_eval

    try:
        return dict(literal_eval(text.decode()))
    except (ValueError, SyntaxError):
        return {}


def _enter_new(group: Group, request: tether_pb2.StartRequest) -> None:
    group.join()
    linux.unshare(NAMESPACES)
    if request.domainname:
        Path("/proc/sys/kernel/domainname").write_text(request.domainname)
    rootfs.enter(request)


def _join(group: Group, init: int) -> None:
    """Joins the namespaces of the first process, its root included."""
    group.join()
    descriptors = []
    for name, kind in _KINDS:
        try:
            descriptors.append((os.open(f"/proc/{init}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), kind))
        except FileNotFoundError as error:
            raise LaunchError(Step.SETUP, errno.ESRCH, _NOT_RUNNING) from error
    for descriptor, kind in descriptors:
        linux.setns(descriptor, kind)


def _loopback_up() -> None:
    """Sets the interface "lo" up (SIOCGIFFLAGS, SIOCSIFFLAGS with IFF_UP)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(control, 0x8913, request), 16)
        fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", flags | 1))
