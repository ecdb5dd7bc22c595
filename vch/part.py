"""One part of a VCH, the port layer or the personality, as a child process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress

from vch.errors import PartError
from vch.logs import PartLog
from vch.passwords import environment, filled_pipe, password_arguments

_READY = b"ready\n"
# How a part begins its last line, when it knows why it ends.
_REASON = "Error: "
# More than a port layer takes at most, with calls to end and clones to remove: what it leaves when it is killed stays
# until the next `vch up`.
_GRACE_SECONDS = 30.0
# The kernel ends the child when the supervisor is killed, so none is left behind. Python code between fork and exec
# (preexec_fn) could do that as well, but is not safe next to other threads, and gRPC has some.
_END_WITH_PARENT = ("setpriv", "--pdeathsig", "TERM", "--")


class Part:
    """A module run as `python -P -m MODULE ARGUMENTS --ready-fd N`.

    The module writes "ready" and a newline to that descriptor when it serves. A `password` reaches it by a pipe,
    `--password-fd N`: arguments and environment could be read by others, or be inherited.
    """

    def __init__(self, name: str, arguments: list[str], log: PartLog, password: str | None = None) -> None:
        self.name = name
        self._password = password
        self._command = [sys.executable, "-P", "-m", f"{name}.main", *arguments]
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """0 before the start."""
        return self._process.pid if self._process else 0

    async def start(self, timeout_s: float) -> None:
        """Returns when it serves. Raises PartError, and leaves no process, when it ends or takes too long."""
        read, write = os.pipe()
        # The pipe reader owns its end from here on; the other end is the child's alone.
        with os.fdopen(read, "rb") as readable:
            try:
                self._process = await self._spawn(write)
            finally:
                os.close(write)
            self._reader = asyncio.create_task(self._copy_log(self._process))
            try:
                async with asyncio.timeout(timeout_s):
                    word = await _read_line(readable)
            except TimeoutError:
                await self.stop()
                raise self._failure(f"did not get ready in {timeout_s:g} s") from None
            except BaseException:
                await self.stop()
                raise
        if word != _READY:
            raise self._failure(f"{await self._how_it_ended()} before it served")

    async def watch(self) -> None:
        """Raises PartError when it ends by itself; otherwise lasts until cancelled."""
        raise self._failure(_ending(await self.ended()))

    async def stop(self) -> None:
        """Ends it: politely, then not. Returns when it is gone."""
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_GRACE_SECONDS):
                await process.wait()
        except TimeoutError:
            self._log.say(f"{self.name} did not end in {_GRACE_SECONDS:g} s and is killed")
            with suppress(ProcessLookupError):
                process.kill()
        await self.ended()

    async def ended(self) -> int:
        """Its exit code, negative for a signal, after the last line of its log is written."""
        assert self._process is not None
        code = await self._process.wait()
        if self._reader:
            await asyncio.wait({self._reader})
        return code

    async def _how_it_ended(self) -> str:
        """For a part that closed its end of the pipe, which it does by ending."""
        try:
            async with asyncio.timeout(_GRACE_SECONDS):
                return _ending(await self.ended())
        except TimeoutError:
            await self.stop()
            return "gave up"

    async def _spawn(self, ready_fd: int) -> asyncio.subprocess.Process:
        with filled_pipe(self._password) as password_fds:
            return await asyncio.create_subprocess_exec(
                *_END_WITH_PARENT,
                *self._command,
                "--ready-fd",
                str(ready_fd),
                *password_arguments(password_fds),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(ready_fd, *password_fds),
                start_new_session=True,
                umask=0o077,
                cwd="/",
                env=environment(),
            )

    async def _copy_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:
                self._log.write("(a line too long to keep)")
                continue
            if not line:
                return
            self._log.write(line.decode(errors="replace").rstrip("\r\n"))

    def _failure(self, what: str) -> PartError:
        said = list(self._log.last)
        if said and said[-1].startswith(_REASON):
            return PartError(f"{said[-1].removeprefix(_REASON)}\n({self.name} {what}; its log is {self._log.path})")
        last = "".join(f"\n  {line}" for line in said)
        return PartError(f"{self.name} {what}; its log is {self._log.path}{last and ' and ends with:'}{last}")


def _ending(code: int) -> str:
    return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


async def _read_line(readable: object) -> bytes:
    """What comes from a pipe up to its first line end or its end."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), readable)
    try:
        return await reader.readline()
    finally:
        transport.close()
