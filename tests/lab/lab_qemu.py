"""One QEMU of the lab: its process, its control connection, and the lab's ends of its serial lines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import shutil
import socket
from collections.abc import AsyncIterator, Coroutine, Mapping
from pathlib import Path
from typing import Any, cast

import lab_command
from lab_hardware import Disk, Hardware, LabError, NetworkPort, Nic
from qemu.qmp import ExecuteError, QMPClient, QMPError

_ANSWER_SECONDS = 60.0
_LOG = "qemu.log"

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class Qemu:
    """A QEMU that runs; made by `start`. After its end every command raises LabError."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        client: QMPClient,
        log: Path,
        lines: dict[int, tuple[socket.socket, socket.socket]],
    ) -> None:
        self._process = process
        self._client = client
        self._log = log
        self._lines = lines  # for each network port the lab's end of its line, and QEMU's, which the lab holds too

    @classmethod
    async def start(cls, hardware: Hardware, directory: Path, incoming: str | None = None) -> Qemu:
        """Works in `directory`. With `incoming` it waits for a state, and does not run."""
        directory.mkdir(parents=True, exist_ok=True)
        variables = directory / "efi-variables.fd"
        if hardware.efi and not variables.exists():
            shutil.copyfile(lab_command.FIRMWARE_VARIABLES, variables)
        ports = [number for number, port in enumerate(hardware.ports) if isinstance(port, NetworkPort)]
        lines = {number: socket.socketpair() for number in ports}
        qmp, qmp_far = socket.socketpair()
        theirs = [far.fileno() for _, far in lines.values()]
        try:
            argv = lab_command.machine_command(
                hardware, qmp_fd=qmp_far.fileno(), port_fds=theirs, variables=variables, incoming=incoming
            )
            with (directory / _LOG).open("wb") as log:
                process = await asyncio.create_subprocess_exec(
                    *argv,
                    cwd=directory,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[qmp_far.fileno(), *theirs],
                )
        except BaseException:
            for end in (qmp, *(end for pair in lines.values() for end in pair)):
                end.close()
            raise
        finally:
            qmp_far.close()
        for near in (qmp, *(near for near, _ in lines.values())):
            near.setblocking(False)
        self = cls(process, QMPClient("lab"), directory / _LOG, lines)
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._client.connect(qmp)
        except (OSError, EOFError, QMPError, TimeoutError) as error:
            await self.end()
            raise LabError(f"QEMU does not run: {self.complaint or error}") from error
        except BaseException:
            await self.end()
            raise
        return self

    @property
    def complaint(self) -> str:
        """What it said last."""
        return self._log.read_text(errors="replace").strip()[-1000:]

    @property
    def lines(self) -> dict[int, socket.socket]:
        """The lab's ends of the network ports' lines, by the port's number."""
        return {number: near for number, (near, _) in self._lines.items()}

    def hang_up(self) -> dict[int, bytes]:
        """Of a QEMU that has ended: what was on its way to the guest. Lines end after what the guest had written."""
        unread = {}
        for number, (_, far) in self._lines.items():
            far.setblocking(False)
            unread[number] = _rest(far)
            far.close()
        return unread

    async def wait_ended(self) -> None:
        await self._process.wait()

    async def end(self, *, keep_lines: bool = False) -> None:
        """Kills it; returns when it is gone. Its lines are closed unless something is still to be read from them."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        with contextlib.suppress(OSError, EOFError, QMPError):
            await self._client.disconnect()
        if not keep_lines:
            for end in (end for pair in self._lines.values() for end in pair):
                end.close()

    async def pause(self) -> None:
        await self._execute("stop")

    async def go_on(self) -> None:
        await self._execute("cont")

    async def is_running(self) -> bool:
        return bool((await self._execute("query-status"))["running"])

    async def add_disk(self, disk: Disk) -> None:
        answer = await self._monitor(f"drive_add 0 {_quoted(lab_command.drive_options(disk))}")
        if answer.strip() != "OK":
            raise LabError(f"QEMU refuses {disk.id}: {answer.strip()}")
        await self._add(lab_command.disk_options(disk))

    async def add_nic(self, nic: Nic) -> None:
        await self._execute("netdev_add", _arguments("type=" + lab_command.netdev_options(nic)))
        await self._add(lab_command.nic_options(nic))

    async def remove(self, device: str) -> None:
        """Takes a disk or NIC out; returns once the guest has let go of it."""
        with self._client.listener("DEVICE_DELETED") as events:
            await self._execute("device_del", {"id": device})
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    async for event in events:
                        if cast(dict[str, Any], event["data"]).get("device") == device:
                            break
            except TimeoutError:
                raise LabError(f"the guest does not let go of {device}") from None
        if device.startswith("nic-"):
            await self._execute("netdev_del", {"id": f"{device}-cable"})

    async def save(self, file: Path) -> None:
        """Stops it for good and writes its memory and its devices to a file."""
        await self.pause()
        await self.send(f"exec:cat > {shlex.quote(str(file))}")

    async def send(self, uri: str) -> None:
        """Sends memory and devices to where another QEMU waits for them; it does not run afterwards."""
        # As fast as it goes: there is no network in between.
        await self._execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
        async with self._migration():
            await self._execute("migrate", {"uri": uri})

    async def receive(self, uri: str, meanwhile: Coroutine[Any, Any, None] | None = None) -> None:
        """Takes in what another one sends, which may begin once this one listens; it does not run yet."""
        async with self._migration():
            try:
                await self._execute("migrate-incoming", {"uri": uri})
            finally:
                if meanwhile is not None:
                    await meanwhile

    @contextlib.asynccontextmanager
    async def _migration(self) -> AsyncIterator[None]:
        """A migration is begun within, and has ended when this does."""
        await self._execute("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]})
        with self._client.listener("MIGRATION") as events:
            yield
            async with asyncio.timeout(_ANSWER_SECONDS):
                async for event in events:
                    status = cast(dict[str, Any], event["data"])["status"]
                    if status == "completed":
                        return
                    if status == "failed":
                        raise LabError(f"QEMU's state could not be moved: {self.complaint}")

    async def _add(self, options: str) -> None:
        driver, _, rest = options.partition(",")
        await self._execute("device_add", {"driver": driver} | _arguments(rest))

    async def _monitor(self, line: str) -> str:
        return str(await self._execute("human-monitor-command", {"command-line": line}))

    async def _execute(self, name: str, arguments: Mapping[str, object] | None = None) -> Any:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await self._client.execute(name, arguments)
        except (ExecuteError, OSError, EOFError, QMPError, TimeoutError) as error:
            raise LabError(f"QEMU, asked for {name}: {error!r} {self.complaint}") from error


def _rest(end: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(BlockingIOError):
        while more := end.recv(1 << 16):
            data += more
    return data


def _arguments(options: str) -> dict[str, object]:
    """An option list as QMP takes it: numbers as such."""
    pairs = (word.partition("=") for word in options.split(","))
    return {key: int(value) if value.isdecimal() and key != "addr" else value for key, _, value in pairs}


def _quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
