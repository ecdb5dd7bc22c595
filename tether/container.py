"""The processes that run, with their streams: the agent's state, and what happens to it.

A process is known by the id that the host chose ("init" is the container's first). It stays known until the host has
recorded its exit.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from tether.journal import MAX_CHUNK, Journal
from tether.loop import Loop
from tether.process import Launched, Stdio
from tether.v1 import tether_pb2

STDOUT, STDERR = 1, 2
_MAX_INPUT = 256 * 1024
# So long after a process's end its descendants may still write to its output, as with Docker.
_LINGER_S = 2.0


@dataclass
class Process:
    """One process, running or ended."""

    id: str
    pid: int
    stdio: Stdio
    terminal: bool
    response: tether_pb2.StartResponse
    journal: Journal = field(default_factory=Journal)
    open_outputs: set[int] = field(default_factory=set)
    # Outputs to be closed after so many more bytes.
    remaining: dict[int, int] = field(default_factory=dict)
    input: bytearray = field(default_factory=bytearray)
    input_offset: int = 0
    input_closed: bool = False
    status: int | None = None
    ended_ns: int = 0
    oom_killed: bool = False

    @property
    def finished(self) -> bool:
        """Whether it has ended and all of its output is in the journal."""
        return self.status is not None and not self.open_outputs

    def exited(self) -> tether_pb2.Exited:
        """The report for the host."""
        code = os.waitstatus_to_exitcode(self.status or 0)
        return tether_pb2.Exited(
            exit_code=code if code >= 0 else 128 - code,
            signal=max(0, -code),
            oom_killed=self.oom_killed,
            time_unix_ns=self.ended_ns,
            end_offset=self.journal.end,
        )


def _ignore(_process: Process) -> None:
    """Nobody listens yet."""


class Streams:
    """Moves bytes between processes and their journals and inputs."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.on_output: Callable[[Process], None] = _ignore
        self.on_input_taken: Callable[[Process], None] = _ignore

    def adopt(self, process_id: str, launched: Launched, spec: tether_pb2.ProcessSpec) -> Process:
        """Takes a launched process's streams over."""
        response = tether_pb2.StartResponse(pid=launched.pid, started_unix_ns=time.time_ns())
        process = Process(process_id, launched.pid, launched.stdio, spec.terminal, response)
        for descriptor in (launched.stdio.stdout, launched.stdio.stderr):
            if descriptor is not None:
                process.open_outputs.add(descriptor)
        process.input_closed = launched.stdio.stdin is None
        self.resume(process)
        return process

    def resume(self, process: Process) -> None:
        """Reads on, after the journal has room again."""
        if not process.journal.full:
            for descriptor in process.open_outputs:
                self._loop.watch(descriptor, partial(self._read, process, descriptor))

    def _read(self, process: Process, descriptor: int) -> None:
        try:
            data = os.read(descriptor, MAX_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:  # a terminal without a reader at its other end
                raise
            data = b""
        if data:
            stream = STDERR if descriptor == process.stdio.stderr else STDOUT
            process.journal.append(stream, data, time.time_ns())
            self._count_down(process, descriptor, len(data))
            if process.journal.full:
                for output in process.open_outputs:
                    self._loop.forget(output)
        else:
            self._close_output(process, descriptor)
        self.on_output(process)

    def _count_down(self, process: Process, descriptor: int, size: int) -> None:
        if descriptor in process.remaining:
            process.remaining[descriptor] -= size
            if process.remaining[descriptor] <= 0:
                self._close_output(process, descriptor)

    def _close_output(self, process: Process, descriptor: int) -> None:
        self._loop.forget(descriptor)
        process.remaining.pop(descriptor, None)
        process.open_outputs.discard(descriptor)
        os.close(descriptor)

    def ended(self, process: Process, status: int) -> None:
        """The process is gone; what it wrote is still read. A descendant that kept the pipe does not hold that up."""
        process.status, process.ended_ns = status, time.time_ns()
        self.close_input(process)
        self._loop.call_later(_LINGER_S, partial(self._cut_off, process))
        self.on_output(process)
        self.on_input_taken(process)

    def _cut_off(self, process: Process) -> None:
        """Ends outputs that somebody keeps open: what is in them by now is still read, once the journal has room."""
        for descriptor in list(process.open_outputs):
            process.remaining[descriptor] = _unread(descriptor)
            self._count_down(process, descriptor, 0)
        self.on_output(process)

    def discard(self, process: Process) -> None:
        """Nobody wants anything of it any more."""
        self.close_input(process)
        for descriptor in list(process.open_outputs):
            self._close_output(process, descriptor)

    def write(self, process: Process, data: bytes) -> bool:
        """Accepts input; False when the buffer is full."""
        if len(process.input) >= _MAX_INPUT:
            return False
        process.input += data
        process.input_offset += len(data)
        self._pump_input(process)
        return True

    def end_input(self, process: Process) -> None:
        """No more input comes; what was accepted is still written."""
        if not process.input_closed:
            process.input_closed = True
            if process.terminal:
                process.input += b"\x04"
            self._pump_input(process)

    def close_input(self, process: Process) -> None:
        """Drops the input's descriptor."""
        process.input_closed = True
        process.input.clear()
        if process.stdio.stdin is not None:
            self._loop.forget(process.stdio.stdin)
            os.close(process.stdio.stdin)
            process.stdio.stdin = None

    def _pump_input(self, process: Process) -> None:
        descriptor = process.stdio.stdin
        if descriptor is None:
            return
        try:
            while process.input:
                del process.input[: os.write(descriptor, process.input[:65536])]
        except BlockingIOError:
            self._loop.watch(descriptor, lambda: self._pump_input(process), select.EPOLLOUT)
            return
        except OSError:
            self.close_input(process)  # nobody reads any more
        else:
            self._loop.forget(descriptor)
            if process.input_closed and not process.terminal:
                self.close_input(process)
        self.on_input_taken(process)


def _unread(descriptor: int) -> int:
    """How many bytes can be read at once."""
    (size,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))
    return int(size)


def kill(process: Process, number: int) -> bool:
    """Sends a signal; False when the process has ended."""
    if process.status is not None:
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True
