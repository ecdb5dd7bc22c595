"""Who is called by the ports of the lab's VMs, in tests that have no concentrator, and what runs."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from lab_hardware import Hardware, NetworkPort
from lab_port import Call, Dial
from vsphere_waiting import PATIENCE_S


def qemus(name: str) -> list[int]:
    """Processes of a VM of the lab."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].startswith(b"qemu-system") and f"lab-{name}".encode() in words:
            found.append(int(process.name))
    return found


class PlainCall:
    """A call without a dialect."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.write = writer.write
        self.drain = writer.drain
        self._writer = writer

    async def read(self) -> bytes:
        return await self._reader.read(1 << 16)

    async def vmotion(self) -> PlainCall:
        raise ConnectionError("there is no way to move")

    async def close(self) -> None:
        self._writer.close()


class Caller:
    """Takes the calls of network ports."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[tuple[str, asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        name = (await reader.readline()).decode().strip()
        self.calls.put_nowait((name, reader, writer))

    def dial_as(self, hardware: Hardware) -> Dial:
        """Plain TCP, with the VM's name and the port's service as its first line."""

        async def dial(port: NetworkPort) -> Call:
            assert self._server is not None
            host, number = self._server.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(host, number)
            writer.write(f"{hardware.name} {port.service_uri}\n".encode())
            return PlainCall(reader, writer)

        return dial

    async def next(self) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(PATIENCE_S):
            return await self.calls.get()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
