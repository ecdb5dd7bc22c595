"""Launching a process: from a specification to execve, and what the child does in between.

The child is a fork of the agent. It reports what fails through a pipe that a successful execve closes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import select
import signal
import socket
import stat
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from tether import linux, users
from tether.launch import LaunchError, Step
from tether.v1 import tether_pb2

# Those that the resource module does not name.
_LIMITS_WITHOUT_NAME = {"locks": 10}
_PIPE_BYTES = 256 * 1024
# From fork to exec; emulated machines with a cold cache take seconds.
_PATIENCE_S = 60
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CAPABILITIES = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
]


@dataclass
class Stdio:
    """The agent's ends of a process's standard streams; None where there is none."""

    stdin: int | None
    stdout: int
    stderr: int | None


@dataclass
class Launched:
    """A process that runs."""

    pid: int
    stdio: Stdio


# Has a child become the program: given its ends of the streams, and of the pipe for its report, returns its pid.
Begin = Callable[[list[int], int], int]


def launch(spec: tether_pb2.ProcessSpec, begin: Begin) -> Launched:
    """Makes the streams and has a child begin; LaunchError or OSError when any step up to its execve fails.

    With a terminal the child opens it inside the container and sends it back, since that is where its devpts is.
    """
    ours, theirs = _socket_pair() if spec.terminal else _pipes(spec.stdin)
    report, their_report = os.pipe()
    try:
        pid = begin(theirs, their_report)
    except OSError:
        _close([*ours, *theirs, report, their_report])
        raise
    _close([*theirs, their_report])
    try:
        _await_exec(report)
        return Launched(pid, _receive_terminal(ours[0]) if spec.terminal else _stdio(ours))
    except (LaunchError, OSError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        _close(ours)
        raise
    finally:
        os.close(report)


def forked(spec: tether_pb2.ProcessSpec, enter: Callable[[], None], hostname: str) -> Begin:
    """A fork of the agent, which enters its namespaces by `enter`."""

    def begin(descriptors: list[int], report: int) -> int:
        pid = os.fork()
        if pid == 0:
            let_go()
            become(spec, enter, hostname, descriptors, report)
        return pid

    return begin


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)


def _pipes(stdin: bool) -> tuple[list[int], list[int]]:
    """Our ends of stdin, stdout and stderr (-1 for none), and the child's."""
    opened: list[int] = []
    try:
        opened += reversed(os.pipe()) if stdin else (-1, os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        opened += os.pipe()
        opened += os.pipe()
    except OSError:
        _close(opened)
        raise
    return opened[::2], opened[1::2]


def _stdio(descriptors: list[int]) -> Stdio:
    stdin, stdout, stderr = descriptors
    for descriptor in (stdout, stderr):
        with suppress(OSError):  # fewer wake-ups; not vital
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        os.set_blocking(descriptor, False)
    if stdin >= 0:
        os.set_blocking(stdin, False)
    return Stdio(stdin if stdin >= 0 else None, stdout, stderr)


def _socket_pair() -> tuple[list[int], list[int]]:
    here, there = socket.socketpair()
    return [here.detach()], [there.detach()]


def _receive_terminal(here: int) -> Stdio:
    """The terminal's descriptor, which the child sent before it became the program."""
    with socket.socket(fileno=os.dup(here)) as channel:
        channel.setblocking(False)
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    if not descriptors:
        raise LaunchError(Step.SETUP, 0, "the process was killed before it had its terminal")
    try:
        stdin = os.dup(descriptors[0])
    except OSError:
        os.close(descriptors[0])
        raise
    os.close(here)
    os.set_blocking(stdin, False)
    return Stdio(stdin, descriptors[0], None)


def _await_exec(report: int) -> None:
    """Returns when the child has executed its program (or is dead, which shows as its end)."""
    poll = select.poll()
    poll.register(report, select.POLLIN)
    if not poll.poll(_PATIENCE_S * 1000):
        # The agent does nothing else meanwhile: no process of the container may hold it up by stopping the child.
        raise LaunchError(Step.SETUP, errno.ETIMEDOUT, f"it was not launched within {_PATIENCE_S} s")
    if data := os.read(report, 4096):
        raise LaunchError.decode(data)


# --- in the child


def let_go() -> None:
    """In a child of the agent that is to become something else.

    Until it is the program, it holds what is the agent's: processes of the container must not reach into it.
    """
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def become(
    spec: tether_pb2.ProcessSpec, enter: Callable[[], None], hostname: str, descriptors: list[int], report: int
) -> NoReturn:
    """Becomes the program or reports why not."""
    try:
        _guard(enter)
        os.setsid()
        if spec.terminal:
            _guard(lambda: _open_terminal(spec.window_size, descriptors[0]))
        else:
            for target, descriptor in enumerate(descriptors):
                os.dup2(descriptor, target)
        _become(spec, hostname)
    except LaunchError as error:
        os.write(report, error.encode())
    except BaseException as error:  # whatever it is, the parent must hear of it
        os.write(report, LaunchError(Step.SETUP, 0, f"{type(error).__name__}: {error}").encode())
    finally:
        os._exit(128)


def _guard(step: Callable[[], None]) -> None:
    try:
        step()
    except OSError as error:
        raise LaunchError(Step.SETUP, error.errno or 0, f"preparing the container: {error}") from error


def _open_terminal(size: tether_pb2.WindowSize, channel: int) -> None:
    """Opens a terminal of the container's own devpts, makes it the controlling one, hands the master to the agent."""
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, termios.TIOCSPTLCK if hasattr(termios, "TIOCSPTLCK") else 0x40045431, struct.pack("i", 0))
    number = struct.unpack("I", fcntl.ioctl(master, 0x80045430, bytes(4)))[0]  # TIOCGPTN
    slave = os.open(f"/dev/pts/{number}", os.O_RDWR)
    if size.rows and size.columns:
        resize(master, size.rows, size.columns)
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    with socket.socket(fileno=channel) as parent:
        socket.send_fds(parent, [b"t"], [master])
    for target in range(3):
        os.dup2(slave, target)


def resize(terminal: int, rows: int, columns: int) -> None:
    """Sets a terminal's size in characters."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows & 0xFFFF, columns & 0xFFFF, 0, 0))


def _become(spec: tether_pb2.ProcessSpec, hostname: str) -> None:
    identity = users.resolve(spec.user, list(spec.additional_groups))
    environment = _environment(spec, identity, hostname)
    _own_streams(identity.uid)
    _set_limits(spec)
    _drop_privileges(spec, identity)
    _enter_directory(spec.working_dir or "/")
    _execute(list(spec.args), environment)


def _own_streams(uid: int) -> None:
    """Makes pipes and terminal the user's, who may then open them again as /dev/stdout and the like."""
    for descriptor in range(3):
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode) or os.isatty(descriptor):
            os.fchown(descriptor, uid, -1)


def _environment(spec: tether_pb2.ProcessSpec, identity: users.Identity, hostname: str) -> dict[str, str]:
    given = dict(entry.partition("=")[::2] for entry in spec.env)
    defaults = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if spec.terminal:
        defaults["TERM"] = "xterm"
    return {**defaults, **given, "HOME": given.get("HOME") or identity.home}


def _set_limits(spec: tether_pb2.ProcessSpec) -> None:
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write(str(spec.oom_score_adj))
    for limit in spec.rlimits:
        kind = _LIMITS_WITHOUT_NAME.get(limit.name) or getattr(resource, f"RLIMIT_{limit.name.upper()}", None)
        if kind is None:
            raise LaunchError(Step.SETUP, errno.EINVAL, f"unknown resource limit {limit.name!r}")
        try:
            resource.setrlimit(kind, (limit.soft, limit.hard))
        except (OSError, ValueError) as error:
            raise LaunchError(Step.SETUP, errno.EPERM, f"setting limit {limit.name}: {error}") from error


def _drop_privileges(spec: tether_pb2.ProcessSpec, identity: users.Identity) -> None:
    wanted = set(spec.capabilities)
    with open("/proc/sys/kernel/cap_last_cap") as last:
        count = int(last.read()) + 1
    kept = {number for number, name in enumerate(_CAPABILITIES[:count]) if name in wanted}
    mask = sum(1 << number for number in kept)
    for number in set(range(count)) - kept:  # those too that this list does not know yet
        linux.prctl(linux.PR_CAPBSET_DROP, number)
    os.setgroups(identity.groups)
    linux.prctl(linux.PR_SET_KEEPCAPS, 1)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    effective = mask if identity.uid == 0 else 0
    linux.set_capabilities(effective, effective, 0)
    if spec.no_new_privileges:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)


def _enter_directory(path: str) -> None:
    try:
        os.chdir(path)
    except OSError as error:
        message = f'chdir to cwd ("{path}") set in config.json failed: {_words(error)}'
        raise LaunchError(Step.WORKING_DIR, error.errno or 0, message) from error


def _execute(args: list[str], environment: dict[str, str]) -> None:
    name = args[0]
    program = name if "/" in name else _look_up(name, environment.get("PATH", ""))
    try:
        os.execve(program, args, environment)
    except OSError as error:
        shown = (
            f'exec: "{name}": {_words(error)}' if error.errno != errno.ENOEXEC else f"exec {program}: {_words(error)}"
        )
        if error.errno == errno.EACCES and os.path.isdir(program):
            shown = f'exec: "{name}": is a directory'
        if error.errno == errno.ENOENT and "/" in name:
            shown = f'exec: "{name}": stat {name}: no such file or directory'
        raise LaunchError(Step.EXEC, error.errno or 0, shown) from error


def _look_up(name: str, path: str) -> str:
    for directory in path.split(":"):
        candidate = os.path.join(directory or ".", name)
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK, effective_ids=True):
            return candidate
    raise LaunchError(Step.EXEC, errno.ENOENT, f'exec: "{name}": executable file not found in $PATH')


def _words(error: OSError) -> str:
    """strerror as Go prints it."""
    return (error.strerror or str(error)).lower()
