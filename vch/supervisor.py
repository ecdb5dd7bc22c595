"""Runs a VCH: the port layer, then the personality, as child processes, until told to end or until one of them ends.

Container machines are nobody's children and outlive all of this; the next `vch up` finds them again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, closing

from vch import client, state
from vch.errors import ConfigurationError, VchError
from vch.logs import PartLog
from vch.part import Part
from vch.settings import Settings, unix_path
from vch.state import Running

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


async def run(
    settings: Settings, password: str | None, *, timeout_s: float, echo: bool, ready: Callable[[], None]
) -> None:
    """Serves until SIGTERM, SIGINT or SIGHUP; `ready` is called once both parts serve.

    The caller holds the state directory. Raises PartError when a part does not come up or ends by itself.
    """
    end = asyncio.Event()
    for number in _ENDING:
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    with closing(PartLog(settings.state_dir, "vch", echo=echo)) as log:
        serving = asyncio.create_task(_serve(settings, password, timeout_s, echo, ready, log))
        ending = asyncio.create_task(end.wait())
        await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
        if end.is_set():
            log.say("ending; containers keep running")
        ending.cancel()
        serving.cancel()
        try:
            await serving
        except asyncio.CancelledError:
            log.say(f"VCH {settings.name} is down")
        except VchError as error:
            log.say(f"VCH {settings.name} is down: {error.message}")
            raise


async def _serve(
    settings: Settings,
    password: str | None,
    timeout_s: float,
    echo: bool,
    ready: Callable[[], None],
    log: PartLog,
) -> None:
    async with AsyncExitStack() as stack:
        for address in (settings.grpc, *settings.hosts):
            prepare_socket(address)
            stack.callback(_remove_socket, address)
        log.say(f"starting VCH {settings.name} on {settings.state_dir}")
        parts = []
        for name, arguments, secret in (
            ("portlayer", settings.portlayer_arguments(), password),
            ("personality", settings.personality_arguments(), None),
        ):
            its_log = stack.enter_context(closing(PartLog(settings.state_dir, name, echo=echo)))
            part = Part(name, arguments, its_log, secret)
            await part.start(timeout_s)
            stack.push_async_callback(part.stop)
            parts.append(part)
        state.publish(settings.state_dir, _describe(settings, parts))
        log.say(f"VCH {settings.name} serves on {' '.join(settings.hosts)}")
        ready()
        watches = {asyncio.create_task(part.watch()) for part in parts}
        try:
            done, _ = await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
            for watch in done:
                await watch
        finally:
            for watch in watches:
                watch.cancel()


async def remove_all(
    last: Running, password: str | None, log: PartLog, timeout_s: float
) -> tuple[list[str], list[str]]:
    """As client.remove_all, with a port layer that is started for it alone.

    For a VCH that is not up. The caller holds the state directory.
    """
    prepare_socket(last.grpc)
    # Without clones: it would begin to make templates, only to end.
    part = Part("portlayer", [*last.portlayer_arguments, "--no-clone"], log, password)
    await part.start(timeout_s)
    try:
        return await asyncio.to_thread(client.remove_all, last.grpc, dismantled=last.vsphere is not None)
    finally:
        await part.stop()
        _remove_socket(last.grpc)


def _describe(settings: Settings, parts: list[Part]) -> Running:
    return Running(
        pid=os.getpid(),
        started=time.time(),
        name=settings.name,
        hosts=settings.hosts,
        grpc=settings.grpc,
        parts={part.name: part.pid for part in parts},
        portlayer_arguments=tuple(settings.portlayer_arguments()),
        vsphere=settings.vsphere,
    )


def prepare_socket(address: str) -> None:
    """Makes the directory of a socket, closed to others; what a killed VCH left there is removed.

    Raises ConfigurationError when something else is there.
    """
    path = unix_path(address)
    if path is None:
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot make {path.parent}: {error.strerror}") from error
    if not path.exists():
        return
    if not path.is_socket():
        raise ConfigurationError(f"{path} is there and is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise ConfigurationError(f"{path}: another program serves there")
    path.unlink(missing_ok=True)


def _remove_socket(address: str) -> None:
    path = unix_path(address)
    if path is not None:
        path.unlink(missing_ok=True)
