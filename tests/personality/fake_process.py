"""Scripts instead of programs, and the processes that run them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from portlayer.v1 import interaction_pb2, types_pb2

STDOUT = types_pb2.OUTPUT_STREAM_STDOUT
STDERR = types_pb2.OUTPUT_STREAM_STDERR


@dataclass
class Script:
    """What a program does: waits for its turn, writes, then (echo) gives stdin back, or (forever) awaits a signal."""

    stdout: bytes = b""
    stderr: bytes = b""
    exit_code: int = 0
    turn: asyncio.Semaphore | None = None
    echo: bool = False
    forever: bool = False


class FakeProcess:
    """A running script; any number of readers follow its output from the beginning or from now."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.chunks: list[interaction_pb2.OutputChunk] = []
        self.stdin = bytearray()
        self.stdin_closed = False
        self.exit_code: int | None = None
        self.changed = asyncio.Condition()

    async def run(self) -> None:
        if self.script.turn is not None:
            await self.script.turn.acquire()
        if self.script.stdout:
            await self.emit(STDOUT, self.script.stdout)
        if self.script.stderr:
            await self.emit(STDERR, self.script.stderr)
        if not self.script.echo and not self.script.forever:
            await self.end(self.script.exit_code)

    async def emit(self, stream: types_pb2.OutputStream, data: bytes) -> None:
        async with self.changed:
            self.chunks.append(interaction_pb2.OutputChunk(stream=stream, data=data))
            self.changed.notify_all()

    async def feed(self, data: bytes) -> None:
        async with self.changed:
            self.stdin += data
            self.changed.notify_all()
        if self.script.echo:
            await self.emit(STDOUT, data)

    async def close_stdin(self) -> None:
        async with self.changed:
            self.stdin_closed = True
            self.changed.notify_all()
        if self.script.echo:
            await self.end(self.script.exit_code)

    async def end(self, exit_code: int) -> None:
        async with self.changed:
            if self.exit_code is None:
                self.exit_code = exit_code
            self.changed.notify_all()

    async def ended(self) -> int:
        async with self.changed:
            await self.changed.wait_for(lambda: self.exit_code is not None)
        assert self.exit_code is not None
        return self.exit_code

    async def leave(self, left: asyncio.Event) -> None:
        async with self.changed:
            left.set()
            self.changed.notify_all()

    async def follow(
        self, start: int = 0, left: asyncio.Event | None = None
    ) -> AsyncIterator[interaction_pb2.OutputChunk]:
        """Up to its end, or until this reader has left."""
        position, left = start, left or asyncio.Event()
        while True:
            async with self.changed:
                while position >= len(self.chunks) and self.exit_code is None and not left.is_set():
                    await self.changed.wait()
            if position >= len(self.chunks) or left.is_set():
                return
            while position < len(self.chunks):
                yield self.chunks[position]
                position += 1
