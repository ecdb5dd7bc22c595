"""The port layer as one gRPC server: everything put together, from the lock on the state directory to the socket."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc

from portlayer import hypervisor, identity
from portlayer.config import Settings
from portlayer.drivers.base import MachineDriver
from portlayer.errors import AlreadyExistsError, DriverError
from portlayer.events import EventHub
from portlayer.execution import Manager
from portlayer.instantclone import InstantClones
from portlayer.metrics import Metrics
from portlayer.networks import Networks
from portlayer.services.events import EventsServicer
from portlayer.services.execution import ExecutionServicer
from portlayer.services.interaction import InteractionServicer
from portlayer.services.network import NetworkServicer
from portlayer.services.registration import register
from portlayer.services.storage import StorageServicer
from portlayer.services.system import SystemServicer
from portlayer.storage import ImageStore

MAX_MESSAGE_BYTES = 8 << 20
_UNIX = "unix://"
# Calls under way have this long to end when the server does.
_GRACE_S = 2.0
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
)


@contextlib.asynccontextmanager
async def serve(settings: Settings) -> AsyncIterator[None]:
    """Serves while the context lasts; on leaving, machines go on.

    Raises AlreadyExistsError when another port layer has the state directory or the socket, DriverError when the
    hypervisor does not do.
    """
    with _locked(settings.state_dir):
        tmp = settings.state_dir / "tmp"
        await asyncio.to_thread(_empty, tmp)
        who = await asyncio.to_thread(identity.load, settings.state_dir, settings.name)
        events = EventHub(settings.state_dir / "events.jsonl")
        async with contextlib.AsyncExitStack() as stack:
            metrics = Metrics()
            driver, datastore = await stack.enter_async_context(hypervisor.opened(settings, who, metrics))
            store = ImageStore(settings.state_dir / "images", tmp, datastore)
            clones = _clones(settings, driver, events)
            networks = Networks(who.id, driver.name, driver.networks)
            manager = Manager(
                driver,
                store,
                events,
                clones,
                networks=networks,
                default_memory_bytes=settings.default_memory_bytes,
                default_cpus=settings.default_cpus,
                default_disk_bytes=settings.default_disk_bytes,
                capacity=await driver.capacity(),
                metrics=metrics,
            )
            await store.open()
            await manager.open()
            stack.push_async_callback(manager.close)
            await clones.open()
            stack.push_async_callback(clones.close)
            server = grpc.aio.server(options=OPTIONS)
            servicers = (
                ExecutionServicer(manager),
                InteractionServicer(manager),
                StorageServicer(store, manager.using_image, events.emit),
                NetworkServicer(networks, who.created_unix_ns),
                EventsServicer(events),
                SystemServicer(who, settings, driver, manager, clones, metrics, lambda: len(store.list())),
            )
            await register(server, servicers)
            _listen(server, settings.grpc)
            await server.start()
            stack.push_async_callback(_stop, server, settings.grpc)
            yield


def _clones(settings: Settings, driver: MachineDriver, events: EventHub) -> InstantClones:
    return InstantClones(
        driver.cloning if settings.clone else None,
        (settings.default_memory_bytes, settings.default_cpus),
        settings.pool_size,
        settings.pool_memory_bytes,
        events.emit,
    )


@contextlib.contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    """Holds the state directory; AlreadyExistsError when another port layer does."""
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(state_dir / "portlayer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DriverError(f"the state directory {state_dir} cannot be used: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise AlreadyExistsError(f"another port layer serves {state_dir}") from error
    finally:
        os.close(descriptor)


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)


def _listen(server: grpc.aio.Server, address: str) -> None:
    if not address.startswith(_UNIX):
        raise DriverError(f"{address!r}: the gRPC API is served on a Unix socket only, as unix:///path")
    path = Path(address.removeprefix(_UNIX))
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_dead_socket(path)
    previous = os.umask(0o177)  # the socket is its owner's alone from the first instant
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise DriverError(f"cannot listen on {address}: {error}") from error
    finally:
        os.umask(previous)


def _remove_dead_socket(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise DriverError(f"cannot listen on {path}: {error}") from error
        raise AlreadyExistsError(f"another server listens on {path}")


async def _stop(server: grpc.aio.Server, address: str) -> None:
    await server.stop(_GRACE_S)
    await asyncio.to_thread(Path(address.removeprefix(_UNIX)).unlink, missing_ok=True)
