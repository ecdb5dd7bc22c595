"""Launching a process: from a specification to execve, and what the child does in between.

The child is a fork of the agent. It reports what fails through a pipe that a successful execve closes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import struct
import termios
from collections.abc import Callable
from dataclasses import dataclass

from tether import linux, users
from tether.launch import LaunchError, Step
from tether.v1 import tether_pb2

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


def launch(spec: tether_pb2.ProcessSpec, enter: Callable[[], None], hostname: str) -> Launched:
    """Forks, lets the child `enter` its namespaces, and executes; LaunchError when any step fails.

    With a terminal the child opens it inside the container and sends it back, since that is where its devpts is.
    """
    report_read, report_write = os.pipe()
    if spec.terminal:
        here, there = _socket_pair()
        child_fds: tuple[int, ...] = (there,)
        parent_fds: list[int] = [here]
    else:
        stdin_read, stdin_write = os.pipe() if spec.stdin else (os.open("/dev/null", os.O_RDONLY), -1)
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        child_fds = (stdin_read, out_write, err_write)
        parent_fds = [stdin_write, out_read, err_read]
    pid = os.fork()
    if pid == 0:
        _child(spec, enter, hostname, child_fds, report_write)
    for descriptor in (*child_fds, report_write):
        os.close(descriptor)
    try:
        stdio = _receive_terminal(parent_fds[0]) if spec.terminal else _pipes(parent_fds)
        _await_exec(report_read)
    except LaunchError:
        if not spec.terminal:
            _close(parent_fds)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(report_read)
    return Launched(pid, stdio)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)


def _pipes(descriptors: list[int]) -> Stdio:
    stdin, stdout, stderr = descriptors
    for descriptor in (stdout, stderr):
        fcntl.fcntl(descriptor, 1031, 256 * 1024)  # F_SETPIPE_SZ: fewer wake-ups
        os.set_blocking(descriptor, False)
    if stdin >= 0:
        os.set_blocking(stdin, False)
    return Stdio(stdin if stdin >= 0 else None, stdout, stderr)


def _socket_pair() -> tuple[int, int]:
    import socket

    here, there = socket.socketpair()
    return here.detach(), there.detach()


def _receive_terminal(here: int) -> Stdio:
    import socket

    with socket.socket(fileno=here) as channel:
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    if not descriptors:
        # The child failed before it had a terminal; its report says why.
        return Stdio(None, os.open("/dev/null", os.O_RDONLY), None)
    os.set_blocking(descriptors[0], False)
    return Stdio(os.dup(descriptors[0]), descriptors[0], None)


def _await_exec(report: int) -> None:
    data = os.read(report, 4096)
    if data:
        raise LaunchError.decode(data)


# --- in the child


def _child(
    spec: tether_pb2.ProcessSpec, enter: Callable[[], None], hostname: str, descriptors: tuple[int, ...], report: int
) -> None:
    """Never returns: it becomes the program or reports why not."""
    try:
        _reset_signals()
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


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _open_terminal(size: tether_pb2.WindowSize, channel: int) -> None:
    """Opens a terminal of the container's own devpts, makes it the controlling one, hands the master to the agent."""
    import socket

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
    _set_limits(spec)
    _drop_privileges(spec, identity)
    _enter_directory(spec.working_dir or "/")
    _execute(list(spec.args), environment)


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
        kind = getattr(resource, f"RLIMIT_{limit.name.upper()}", None)
        if kind is None:
            raise LaunchError(Step.SETUP, errno.EINVAL, f"unknown resource limit {limit.name!r}")
        try:
            resource.setrlimit(kind, (limit.soft, limit.hard))
        except (OSError, ValueError) as error:
            raise LaunchError(Step.SETUP, errno.EPERM, f"setting limit {limit.name}: {error}") from error


def _drop_privileges(spec: tether_pb2.ProcessSpec, identity: users.Identity) -> None:
    wanted = set(spec.capabilities)
    with open("/proc/sys/kernel/cap_last_cap") as last:
        known = _CAPABILITIES[: int(last.read()) + 1]
    mask = sum(1 << number for number, name in enumerate(known) if name in wanted)
    for number, name in enumerate(known):
        if name not in wanted:
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
