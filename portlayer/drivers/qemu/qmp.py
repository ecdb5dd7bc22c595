"""One QEMU's control connection (QMP), in the few words that the driver needs.

Who this is for: the machine, which opens one Monitor for each life of its QEMU. After any failure the Monitor is
closed and of no further use; whether the command took effect is then unknown, and has to be asked anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

from portlayer.drivers.base import PowerState
from portlayer.drivers.qemu import command, files
from portlayer.errors import DriverError

_TIMEOUT_SECONDS = 30.0
_OFF_STATES = ("shutdown", "internal-error")
_STALLED = "io-error"
_PAUSED_STATES = ("paused", _STALLED, "suspended", "watchdog", "guest-panicked")

# The library tells of every connection that ends, which QEMU's do whenever a machine is switched off.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class DiskProblem:
    """What QEMU met on a disk. Out of space, it has stopped the guest, which knows nothing of it."""

    words: str
    no_space: bool


OnDiskProblem = Callable[[DiskProblem], None]


class Monitor:
    """A live control connection; made by `Monitor.open`."""

    def __init__(self, client: QMPClient, on_problem: OnDiskProblem) -> None:
        self._client = client
        self.on_problem = on_problem
        self._listener = EventListener("BLOCK_IO_ERROR")
        client.register_listener(self._listener)
        self._watch = asyncio.create_task(self._watch_events())

    @classmethod
    async def open(cls, socket_path: Path, on_problem: OnDiskProblem) -> Monitor:
        """Connects and negotiates. Raises DriverError when QEMU does not answer or is not there."""
        client = QMPClient("vch")
        try:
            with contextlib.ExitStack() as unless_connected:
                connection = unless_connected.enter_context(files.connect(socket_path))
                async with asyncio.timeout(_TIMEOUT_SECONDS):
                    await client.connect(connection)
                unless_connected.pop_all()
        except (OSError, QMPError, TimeoutError) as error:
            raise DriverError(f"QEMU does not answer on its control socket: {error}") from error
        return cls(client, on_problem)

    async def close(self) -> None:
        self._watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watch
        # Raises whatever ended the connection before us; it has been seen or matters no more.
        with contextlib.suppress(OSError, EOFError, QMPError):
            await self._client.disconnect()

    async def power_state(self) -> PowerState:
        status = (await self._execute("query-status"))["status"]
        if status in _OFF_STATES:
            return PowerState.OFF
        return PowerState.PAUSED if status in _PAUSED_STATES else PowerState.RUNNING

    async def stalled(self) -> bool:
        """Whether QEMU stopped the guest because the host's disk is full."""
        return bool((await self._execute("query-status"))["status"] == _STALLED)

    async def pause(self) -> None:
        await self._execute("stop")

    async def resume(self) -> None:
        await self._execute("cont")

    async def attach(self, disks: Mapping[str, command.DiskFile]) -> None:
        """Puts files below the nodes of disks, in the place of nothing. One batch: QEMU takes commands in order."""
        calls = []
        for disk, file in disks.items():
            node = f"{disk}-file"
            calls.append(self._execute("blockdev-add", command.file_options(file, node)))
            calls.append(self._execute("blockdev-reopen", {"options": [command.raw_options(disk, node)]}))
        await _all(calls)

    async def detach(self, disks: Iterable[str]) -> None:
        """Undoes `attach`."""
        calls = []
        for disk in disks:
            nothing = command.raw_options(disk, command.no_disk_node(disk))
            calls.append(self._execute("blockdev-reopen", {"options": [nothing]}))
            calls.append(self._execute("blockdev-del", {"node-name": f"{disk}-file"}))
        await _all(calls)

    async def save_state(self, socket_name: str) -> None:
        """Sends the state of all devices, without the shared memory, to a listening socket in QEMU's directory."""
        await self._migrate("migrate", f"unix:{socket_name}")

    async def load_state(self, fd: int) -> None:
        """Takes a template's state in, from the open file that QEMU inherited as `fd`. The guest does not run then."""
        await self._migrate("migrate-incoming", f"fd:{fd}")

    async def _migrate(self, name: str, uri: str) -> None:
        capabilities = [{"capability": one, "state": True} for one in ("x-ignore-shared", "events")]
        with self._client.listener("MIGRATION") as events:
            try:
                async with asyncio.timeout(_TIMEOUT_SECONDS):
                    await _all(
                        [
                            self._execute("migrate-set-capabilities", {"capabilities": capabilities}),
                            self._execute(name, {"uri": uri}),
                        ]
                    )
                    async for event in events:
                        if (status := cast(dict[str, Any], event["data"])["status"]) in ("completed", "failed"):
                            break
            except TimeoutError as error:
                raise DriverError(f"QEMU has not ended {name} within {_TIMEOUT_SECONDS:.0f} s") from error
        if status != "completed":
            raise DriverError(f"QEMU could not {name} a template's state; its log says why")

    async def quit(self) -> None:
        """Ends QEMU."""
        await self._execute("quit")

    async def _execute(self, name: str, arguments: Mapping[str, object] | None = None) -> Any:
        call: Awaitable[Any] = self._client.execute(name, arguments)
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                return await call
        except TimeoutError as error:
            raise DriverError(f"QEMU has not answered {name} within {_TIMEOUT_SECONDS:.0f} s") from error
        except ExecuteError as error:
            raise DriverError(f"QEMU refused {name}: {error}") from error
        except (OSError, EOFError, QMPError) as error:
            raise DriverError(f"QEMU went away during {name}") from error

    async def _watch_events(self) -> None:
        async for event in self._listener:
            data = cast(dict[str, Any], event["data"])
            no_space = bool(data.get("nospace"))
            reason = "no space is left on the host's disk" if no_space else str(data.get("reason", "unknown"))
            words = f"{data.get('operation', 'I/O')} on disk {data.get('node-name', '')}: {reason}"
            self.on_problem(DiskProblem(words, no_space))


async def _all(calls: list[Coroutine[Any, Any, Any]]) -> None:
    """Sends all, in order, before it awaits the first answer; raises the first error once all are answered."""
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(answer, BaseException):
            raise answer
