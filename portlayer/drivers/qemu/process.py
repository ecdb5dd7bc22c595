"""QEMU's process: started as nobody's child, found again by its machine's directory, waited for and ended.

`setsid --fork` hands the new QEMU to the host's init, so it outlives the port layer, and there is one way to watch it
whoever started it: a pidfd. A pid alone is never trusted: the process must be a guest's and work in the directory,
under whatever name that has by then. The pidfd is taken before that is checked, so what is killed later is what was
checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import IO

from portlayer.drivers.qemu import command
from portlayer.errors import DriverError

_GRACE_SECONDS = 5.0
_KILL_SECONDS = 30.0
_File = int | IO[bytes]


async def spawn(
    argv: Sequence[str], directory: Path, log: Path, fds: Sequence[int], *, stdout: int | None = None
) -> None:
    """Starts `argv` in `directory`, in a session of its own, with its messages going to `log`.

    Returns when it is forked: whether it lives on shows on its sockets.
    """
    with log.open("ab") as messages:
        await _fork(argv, directory, log, fds, stdin=subprocess.DEVNULL, stdout=stdout or messages, stderr=messages)


@contextlib.asynccontextmanager
async def keeper(directory: Path, name: str, limit_bytes: int) -> AsyncIterator[int]:
    """A pipe whose first `limit_bytes` a process of its own keeps in the file `name`; all further writing fails.

    So the file is bounded without anyone having to look at it. The keeper ends with the pipe's last writer.
    """
    read, write = os.pipe()
    try:
        with os.fdopen(read, "rb", buffering=0) as output, (directory / name).open("wb") as kept:
            keep = ("stdbuf", "-o0", "head", "-c", str(limit_bytes))  # not dd, whose limit counts short reads as whole
            await _fork(keep, directory, directory / name, (), stdin=output, stdout=kept, stderr=subprocess.DEVNULL)
        yield write
    finally:
        os.close(write)


async def _fork(
    argv: Sequence[str], directory: Path, log: Path, fds: Sequence[int], *, stdin: _File, stdout: _File, stderr: _File
) -> None:
    process = await asyncio.create_subprocess_exec(
        *("setsid", "--fork"), *argv, cwd=directory, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=fds
    )
    if (status := await process.wait()) != 0:
        raise DriverError(f"{argv[0]} could not be started (setsid ended with {status}), see {log}")


@contextlib.contextmanager
def running(directory: Path) -> Iterator[int | None]:
    """A pidfd of the QEMU that works in `directory`, or None when there is none."""
    pidfd = _find(directory)
    try:
        yield pidfd
    finally:
        if pidfd is not None:
            os.close(pidfd)


def is_running(directory: Path) -> bool:
    with running(directory) as pidfd:
        return pidfd is not None


def set_niceness(directory: Path, niceness: int) -> None:
    """How far the QEMU in `directory` steps back for others (setpriority(2)); as far as this user may say so."""
    with running(directory) as pidfd, contextlib.suppress(OSError):
        if pidfd is not None:
            pid = int((directory / command.PID_FILE).read_text())
            for task in os.listdir(f"/proc/{pid}/task"):
                os.setpriority(os.PRIO_PROCESS, int(task), niceness)


def private_bytes(directory: Path) -> int:
    """Memory that the QEMU in `directory` shares with nobody; 0 when there is none."""
    with running(directory) as pidfd, contextlib.suppress(OSError):
        if pidfd is not None:
            pid = int((directory / command.PID_FILE).read_text())
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Anonymous:"):
                    return int(line.split()[1]) << 10
    return 0


async def end_all_below(root: Path) -> None:
    """Ends every process that works below `root`: what nobody has a use for after a crash."""
    for pidfd in await asyncio.to_thread(_working_below, root):
        try:
            await end(pidfd)
        finally:
            os.close(pidfd)


def _working_below(root: Path) -> list[int]:
    root = root.resolve()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(int(process.name))
            if _works_below(process, root):
                found.append(pidfd)
            else:
                os.close(pidfd)
    return found


def _works_below(process: Path, root: Path) -> bool:
    try:
        return (process / "cwd").readlink().is_relative_to(root)
    except OSError:
        return False


def command_line(directory: Path) -> list[str] | None:
    """How the QEMU that works in `directory` was started, or None when there is none."""
    with running(directory) as pidfd:
        if pidfd is None:
            return None
        words = _words(int((directory / command.PID_FILE).read_text()))
        return None if _has_ended(pidfd) else words


async def wait_ended(pidfd: int) -> None:
    """Returns when the process is gone; works for any process, child or not."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    own = os.dup(pidfd)  # asyncio knows one reader for each descriptor, and several may wait
    loop.add_reader(own, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(own)
        os.close(own)


async def end(pidfd: int) -> None:
    """Asks the process to end, kills it when it does not, and waits until it is gone."""
    for number, seconds in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await wait_ended(pidfd)
                return
    raise DriverError("QEMU does not die: the host keeps it in an uninterruptible wait")


def kill(directory: Path) -> int | None:
    """Kills the QEMU that works in `directory`, without a wait: a pidfd of it for `wait_gone`, None when there is none.

    Nothing of what its guest has written is lost by that: it is with the host's kernel.
    """
    pidfd = _find(directory)
    if pidfd is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    return pidfd


async def wait_gone(pidfd: int) -> None:
    """Returns when a process that was killed is gone, and closes the pidfd. Raises DriverError when it does not die."""
    try:
        async with asyncio.timeout(_KILL_SECONDS):
            await wait_ended(pidfd)
    except TimeoutError:
        raise DriverError("QEMU does not die: the host keeps it in an uninterruptible wait") from None
    finally:
        os.close(pidfd)


def _find(directory: Path) -> int | None:
    try:
        pid = int((directory / command.PID_FILE).read_text())
        pidfd = os.pidfd_open(pid)
    except (OSError, ValueError, OverflowError):
        return None
    if _is_guest(pid, directory) and not _has_ended(pidfd):
        return pidfd
    os.close(pidfd)
    return None


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()  # select() takes no descriptor above 1023
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _is_guest(pid: int, directory: Path) -> bool:
    named = any(a == "-name" and b.startswith(command.GUEST) for a, b in itertools.pairwise(_words(pid)))
    try:
        return named and os.path.samestat(os.stat(f"/proc/{pid}/cwd"), directory.stat())
    except OSError:
        return False


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="surrogateescape").split("\0")
    except OSError:
        return []
