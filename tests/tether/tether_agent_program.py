"""The agent as a program on this machine: process 1 of a PID namespace, with all that is its VM's made private to it.

Everything is the product's own but three things: what a start finds on its "disks" is this machine's root file system
below an empty tmpfs, to power off means to end, and the hypervisor is whoever listens at SOCKET.hypervisor, who may be
slow on a busy machine. Ends at SIGTERM, with all that it started.

It forks an agent for each line of its input, and says its process id and, when it serves, "listening"; or says how one
has ended:

    {"start": SOCKET, "changes": {"etc/shadow": "text of a file", "etc/hosts": {"link": "/elsewhere"}},
     "hand_over_s": null or how long the agent lets a host take output after the end}
    {"wait": PID}
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from tether import guestinfo, linux, rootfs, service, vsock
from tether.cgroup import ROOT as CGROUPS
from tether.cgroup import Group
from tether.loop import Loop
from tether.sandbox import Sandbox
from tether.v1 import tether_pb2 as pb

_CLONE_NEWNET, _PR_SET_CHILD_SUBREAPER = 0x40000000, 36
_HYPERVISOR_PATIENCE_S = 60.0


def _mount_private(source: str, target: str) -> None:
    Path(target).mkdir(parents=True, exist_ok=True)
    linux.mount(source, target, source)


def _cover_etc() -> None:
    """What an agent writes in /etc, which is its VM's machine-id, neither this machine nor other agents see."""
    for name in ("upper", "work"):
        Path("/run/etc", name).mkdir(parents=True)
    linux.mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work")


def supervise(path: str, changes: dict[str, object]) -> int:
    """Makes the namespaces and a control group, waits for the agent's end, removes the group."""
    # What a shell runs in the background ignores some signals; the kernel starts process 1 of a VM without that. Python
    # itself ignores two, there as here.
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(8)
    _mount_private("tmpfs", "/run")
    _cover_etc()
    _mount_private("cgroup2", "/run/groups")
    # A name of its own, whatever a test run that was killed has left there.
    group = Path(tempfile.mkdtemp(prefix="vch-test-", dir="/run/groups"))
    (group / "agent").mkdir()
    linux.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: (group / "cgroup.kill").write_text("1"))
    pid = os.fork()
    if pid == 0:
        _enter(path, group, listener, changes)
    status = os.waitpid(pid, 0)[1]
    with suppress(ChildProcessError):
        while True:  # the agent itself, if it was killed: when it can be collected, all that it started is gone
            os.waitpid(-1, 0)
    # There is nothing left to end, and soon no group to do it by.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for name in ("container", "agent", ""):
        if (group / name).exists():
            (group / name).rmdir()
    return os.waitstatus_to_exitcode(status)


def _enter(path: str, group: Path, listener: socket.socket, changes: dict[str, object]) -> NoReturn:
    """Has the agent made process 1; waits for it and ends like it."""
    (group / "cgroup.procs").write_text("0")
    linux.unshare(linux.CLONE_NEWCGROUP | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC | _CLONE_NEWNET)
    (group / "agent" / "cgroup.procs").write_text("0")
    linux.unshare(linux.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        serve(path, listener, changes)
        os._exit(0)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 255)


def _write(changes: dict[str, object]) -> None:
    """Lays files ("text", or {"text": text, "mode": mode}), links and directories (null) into the image."""
    for name, content in changes.items():
        path = Path(rootfs.WRITABLE, "upper", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict) and "link" in content:
            path.symlink_to(content["link"])
        elif isinstance(content, dict):
            path.write_text(content["text"])
            path.chmod(content["mode"])
        elif content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.write_text(str(content), encoding="latin-1")


def serve(path: str, listener: socket.socket, changes: dict[str, object]) -> None:
    """What tether's own main does."""
    linux.mount("proc", "/proc", "proc")
    linux.mount("", "/", "", linux.MS_REC | linux.MS_SHARED)
    # In a network namespace of its own; whether it may be written is decided by who mounts it first.
    linux.mount("sysfs", "/sys", "sysfs")
    _mount_private("cgroup2", str(CGROUPS))
    loop = Loop()

    def mount_disks(_: pb.StartRequest) -> None:
        linux.mount("/", rootfs.IMAGE, "", linux.MS_BIND)
        linux.mount("tmpfs", rootfs.WRITABLE, "tmpfs")
        _write(changes)

    sandbox = Sandbox(Group(), mount_disks)

    def power_off() -> None:
        sandbox.dispose()
        left = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {rootfs.BASE}/" in line]
        if left:
            sys.exit(f"still mounted: {left}")
        loop.stop()

    def hypervisor() -> guestinfo.Hypervisor:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(f"{path}.hypervisor")
        except OSError:
            connection.close()
            raise
        return guestinfo.connect(lambda: connection)

    agent = service.Service(loop, sandbox, "test", power_off, hypervisor)
    vsock.serve(loop, listener, agent.attach, lambda _: True)
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    loop.run()


def start(path: str, changes: dict[str, object], hand_over_s: float | None) -> None:
    """Forks an agent, which says its process id itself: nothing else that it says comes before that."""
    if os.fork() == 0:
        guestinfo._PATIENCE_S = _HYPERVISOR_PATIENCE_S
        if hand_over_s is not None:
            service._HAND_OVER_S = hand_over_s
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), sys.stdin.fileno())
        say(os.getpid())
        sys.exit(supervise(path, changes))


def say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def main() -> None:
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if "wait" in request:
            say(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]))
        else:
            start(request["start"], request["changes"], request["hand_over_s"])


if __name__ == "__main__":
    main()
